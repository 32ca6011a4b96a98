"""The stream: one gRPC bidirectional stream per node and round, opened by the node inside its Flower message.

The server side is a `StreamServer` for the whole run and a `StreamLink` per round; the node side is `run_session`. Both
end whatever happens to the other: a broken connection is noticed by gRPC (keepalive for a silent one), and a peer that
is alive but says nothing by the timeouts.

Who may open a stream is decided on the call's headers, in gRPC's own serving thread: a call without a valid secret gets
none of the threads that streams hold, and no frame of it is taken from the wire.
"""

from __future__ import annotations

import functools
import hmac
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from sglr_flower.errors import UserError
from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import shared
from sglr_flower.exchange.checks import FrameCheck
from sglr_flower.exchange.endpoint import Endpoint, is_loopback, join_address, refuse_plaintext
from sglr_flower.exchange.link import Failures, OnDrop, StreamLink, Traffic
from sglr_flower.exchange.session import can_reach, run_session
from sglr_flower.exchange.shared import Proof
from sglr_flower.exchange.wire import MAX_FRAME, SECRET_KEY, ExchangeError, options

__all__ = [
    "MAX_FRAME",
    "MAX_STREAMS",
    "ExchangeError",
    "StreamLink",
    "StreamServer",
    "Traffic",
    "can_reach",
    "refuse_plaintext",
    "run_session",
]

MAX_STREAMS = 500
"""Streams that a server takes at the same time."""
MAX_CALLS = 64
"""Other calls, refused ones and `Reach`, that wait for an answer; beyond that gRPC refuses them without a word."""
MAX_CONNECTIONS = 800
"""Connections; below the usual limit of open files, of which the run needs others."""
HANDSHAKE_SECONDS = 10
"""A connection that has not finished its TLS and HTTP/2 handshakes by then is closed."""
IDLE_SECONDS = 60
"""A connection without a call is closed after that."""

log = logging.getLogger("flwr.sglr")


class StreamServer:
    """The server's port for streams, one link per round.

    Parameters
    ----------
    endpoint : Endpoint
        Where to bind, what to tell the nodes, and TLS; without one: loopback, any free port, plaintext.
    max_frame : int
        The largest frame taken from a node, bytes.

    Raises
    ------
    UserError
        If the endpoint is not one (`Endpoint.check`), its port cannot be bound, or its certificate or key is no PEM.

    Attributes
    ----------
    memory : Proof | None
        What tells which nodes can share memory with this process; None where the system has no such memory.
    """

    def __init__(self, endpoint: Endpoint | None = None, max_frame: int = MAX_FRAME) -> None:
        endpoint = endpoint or Endpoint()
        endpoint.check()
        self._links: list[StreamLink] = []
        self._reach_secret = secrets.token_hex(32)
        self.memory = Proof() if shared.available() else None
        # A stream holds a thread, waiting rather than computing, for its whole round. Not gRPC's limit on calls: it
        # counts the refused ones too. Streams are limited by the secrets given out, other calls by the door.
        self._server = grpc.server(
            ThreadPoolExecutor(MAX_STREAMS, "sglr-stream"),
            handlers=[_Door(self)],
            options=[
                *options(max_frame),
                ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
                ("grpc.max_connection_idle_ms", 1000 * IDLE_SECONDS),
                ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ],
        )
        self.tls = endpoint.tls
        self.address = endpoint.address(_bind(self._server, endpoint))
        if not self.tls and not is_loopback(endpoint.host):
            log.warning("the stream on %s is plaintext: whoever is on the network can read and change it", self.address)
        self._server.start()

    @property
    def reach_secret(self) -> str:
        """What a node shows to test whether it can reach this port."""
        return self._reach_secret

    @contextmanager
    def open(
        self,
        checks: Mapping[int, FrameCheck],
        *,
        timeout: float,
        start_timeout: float,
        on_drop: OnDrop,
        failures: Failures,
        sharing_memory: Collection[int] = (),
    ) -> Iterator[StreamLink]:
        """A link for one round; its streams end with the block, however that ends.

        Parameters
        ----------
        checks : Mapping[int, FrameCheck]
            Node that will open a stream -> what its frames have to be.
        timeout, start_timeout : float
            Seconds for a node's next frame from the beginning of `StreamLink.receive`, and for its first one from now.
        on_drop : Callable[[int, str], None]
            Told a node that leaves the round, and why; from within ``receive``, once for each such node.
        failures : Callable[[], Mapping[int, str]]
            Nodes that are known to have failed -> why; asked while waiting.
        sharing_memory : Collection[int]
            Nodes of this machine whose tensors lie in shared memory (`sglr_flower.exchange.shared`).
        """
        link = StreamLink(
            checks,
            timeout=timeout,
            start_timeout=start_timeout,
            on_drop=on_drop,
            failures=failures,
            sharing_memory=sharing_memory,
        )
        self._links.append(link)
        try:
            yield link
        finally:
            self._links.remove(link)
            link.close()

    def stop(self) -> None:
        """Close the port; nodes in a stream are told at once."""
        self._server.stop(grace=0)
        if self.memory is not None:
            self.memory.close()

    def reaches(self, secret: bytes) -> bool:
        """Whether it is the secret for testing the connection."""
        return hmac.compare_digest(self._reach_secret.encode(), secret)

    def claim(self, secret: bytes) -> tuple[StreamLink, int] | None:
        """The link and the node of a secret, which is used up by that."""
        found = None
        for link in list(self._links):
            node = link.claim(secret)
            if node is not None:
                found = link, node
        return found


