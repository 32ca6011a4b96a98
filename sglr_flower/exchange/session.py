"""The node's side of a stream: try the server's port, and drive a session over one stream to its end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import exchange_pb2_grpc as rpc
from sglr_flower.exchange.checks import check_answer
from sglr_flower.exchange.frames import FrameError, decode_download, encode_upload
from sglr_flower.exchange.shared import Inbox, Outbox
from sglr_flower.exchange.wire import MAX_FRAME, SECRET_KEY, ExchangeError, options
from sglr_flower.split.messages import Upload
from sglr_flower.split.rounds import Session

REACH_TIMEOUT = 5.0
"""Seconds in which a node must reach the server's port, or it takes the grid exchange."""


def can_reach(address: str, secret: str, root_certificates: bytes | None = None) -> str:
    """Try the server's port from a node; empty if it answers, else why not.

    Parameters
    ----------
    address, secret : str
        The port, and `StreamServer.reach_secret`.
    root_certificates : bytes | None
        PEM of the CA that the server's certificate must be of; None: plaintext.
    """
    with _channel(address, root_certificates, MAX_FRAME) as channel:
        try:
            rpc.ExchangeStub(channel).Reach(pb.Ping(), timeout=REACH_TIMEOUT, metadata=((SECRET_KEY, secret),))
        except grpc.RpcError as error:
            return f"{address} does not answer ({_said(error)})"
    return ""


def run_session(
    session: Session,
    address: str,
    secret: str,
    timeout: float,
    root_certificates: bytes | None = None,
    max_frame: int = MAX_FRAME,
    *,
    shares_memory: bool = False,
) -> None:
    """Drive a node's session over a stream to its end.

    Parameters
    ----------
    session : Session
        The node's side of the round.
    address, secret : str
        From the round's Flower message.
    timeout : float
        Seconds to wait for the server's answer to an upload.
    root_certificates : bytes | None
        PEM of the CA that the server's certificate must be of; None: plaintext.
    max_frame : int
        The largest answer taken from the wire, bytes.
    shares_memory : bool
        Whether tensors lie in memory shared with the server (`sglr_flower.exchange.shared`).

    Raises
    ------
    ExchangeError
        If the server closes the stream early, breaks off, or does not answer in time. Never hangs.
    FrameError
        If an answer is not one to the upload.
    """
    outgoing: queue.SimpleQueue[pb.Upload | None] = queue.SimpleQueue()
    inbox, outbox = (Inbox(), Outbox()) if shares_memory else (None, None)
    with _channel(address, root_certificates, max_frame) as channel:
        call = rpc.ExchangeStub(channel).Steps(iter(outgoing.get, None), metadata=((SECRET_KEY, secret),))
        try:
            with _Watchdog(call, timeout) as watchdog:
                upload: Upload | None = session.start()
                while upload is not None:
                    outgoing.put(encode_upload(upload, outbox))
                    upload = upload.without_data()  # a thousand clients' smashed data are a quarter of a gigabyte
                    with watchdog.waiting():
                        answer = next(call, None)
                    if answer is None:
                        raise ExchangeError("the server ended the round early")
                    upload = session.advance(_checked(upload, answer, inbox))
        except grpc.RpcError as error:
            if not watchdog.expired and error.code() == grpc.StatusCode.CANCELLED:
                raise ExchangeError("the server ended the round early") from None
            reason = f"no answer within {timeout:g} s" if watchdog.expired else _said(error)
            raise ExchangeError(f"the stream to {address} broke ({reason})") from None
        finally:
            outgoing.put(None)
            call.cancel()
            if outbox is not None:
                outbox.close()


def _checked(upload: Upload, answer: pb.Download, inbox: Inbox | None) -> Any:
    try:
        download = decode_download(answer, inbox)
        check_answer(upload, download)
    except FrameError as error:
        raise FrameError(f"the server's answer to step {upload.step} of round {upload.server_round}: {error}") from None
    return download


def _channel(address: str, root_certificates: bytes | None, max_frame: int) -> grpc.Channel:
    # Without a pool of connections: two nodes in one process must not share one, as its end would be both's.
    settings = [*options(max_frame), ("grpc.use_local_subchannel_pool", 1)]
    if root_certificates is None:
        return grpc.insecure_channel(address, options=settings)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates), options=settings)


def _said(error: grpc.RpcError) -> str:
    """What gRPC says of an error, in one line."""
    details = " ".join((error.details() or "").split())
    return f"{error.code().name}: {details}" if details else str(error.code().name)


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
