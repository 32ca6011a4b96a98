"""The stream: one gRPC bidirectional stream per node and round, opened by the node inside its Flower message.

The server side is a `StreamServer` for the whole run and a `StreamLink` per round; the node side is `run_session`. Both
end whatever happens to the other: a broken connection is noticed by gRPC (keepalive for a silent one), and a peer that
is alive but says nothing by the step timeout.
"""

from __future__ import annotations

import functools
import hmac
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import exchange_pb2_grpc as rpc
from sglr_flower.exchange.frames import decode_download, decode_upload, encode_download, encode_upload
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.rounds import Session

SECRET_KEY = "sglr-secret"
MAX_STREAMS = 500
"""Streams that a server takes at the same time."""
REASON_SECONDS = 3.0
"""How long the server waits for a node's own words after its stream broke."""
REACH_TIMEOUT = 5.0
"""Seconds in which a node must reach the server's port, or it takes the grid exchange."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # a frame grows with the cohort
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # a step may take longer than two pings
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.enable_http_proxy", 0),  # a proxy set for the web must not swallow a stream to our own port
    ("grpc.so_reuseport", 0),
]


class ExchangeError(RuntimeError):
    """An exchange that broke, or whose other side said nothing in time."""


class StreamLink:
    """The server's side of one round over streams (a `sglr_flower.split.rounds.Link`).

    Parameters
    ----------
    nodes : Sequence[int]
        The nodes that will open a stream.
    timeout : float
        Seconds to wait for a node's next upload.
    check : Callable[[], None]
        Called now and then while waiting; raises if a node is known to have failed.
    """

    def __init__(self, nodes: Sequence[int], timeout: float, check: Callable[[], None]) -> None:
        self.secrets = {node: secrets.token_hex(32) for node in nodes}
        self.bytes_up = self.bytes_down = 0
        self._timeout, self._check = timeout, check
        self._open = set(nodes)
        self._uploads: queue.SimpleQueue[tuple[int, Upload | ExchangeError, int]] = queue.SimpleQueue()
        # A node's next answer; None ends its stream.
        self._answers: dict[int, queue.SimpleQueue[pb.Download | None]] = {n: queue.SimpleQueue() for n in nodes}

    def receive(self) -> dict[int, Upload]:
        """The next upload of every node that still has one.

        Raises
        ------
        ExchangeError
            If a node's stream breaks or the timeout passes; the message names the nodes by id.
        """
        uploads: dict[int, Upload] = {}
        deadline = time.monotonic() + self._timeout
        while missing := self._open - uploads.keys():
            try:
                node, upload, size = self._uploads.get(timeout=0.5)
            except queue.Empty:
                self._check()
                if time.monotonic() > deadline:
                    names = ", ".join(str(node) for node in sorted(missing))
                    raise ExchangeError(f"no frame from node(s) {names} within {self._timeout:g} s") from None
                continue
            if isinstance(upload, ExchangeError):
                if node not in self._open:
                    continue  # it had sent its last
                self._await_reason()
                raise upload
            uploads[node] = upload
            self.bytes_up += size
        self._open = {node for node, upload in uploads.items() if not upload.last}
        return uploads

    def _await_reason(self) -> None:
        """A node whose handler failed says why in its Flower reply, a moment after its stream broke."""
        deadline = time.monotonic() + REASON_SECONDS
        while time.monotonic() < deadline:
            self._check()
            time.sleep(0.1)

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Answer the uploads last received."""
        for node, download in downloads.items():
            frame = encode_download(download)
            self.bytes_down += frame.ByteSize()
            self._answers[node].put(frame)

    def close(self) -> None:
        """End all streams of the round."""
        self.secrets.clear()
        for answers in self._answers.values():
            answers.put(None)

    def claim(self, secret: str) -> int | None:
        """The node that a secret belongs to; each secret is good for one stream."""
        for node, expected in list(self.secrets.items()):
            if hmac.compare_digest(expected, secret):
                # Of two calls with one secret, the one that removes it has it.
                return node if self.secrets.pop(node, None) else None
        return None

    def serve(self, node: int, frames: Iterator[pb.Upload]) -> Iterator[pb.Download]:
        """Run one node's stream (in a thread of the gRPC server): hand uploads over, wait for their answers."""
        try:
            for frame in frames:
                upload = decode_upload(frame)
                self._uploads.put((node, upload, frame.ByteSize()))
                answer = self._answers[node].get()
                if answer is None:
                    return
                yield answer
        except Exception as error:  # whatever a frame does to us, it is this node's failure and nobody else's
            self.ended(node, f"{type(error).__name__}: {error}")

    def ended(self, node: int, reason: str = "the connection ended") -> None:
        """Take note that a node's stream is over; that is a failure unless its last upload had been received."""
        self._uploads.put((node, ExchangeError(f"the stream of node {node} broke: {reason}"), 0))