class _Door(grpc.GenericRpcHandler):
    """Who may come in: looks at a call's headers only, in gRPC's serving thread, so it must not wait for anything."""

    def __init__(self, server: StreamServer) -> None:
        self._server = server
        self._aside = ThreadPoolExecutor(2, "sglr-aside")
        self._free = threading.BoundedSemaphore(MAX_CALLS)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = str(handler_call_details.method).removeprefix("/sglr_flower.exchange.Exchange/")
        secret = _secret(handler_call_details.invocation_metadata)
        if method == "Steps" and (claimed := self._server.claim(secret)) is not None:
            link, node = claimed
            return grpc.stream_stream_rpc_method_handler(
                functools.partial(_serve, link, node), response_serializer=pb.Download.SerializeToString
            )
        if not self._free.acquire(blocking=False):
            return None  # refused by gRPC itself, without a thread
        reached = method == "Reach" and self._server.reaches(secret)
        return self._by_the_way(_answer_ping if reached else _refuse)

    def _by_the_way(self, answer: Callable[[grpc.ServicerContext], Iterator[pb.Ping]]) -> Any:
        """A call for the few threads that are not for streams; it never takes a frame."""

        def behaviour(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[pb.Ping]:
            self._free.release()
            return answer(context)

        behaviour.experimental_thread_pool = self._aside  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=pb.Ping.SerializeToString)


def _serve(
    link: StreamLink, node: int, frames: Iterator[bytes], context: grpc.ServicerContext
) -> Iterator[pb.Download]:
    return link.serve(node, frames, context)


def _answer_ping(context: grpc.ServicerContext) -> Iterator[pb.Ping]:
    yield pb.Ping()


def _refuse(context: grpc.ServicerContext) -> Iterator[pb.Ping]:
    log.debug("a call from %s was refused: wrong, used or outdated secret", context.peer())
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong, used or outdated secret")
    yield pb.Ping()  # never: abort raises


def _bind(server: grpc.Server, endpoint: Endpoint) -> int:
    """Bind the port; its number."""
    where = join_address(endpoint.host, endpoint.port)
    try:
        if endpoint.certificate is None or endpoint.key is None:
            return server.add_insecure_port(where)
        pair = (endpoint.key, endpoint.certificate)
        return server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        tls = ", or its certificate or key is no PEM" if endpoint.tls else ""
        raise UserError(
            f"the stream's port {where} cannot be bound: it is in use or not this machine's{tls}"
        ) from error


def _secret(metadata: Any) -> bytes:
    """The secret in a call's headers; empty if it is missing or there are two."""
    found = [value for key, value in metadata or () if key == SECRET_KEY]
    if len(found) != 1:
        return b""
    return found[0] if isinstance(found[0], bytes) else str(found[0]).encode()
