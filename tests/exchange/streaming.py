"""Nodes in threads, a round that notes who is dropped, a proxy that listens: what the tests of the stream share."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from sglr_flower.exchange.checks import FrameCheck
from sglr_flower.exchange.link import StreamLink
from sglr_flower.exchange.session import run_session
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.split.messages import Download, Upload


class Echo:
    """A session of three steps that uploads what it was answered, plus one."""

    def __init__(self, steps: int = 3, pause: float = 0.0, client: int = 0) -> None:
        self.steps, self.pause, self.client = steps, pause, client
        self.answers: list[float] = []

    def start(self) -> Upload:
        return self.upload(0, 0.0)

    def advance(self, download: Download) -> Upload | None:
        time.sleep(self.pause)
        assert download.own is not None
        self.answers.append(float(download.own[0, 0]))
        step = download.step + 1
        return self.upload(step, self.answers[-1] + 1) if step < self.steps else None

    def upload(self, step: int, value: float) -> Upload:
        smashed, labels = torch.full((1, 2), value), torch.zeros(1, dtype=torch.long)
        last = step + 1 == self.steps
        return Upload(1, step, "train", (self.client,), (1,), smashed, labels, last)


class Node(threading.Thread):
    """A node in a thread; how it ended is in ``error``."""

    def __init__(
        self, session: Echo, address: str, secret: str, timeout: float = 20.0, roots: bytes | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.arguments = (session, address, secret, timeout, roots)
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            run_session(*self.arguments)
        except Exception as error:
            self.error = error

    def ended(self, within: float = 10) -> Exception | None:
        self.join(within)
        assert not self.is_alive(), "the node is still waiting"
        return self.error


def anything(upload: Upload) -> None:
    """The check of a test that is about the wire: every frame will do."""


class Drops(dict[int, str]):
    """Who was dropped and why; once each."""

    def __call__(self, node: int, reason: str) -> None:
        assert node not in self, f"{node} was dropped twice: {self[node]}, {reason}"
        self[node] = reason


@contextmanager
def round_of(
    server: StreamServer,
    nodes: list[int] | Mapping[int, FrameCheck],
    drops: Callable[[int, str], None] | None = None,
    timeout: float = 20.0,
    start_timeout: float = 20.0,
    failures: Callable[[], Mapping[int, str]] = dict,
) -> Iterator[StreamLink]:
    """Open a link; without ``drops`` no node may be dropped."""
    checks = nodes if isinstance(nodes, Mapping) else dict.fromkeys(nodes, anything)
    on_drop = drops if drops is not None else _nobody
    with server.open(checks, timeout=timeout, start_timeout=start_timeout, on_drop=on_drop, failures=failures) as link:
        yield link


def _nobody(node: int, reason: str) -> None:
    raise AssertionError(f"node {node} was dropped: {reason}")


def answer(link: StreamLink) -> dict[int, Upload]:
    """One step: receive, and answer with ten times the smashed data."""
    uploads = link.receive()
    link.send({n: Download(1, u.step, own=u.smashed * 10) for n, u in uploads.items()})
    return uploads


class Proxy:
    """Passes one connection's bytes on and keeps what went to the server, its first MiB."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed, self.seen = 0, bytearray()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._sockets]:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                # So that little is on its way when the server says no.
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
                self._sockets += [near, far]
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65_536):
                if up:
                    self.passed += len(content)
                    self.seen += content[: max(0, (1 << 20) - len(self.seen))]
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)