class StreamServer(rpc.ExchangeServicer):
    """The server's port for streams: loopback, a free port, one link per round.

    Parameters
    ----------
    host : str
        Address to bind and to tell the nodes.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._links: list[StreamLink] = []
        self._reach_secret = secrets.token_hex(32)
        # A stream holds a thread, waiting rather than computing, for its whole round; two more answer `Reach`.
        self._server = grpc.server(ThreadPoolExecutor(MAX_STREAMS + 2, "sglr-stream"), options=_OPTIONS)
        rpc.add_ExchangeServicer_to_server(self, self._server)
        self.address = f"{host}:{self._server.add_insecure_port(f'{host}:0')}"
        self._server.start()

    @property
    def reach_secret(self) -> str:
        """What a node shows to test whether it can reach this port."""
        return self._reach_secret

    @contextmanager
    def open(self, nodes: Sequence[int], timeout: float, check: Callable[[], None]) -> Iterator[StreamLink]:
        """A link for one round; its streams end with the block, however that ends."""
        link = StreamLink(nodes, timeout, check)
        self._links.append(link)
        try:
            yield link
        finally:
            self._links.remove(link)
            link.close()

    def stop(self) -> None:
        """Close the port; nodes in a stream are told at once."""
        self._server.stop(grace=0)

    def Reach(self, request: pb.Ping, context: grpc.ServicerContext) -> pb.Ping:  # noqa: D102 - gRPC's name
        if not hmac.compare_digest(self._reach_secret, _secret(context)):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong secret")
        return pb.Ping()

    def Steps(  # noqa: D102 - gRPC's name
        self, request_iterator: Iterator[pb.Upload], context: grpc.ServicerContext
    ) -> Iterator[pb.Download]:
        secret = _secret(context)
        for link in list(self._links):
            node = link.claim(secret)
            if node is not None:
                # Not by the end of `serve`: gRPC leaves a generator suspended where a call breaks off.
                context.add_callback(functools.partial(link.ended, node))
                yield from link.serve(node, request_iterator)
                return
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong, used or outdated secret")


def can_reach(address: str, secret: str) -> str:
    """Try the server's port from a node; empty if it answers, else why not."""
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            rpc.ExchangeStub(channel).Reach(pb.Ping(), timeout=REACH_TIMEOUT, metadata=((SECRET_KEY, secret),))
        except grpc.RpcError as error:
            return f"{address} does not answer ({error.code().name})"
    return ""


def run_session(session: Session, address: str, secret: str, timeout: float) -> None:
    """Drive a node's session over a stream to its end.

    Parameters
    ----------
    session : Session
        The node's side of the round.
    address, secret : str
        From the round's Flower message.
    timeout : float
        Seconds to wait for the server's answer to an upload.

    Raises
    ------
    ExchangeError
        If the server closes the stream early, breaks off, or does not answer in time. Never hangs.
    """
    outgoing: queue.SimpleQueue[pb.Upload | None] = queue.SimpleQueue()
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        call = rpc.ExchangeStub(channel).Steps(iter(outgoing.get, None), metadata=((SECRET_KEY, secret),))
        try:
            with _Watchdog(call, timeout) as watchdog:
                upload: Upload | None = session.start()
                while upload is not None:
                    outgoing.put(encode_upload(upload))
                    with watchdog.waiting():
                        answer = next(call, None)
                    if answer is None:
                        raise ExchangeError("the server ended the round early")
                    upload = session.advance(decode_download(answer))
        except grpc.RpcError as error:
            reason = (
                f"no answer within {timeout:g} s" if watchdog.expired else f"{error.code().name}: {error.details()}"
            )
            raise ExchangeError(f"the stream to {address} broke ({reason})") from None
        finally:
            outgoing.put(None)
            call.cancel()


class _Watchdog:
    """Cancels a call whose answer does not come in time: a blocking gRPC iterator has no timeout of its own."""

    def __init__(self, call: Any, timeout: float) -> None:
        self.expired = False
        self._call, self._timeout = call, timeout
        self._deadline: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sglr-watchdog", daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The call must end within the timeout."""
        self._deadline = time.monotonic() + self._timeout
        try:
            yield
        finally:
            self._deadline = None

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._timeout / 4)):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self.expired = True
                self._call.cancel()


def _secret(context: grpc.ServicerContext) -> str:
    return str(dict(context.invocation_metadata()).get(SECRET_KEY, ""))
