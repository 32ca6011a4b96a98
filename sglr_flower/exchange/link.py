"""The server's side of one round over streams: who is in it, what came, what is to be answered, who is dropped."""

from __future__ import annotations

import hmac
import queue
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import grpc

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange.checks import FrameCheck
from sglr_flower.exchange.frames import FrameError, decode_upload, encode_download, nbytes, parse_upload
from sglr_flower.exchange.shared import Inbox, Outbox
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.sent import Sent, total

REASON_SECONDS = 3.0
"""How long the server waits for a node's own words after its stream broke."""
POLL_SECONDS = 0.5
"""How often it asks for nodes that are known to have failed, while it waits."""
LOOK_SECONDS = 2.0
"""How often it asks although it does not wait: that is also how it learns that the run was stopped."""
BROKEN = "the connection ended"

OnDrop = Callable[[int, str], None]
"""Told a node and the reason for which it leaves the round; may raise to end the round."""
Failures = Callable[[], Mapping[int, str]]
"""The nodes that are known to have failed so far, with their own words."""


@dataclass
class Traffic:
    """What went between the server and one node in a round.

    Attributes
    ----------
    frames : int
        Frames of the node that the server used.
    sent : Sent
        Its frames, and the answers to it.
    waits : list[float]
        Seconds from the server's answer, or the round's opening, to the node's next frame.
    """

    frames: int = 0
    sent: Sent = field(default_factory=Sent)
    waits: list[float] = field(default_factory=list)

    def came(self, payload: Sent, size: int) -> None:
        """Count a frame of ``size`` bytes."""
        self.sent += payload + Sent(framing_up=size - payload.up)

    def went(self, payload: Sent, size: int) -> None:
        """Count an answer of ``size`` bytes."""
        self.sent += payload + Sent(framing_down=size - payload.down)


@dataclass(frozen=True)
class _Arrival:
    """A frame, unpacked but not checked yet."""

    upload: Upload
    size: int
    at: float


