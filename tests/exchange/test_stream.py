"""The stream over a real port, without Flower: both sides, their drops, and their ends whatever fails."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping

import pytest
import torch
from streaming import Drops, Echo, Node, answer, round_of

from sglr_flower.exchange import link as link_module
from sglr_flower.exchange.frames import FrameError
from sglr_flower.exchange.stream import ExchangeError, StreamServer, can_reach
from sglr_flower.split.messages import Download, Upload


@pytest.fixture
def server() -> Iterator[StreamServer]:
    running = StreamServer()
    yield running
    running.stop()


def test_two_nodes_to_the_end(server: StreamServer) -> None:
    sessions = {11: Echo(3), 22: Echo(2, pause=0.05)}
    with round_of(server, list(sessions)) as link:
        nodes = [Node(session, server.address, link.secrets[n]) for n, session in sessions.items()]
        while answer(link):
            pass
        assert [node.ended() for node in nodes] == [None, None]
    assert sessions[11].answers == [0.0, 10.0, 110.0]
    assert sessions[22].answers == [0.0, 10.0]
    traffic = link.traffic
    assert (traffic[11].frames, traffic[22].frames) == (3, 2)
    assert (len(traffic[11].waits), len(traffic[22].waits)) == (3, 2)
    assert traffic[22].waits[1] > 0.05
    assert link.sent.up == traffic[11].sent.up + traffic[22].sent.up > 0
    assert link.sent.down == traffic[11].sent.down + traffic[22].sent.down > 0


def test_closing_at_once_takes_no_last_answer_away(server: StreamServer) -> None:
    for _ in range(20):
        session = Echo(1)
        with round_of(server, [11]) as link:
            node = Node(session, server.address, link.secrets[11])
            answer(link)
        assert node.ended() is None
        assert session.answers == [0.0]


# ---- ends


def test_a_node_learns_at_once_that_the_server_gave_up(server: StreamServer) -> None:
    def open_and_fail() -> None:
        with round_of(server, [11]) as link:
            nodes.append(Node(Echo(), server.address, link.secrets[11]))
            link.receive()
            raise RuntimeError("the strategy fails")

    nodes: list[Node] = []
    with pytest.raises(RuntimeError, match="the strategy fails"):
        open_and_fail()
    assert "ended the round early" in str(nodes[0].ended(5))


def test_a_node_that_computes_learns_that_the_round_is_over(server: StreamServer) -> None:
    with round_of(server, [11]) as link:
        node = Node(Echo(pause=0.5), server.address, link.secrets[11])
        answer(link)
    assert "ended the round early" in str(node.ended(5))


def test_a_node_learns_at_once_that_the_server_is_gone() -> None:
    server = StreamServer()
    with round_of(server, [11]) as link:
        node = Node(Echo(), server.address, link.secrets[11])
        link.receive()
        server.stop()
        assert isinstance(node.ended(5), ExchangeError)


def test_a_node_does_not_wait_for_ever_for_a_silent_server(server: StreamServer) -> None:
    with round_of(server, [11]) as link:
        node = Node(Echo(), server.address, link.secrets[11], timeout=1.0)
        link.receive()
        assert "no answer within 1 s" in str(node.ended(5))


# ---- drops: the others go on


@pytest.fixture
def drops() -> Drops:
    return Drops()


def finish(link: link_module.StreamLink) -> int:
    """Answer to the end; the number of steps with a frame."""
    steps = 0
    while answer(link):
        steps += 1
    return steps


def test_a_node_without_a_first_frame_is_dropped(server: StreamServer, drops: Drops) -> None:
    with round_of(server, [11, 22], drops, start_timeout=1.0) as link:
        late = link.secrets[22]
        node = Node(Echo(), server.address, link.secrets[11])
        assert finish(link) == 3
        assert node.ended() is None
        assert drops == {22: "no first frame within 1 s"}
        # Its secret is of no use any more.
        assert "UNAUTHENTICATED" in str(Node(Echo(), server.address, late).ended())


def test_a_node_that_is_silent_in_a_later_step_is_dropped_and_told(server: StreamServer, drops: Drops) -> None:
    with round_of(server, [11, 22], drops, timeout=1.0, start_timeout=20.0) as link:
        nodes = [Node(Echo(5, pause), server.address, link.secrets[n]) for n, pause in ((11, 0.0), (22, 3.0))]
        began = time.monotonic()
        assert finish(link) == 5
        assert 1.0 <= time.monotonic() - began < 3.0
        assert drops == {22: "no frame within 1 s"}
        assert link.traffic[22].frames == 1
        assert nodes[0].ended() is None
        assert "ended the round early" in str(nodes[1].ended())


def test_the_timeout_of_later_frames_does_not_hold_for_the_first(server: StreamServer) -> None:
    class Slow(Echo):
        def start(self) -> Upload:
            time.sleep(1.5)
            return super().start()

    with round_of(server, [11], timeout=0.5, start_timeout=20.0) as link:
        Node(Slow(), server.address, link.secrets[11])
        assert finish(link) == 3


def test_a_node_that_breaks_off_is_dropped(server: StreamServer, drops: Drops, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Echo):
        def advance(self, download: Download) -> Upload | None:
            raise ValueError("out of memory")

    monkeypatch.setattr(link_module, "REASON_SECONDS", 0.3)
    with round_of(server, [11, 22], drops) as link:
        node = Node(Broken(), server.address, link.secrets[11])
        Node(Echo(), server.address, link.secrets[22])
        assert finish(link) == 3
        assert drops == {11: "the connection ended"}
        assert link.traffic[11].frames == 1
        assert isinstance(node.ended(5), ValueError)


def test_a_node_that_breaks_off_after_its_frame_is_dropped_in_that_step(server: StreamServer, drops: Drops) -> None:
    with round_of(server, [11, 22], drops) as link:
        # It gives up waiting for the answer before node 22 has sent its frame.
        gone = Node(Echo(), server.address, link.secrets[11], timeout=0.4)
        assert isinstance(gone.ended(), ExchangeError)
        Node(Echo(), server.address, link.secrets[22])
        assert set(answer(link)) == {22}
        assert drops == {11: "the connection ended"}
        assert link.traffic[11].frames == 0


def test_a_broken_node_says_why_in_its_own_words(server: StreamServer, drops: Drops) -> None:
    class Broken(Echo):
        def advance(self, download: Download) -> Upload | None:
            raise ValueError("out of memory")

    def failures() -> Mapping[int, str]:
        # Flower brings a node's words a moment after its stream broke.
        return {11: "out of memory"} if time.monotonic() > began + 1.0 else {}

    began = time.monotonic()
    with round_of(server, [11], drops, failures=failures) as link:
        Node(Broken(), server.address, link.secrets[11])
        answer(link)
        assert link.receive() == {}
    assert drops == {11: "out of memory"}
    assert time.monotonic() - began < link_module.REASON_SECONDS


def test_a_node_known_to_have_failed_is_dropped_without_waiting(server: StreamServer, drops: Drops) -> None:
    with round_of(server, [11, 22], drops, failures=lambda: {22: "no data", 33: "not of this round"}) as link:
        Node(Echo(), server.address, link.secrets[11])
        began = time.monotonic()
        assert finish(link) == 3
        assert time.monotonic() - began < 5
    assert drops == {22: "no data"}


def test_failures_are_asked_for_twice_a_second_at_most(server: StreamServer, drops: Drops) -> None:
    asked: list[float] = []

    def failures() -> Mapping[int, str]:
        asked.append(time.monotonic())
        return {}

    with round_of(server, [11], drops, start_timeout=1.7, failures=failures) as link:
        assert link.receive() == {}
    assert 2 <= len(asked) <= 4
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(asked))


def test_a_node_whose_frame_fails_its_check_is_dropped_and_told(server: StreamServer, drops: Drops) -> None:
    def check(upload: Upload) -> None:
        if upload.step == 1:
            raise FrameError("labels from 0 to 12, not from 0 to 9")

    with round_of(server, {11: check, 22: lambda _: None}, drops) as link:
        nodes = {n: Node(Echo(), server.address, link.secrets[n]) for n in (11, 22)}
        assert finish(link) == 3
        assert drops == {11: "labels from 0 to 12, not from 0 to 9"}
        assert link.traffic[11].frames == 1
        assert "labels from 0 to 12" in str(nodes[11].ended())
        assert nodes[22].ended() is None


def test_a_node_is_not_dropped_when_its_stream_ends_after_its_last_answer(server: StreamServer, drops: Drops) -> None:
    with round_of(server, [11, 22], drops) as link:
        short = Node(Echo(1), server.address, link.secrets[11])
        Node(Echo(3, pause=0.2), server.address, link.secrets[22])
        answer(link)
        assert short.ended() is None
        assert finish(link) == 2
    assert drops == {}


def test_what_on_drop_raises_ends_the_round(server: StreamServer) -> None:
    def end(node: int, reason: str) -> None:
        raise RuntimeError(f"too few clients without node {node}")

    with (
        round_of(server, [11], end, start_timeout=0.2) as link,
        pytest.raises(RuntimeError, match="too few clients without node 11"),
    ):
        link.receive()


def test_all_nodes_dropped_is_the_end_of_the_round(server: StreamServer, drops: Drops) -> None:
    with round_of(server, [11, 22], drops, start_timeout=0.3) as link:
        assert link.receive() == {}
    assert set(drops) == {11, 22}


# ---- answers that are none


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Download(1, 1, own=torch.zeros(1, 2)), "an answer to step 1 of round 1"),
        (Download(1, 0), "no own cut gradient"),
        (Download(1, 0, own=torch.full((1, 2), torch.nan)), "not finite"),
    ],
    ids=["another step", "no gradient", "nan"],
)
def test_a_node_refuses_an_answer_that_is_none(
    server: StreamServer, drops: Drops, wrong: Download, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "REASON_SECONDS", 0.1)
    session = Echo()
    with round_of(server, [11], drops) as link:
        node = Node(session, server.address, link.secrets[11])
        link.receive()
        link.send({11: wrong})
        error = node.ended()
        assert isinstance(error, FrameError)
        assert says in str(error)
        assert session.answers == []
        assert link.receive() == {}


# ---- reaching the port


def test_reaching_the_port(server: StreamServer) -> None:
    assert can_reach(server.address, server.reach_secret) == ""
    assert "UNAUTHENTICATED" in can_reach(server.address, "wrong")
    assert "does not answer" in can_reach("127.0.0.1:9", server.reach_secret)
