"""The stream over a real port, without Flower: both sides, and their ends whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from sglr_flower.exchange.stream import ExchangeError, StreamLink, StreamServer, can_reach, run_session
from sglr_flower.split.messages import Download, Upload


class Echo:
    """A session of three steps that uploads what it was answered, plus one."""

    def __init__(self, steps: int = 3, pause: float = 0.0) -> None:
        self.steps, self.pause = steps, pause
        self.answers: list[float] = []

    def start(self) -> Upload:
        return self.upload(0, 0.0)

    def advance(self, download: Download) -> Upload | None:
        time.sleep(self.pause)
        self.answers.append(float(download.own[0, 0]))
        step = download.step + 1
        return self.upload(step, self.answers[-1] + 1) if step < self.steps else None

    def upload(self, step: int, value: float) -> Upload:
        smashed, labels = torch.full((1, 2), value), torch.zeros(1, dtype=torch.long)
        return Upload(1, step, "train", (0,), (1,), smashed, labels, last=step + 1 == self.steps)


@pytest.fixture
def server() -> Iterator[StreamServer]:
    running = StreamServer()
    yield running
    running.stop()


def fine() -> None:
    """No node is known to have failed."""


class Node(threading.Thread):
    """A node in a thread; how it ended is in ``error``."""

    def __init__(self, session: Echo, address: str, secret: str, timeout: float = 20.0) -> None:
        super().__init__(daemon=True)
        self.arguments = (session, address, secret, timeout)
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            run_session(*self.arguments)
        except Exception as error:
            self.error = error

    def ended(self, within: float) -> Exception | None:
        self.join(within)
        assert not self.is_alive(), "the node is still waiting"
        return self.error


def answer(link: StreamLink) -> bool:
    uploads = link.receive()
    link.send({n: Download(1, u.step, own=u.smashed * 10) for n, u in uploads.items()})
    return bool(uploads)


def test_two_nodes_to_the_end(server: StreamServer) -> None:
    sessions = {11: Echo(3), 22: Echo(2, pause=0.05)}
    with server.open(list(sessions), 20, fine) as link:
        nodes = [Node(session, server.address, link.secrets[n]) for n, session in sessions.items()]
        while answer(link):
            pass
        assert [node.ended(10) for node in nodes] == [None, None]
    assert sessions[11].answers == [0.0, 10.0, 110.0]
    assert sessions[22].answers == [0.0, 10.0]
    assert link.bytes_up > 0
    assert link.bytes_down > 0


def test_a_wrong_a_used_and_an_old_secret_are_refused(server: StreamServer) -> None:
    with server.open([11], 20, fine) as link:
        secret = link.secrets[11]
        assert "UNAUTHENTICATED" in str(Node(Echo(), server.address, "0" * 64).ended(10))
        assert "UNAUTHENTICATED" in str(Node(Echo(), server.address, "").ended(10))
        node = Node(Echo(1), server.address, secret)
        link.send({11: Download(1, 0, own=link.receive()[11].smashed)})
        assert node.ended(10) is None
        assert "UNAUTHENTICATED" in str(Node(Echo(), server.address, secret).ended(10))
    with server.open([11], 20, fine) as link:
        old = link.secrets[11]
    assert "UNAUTHENTICATED" in str(Node(Echo(), server.address, old).ended(10))
    assert len(secret) == 64
    assert secret != old


def test_a_node_learns_at_once_that_the_server_gave_up(server: StreamServer) -> None:
    def open_and_fail() -> None:
        with server.open([11], 20, fine) as link:
            nodes.append(Node(Echo(), server.address, link.secrets[11]))
            link.receive()
            raise RuntimeError("the strategy fails")

    nodes: list[Node] = []
    with pytest.raises(RuntimeError, match="the strategy fails"):
        open_and_fail()
    assert "ended the round early" in str(nodes[0].ended(5))


def test_a_node_learns_at_once_that_the_server_is_gone() -> None:
    server = StreamServer()
    with server.open([11], 20, fine) as link:
        node = Node(Echo(), server.address, link.secrets[11])
        link.receive()
        server.stop()
        assert isinstance(node.ended(5), ExchangeError)


def test_a_node_does_not_wait_for_ever_for_a_silent_server(server: StreamServer) -> None:
    with server.open([11], 20, fine) as link:
        node = Node(Echo(), server.address, link.secrets[11], timeout=1.0)
        link.receive()
        assert "no answer within 1 s" in str(node.ended(5))


def test_the_server_does_not_wait_for_ever_for_a_silent_node(server: StreamServer) -> None:
    with server.open([11, 22], 1.5, fine) as link:
        Node(Echo(), server.address, link.secrets[11])
        with pytest.raises(ExchangeError, match=r"no frame from node\(s\) 22 within 1.5 s"):
            link.receive()


def test_the_server_notices_a_node_that_breaks_off(server: StreamServer) -> None:
    class Broken(Echo):
        def advance(self, download: Download) -> Upload | None:
            raise ValueError("out of memory")

    with server.open([11], 20, fine) as link:
        node = Node(Broken(), server.address, link.secrets[11])
        answer(link)
        with pytest.raises(ExchangeError, match="the stream of node 11 broke"):
            link.receive()
        assert isinstance(node.ended(5), ValueError)


def test_a_known_failure_of_a_node_ends_the_waiting(server: StreamServer) -> None:
    def failed() -> None:
        raise ExchangeError("node 11 failed: no data")

    with server.open([11], 60, failed) as link, pytest.raises(ExchangeError, match="no data"):
        link.receive()


def test_reaching_the_port(server: StreamServer) -> None:
    assert can_reach(server.address, server.reach_secret) == ""
    assert "UNAUTHENTICATED" in can_reach(server.address, "wrong")
    assert "does not answer" in can_reach("127.0.0.1:9", server.reach_secret)