class _Stream:
    """One node's stream: its call, once there is one, and its next answers.

    An answer is a frame; a sentence ends the stream as an error of the node's, None ends it.

    Parameters
    ----------
    shares_memory : bool
        Whether tensors lie in memory shared with the node.
    """

    def __init__(self, *, shares_memory: bool) -> None:
        self.inbox = Inbox() if shares_memory else None
        self.outbox = Outbox() if shares_memory else None
        self.answers: queue.SimpleQueue[pb.Download | str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._context: grpc.ServicerContext | None = None
        self._over = False

    def begin(self, context: grpc.ServicerContext) -> bool:
        """Take the node's call; False if the stream was ended before it came."""
        with self._lock:
            self._context = context
            return not self._over

    def end(self, reason: str | None = None, *, reading: bool) -> None:
        """End the stream, from any thread.

        Parameters
        ----------
        reason : str | None
            A sentence for the node.
        reading : bool
            Whether its thread may be waiting for a frame: only breaking the call off wakes it then.
        """
        with self._lock:
            self._over = True
            context = self._context
        self.answers.put(reason)
        if reading and context is not None:
            context.cancel()


class StreamLink:
    """The server's side of one round over streams (a `sglr_flower.split.rounds.Link`); see `StreamServer.open`.

    Attributes
    ----------
    secrets : dict[int, str]
        Node -> 64 hexadecimal digits for its Flower message, good for one stream.
    traffic : dict[int, Traffic]
        Node -> what it has sent and received so far.
    """

    def __init__(
        self,
        checks: Mapping[int, FrameCheck],
        *,
        timeout: float,
        start_timeout: float,
        on_drop: OnDrop,
        failures: Failures,
        sharing_memory: Collection[int] = (),
    ) -> None:
        self.secrets = {node: secrets.token_hex(32) for node in checks}
        self.traffic = {node: Traffic() for node in checks}
        self._checks = checks
        self._timeout, self._start_timeout = timeout, start_timeout
        self._on_drop, self._failures = on_drop, failures
        self._streams = {node: _Stream(shares_memory=node in sharing_memory) for node in checks}
        self._events: queue.SimpleQueue[tuple[int, _Arrival | FrameError | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unclaimed = dict(self.secrets)
        self._open = set(checks)  # in the round and with frames to come
        self._last: set[int] = set()  # whose last frame is being answered
        self._answered = dict.fromkeys(checks, time.monotonic())
        self._polled = self._poll_at = time.monotonic()

    @property
    def sent(self) -> Sent:
        """The frames received and the answers sent."""
        return total(traffic.sent for traffic in self.traffic.values())

    # ---- in the round's thread

    def receive(self) -> dict[int, Upload]:
        """The next upload of every node still in the round that has one; empty when all are done or dropped.

        Nodes are dropped in here, each told to ``on_drop`` once: whose stream breaks, who is late, whose frame fails
        its check, who is known to have failed. What ``on_drop`` raises ends the waiting.
        """
        begun = time.monotonic()
        self._poll_at = max(begun, min(begun + POLL_SECONDS, self._polled + LOOK_SECONDS))
        uploads: dict[int, Upload] = {}
        broken: dict[int, float] = {}  # node -> until when its own words are waited for
        while awaited := self._open - uploads.keys():
            deadlines = {node: broken.get(node) or self._deadline(node, begun) for node in awaited}
            until = min(self._poll_at, *deadlines.values())
            self._take(until, uploads, broken)
            self._drop_failed(uploads)
            if not self._events.empty():
                continue  # what has come is used before anybody is said to be late
            now = time.monotonic()
            for node in sorted(self._open - uploads.keys()):
                if node in broken and now >= broken[node]:
                    self._drop(node, BROKEN)
                elif node not in broken and now >= self._deadline(node, begun):
                    self._drop(node, self._late(node))
        for node, upload in uploads.items():
            self.traffic[node].frames += 1
            if upload.last:
                self._last.add(node)
        return uploads

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Answer the uploads last received."""
        for node, download in downloads.items():
            if node not in self._open:
                continue
            stream = self._streams[node]
            frame = encode_download(download, stream.outbox)
            self.traffic[node].went(download.payload, nbytes(frame))
            self._answered[node] = time.monotonic()
            stream.answers.put(frame)
        self._open -= self._last

    def close(self) -> None:
        """End all streams of the round."""
        with self._lock:
            self._unclaimed.clear()
        self.secrets.clear()
        for node, stream in self._streams.items():
            # The answer to a node's last frame may still be on its way; its stream ends by itself.
            stream.end(reading=node not in self._last)
            if stream.outbox is not None:
                stream.outbox.close()

    def _deadline(self, node: int, begun: float) -> float:
        if not self.traffic[node].waits:
            return self._answered[node] + self._start_timeout
        return begun + self._timeout

    def _late(self, node: int) -> str:
        traffic = self.traffic[node]
        if not traffic.waits:
            return f"no first frame within {self._start_timeout:g} s"
        return f"no frame within {self._timeout:g} s"

    def _take(self, until: float, uploads: dict[int, Upload], broken: dict[int, float]) -> None:
        """Wait for one event, and act on it."""
        try:
            node, event = self._events.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return
        if node not in self._open:
            return  # it was dropped, or had its last answer
        if event is None:
            uploads.pop(node, None)
            broken.setdefault(node, time.monotonic() + REASON_SECONDS)
        elif isinstance(event, FrameError):
            self._drop(node, str(event), reading=False)
        else:
            traffic = self.traffic[node]
            traffic.came(event.upload.payload, event.size)
            traffic.waits.append(event.at - self._answered[node])
            try:
                self._checks[node](event.upload)
            except FrameError as error:
                self._drop(node, str(error), reading=False)
            else:
                uploads[node] = event.upload

    def _drop_failed(self, uploads: dict[int, Upload]) -> None:
        if time.monotonic() < self._poll_at:
            return
        failed = self._failures()
        self._polled = time.monotonic()
        self._poll_at = self._polled + POLL_SECONDS
        for node in sorted(self._open & failed.keys()):
            uploads.pop(node, None)
            self._drop(node, failed[node])

    def _drop(self, node: int, reason: str, *, reading: bool = True) -> None:
        self._open.discard(node)
        with self._lock:
            self._unclaimed.pop(node, None)
        self._streams[node].end(reason, reading=reading)
        self._on_drop(node, reason)

    # ---- in the threads of the gRPC server

    def claim(self, secret: bytes) -> int | None:
        """The node that a secret belongs to; each secret is good for one stream.

        All secrets are compared, each in constant time: the time taken does not tell whether, or whose, one is close.
        """
        found = None
        with self._lock:
            for node, expected in self._unclaimed.items():
                if hmac.compare_digest(expected.encode(), secret):
                    found = node
            if found is not None:
                del self._unclaimed[found]
        return found

    def serve(self, node: int, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[pb.Download]:
        """Run one node's stream: hand its uploads over, wait for their answers."""
        stream = self._streams[node]
        # Not by the end of this generator: gRPC leaves it suspended where a call breaks off.
        if not stream.begin(context):
            return
        if not context.add_callback(lambda: self._events.put((node, None))):
            self._events.put((node, None))  # it is over already
            return
        for content in frames:
            arrived = time.monotonic()
            try:
                frame = parse_upload(content)
                upload = decode_upload(frame, stream.inbox)
            except FrameError as error:
                self._events.put((node, error))
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            self._events.put((node, _Arrival(upload, nbytes(frame), arrived)))
            answer = stream.answers.get()
            if isinstance(answer, str):
                context.abort(grpc.StatusCode.ABORTED, answer)
            if answer is None:
                return
            yield answer
            if upload.last:
                return
