"""The grid exchange: the same steps as plain Flower messages, for nodes that can reach no port of ours.

Every step is one message to each node and its reply. The node keeps nothing but ``context.state`` in between, so it
recomputes the forward of the step that it is answered for (`TrainSession.restore`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict

from sglr_flower.exchange.checks import FrameCheck
from sglr_flower.exchange.frames import (
    FrameError,
    decode_download,
    decode_upload,
    encode_download,
    encode_upload,
    parse_download,
    parse_upload,
)
from sglr_flower.exchange.link import OnDrop, Traffic
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.sent import Sent, total

FRAME = "frame"

Deliver = Callable[[list[Message]], tuple[dict[int, Message], dict[int, str]]]
"""Sends messages and waits for their replies: node -> reply, and node -> why there is none."""


def put_upload(content: RecordDict, upload: Upload | None) -> None:
    """Add an upload to a reply's content; None, the end of the round, adds nothing."""
    if upload is not None:
        content[FRAME] = ConfigRecord({"upload": encode_upload(upload).SerializeToString()})


def get_download(content: RecordDict) -> Download | None:
    """The download in a message's content; None in the round's first message.

    Raises
    ------
    FrameError
        If it cannot be read.
    """
    if FRAME not in content.config_records:
        return None
    return decode_download(parse_download(_bytes(content, "download")))


class GridLink:
    """The server's side of one round over Flower messages (a `sglr_flower.split.rounds.Link`).

    Parameters
    ----------
    opening : Mapping[int, Message]
        Node -> the message that opens the round there.
    deliver : Callable[[list[Message]], tuple[dict[int, Message], dict[int, str]]]
        Sends messages and waits for their replies: node -> reply, and node -> why there is none.
    checks : Mapping[int, FrameCheck]
        Node -> what its frames have to be.
    on_drop : Callable[[int, str], None]
        Told a node that leaves the round, and why; from within `receive`, once for each such node.

    Attributes
    ----------
    replies : dict[int, Message]
        The last reply of every node that has finished the round.
    traffic : dict[int, Traffic]
        Node -> what it has sent and received so far. A wait ends when the slowest node has replied.
    """

    def __init__(
        self, opening: Mapping[int, Message], deliver: Deliver, checks: Mapping[int, FrameCheck], on_drop: OnDrop
    ) -> None:
        self.replies: dict[int, Message] = {}
        self.traffic = {node: Traffic() for node in opening}
        self._opening = opening
        self._pending = list(opening.values())
        self._deliver, self._checks, self._on_drop = deliver, checks, on_drop
        self._last: set[int] = set()  # whose last frame has come

    @property
    def sent(self) -> Sent:
        """The frames received and the answers sent."""
        return total(traffic.sent for traffic in self.traffic.values())

    def receive(self) -> dict[int, Upload]:
        """Send what is pending; the uploads in the replies. The reply to a node's last frame has none.

        A node without a reply, or whose frame is not what it should be, is dropped. What ``on_drop`` raises ends it.
        """
        if not self._pending:
            return {}
        sent = time.monotonic()
        messages, self._pending = self._pending, []
        replies, failed = self._deliver(messages)
        wait = time.monotonic() - sent
        uploads = {}
        for node in sorted(replies):
            self.traffic[node].waits.append(wait)
            try:
                upload = self._upload(node, replies[node])
            except FrameError as error:
                failed = {**failed, node: str(error)}
                continue
            if upload is None:
                self.replies[node] = replies[node]
            else:
                uploads[node] = upload
        for node in sorted(failed):
            self._on_drop(node, failed[node])
        return uploads

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Answer the uploads last received, with the next `receive`."""
        for node, download in downloads.items():
            first = self._opening[node]
            frame = encode_download(download).SerializeToString()
            self.traffic[node].went(download.payload, len(frame))
            # Without what only a round's first message brings: the segment that all clients start from.
            content = RecordDict({**first.content.config_records, FRAME: ConfigRecord({"download": frame})})
            self._pending.append(Message(content, node, first.metadata.message_type))

    def _upload(self, node: int, reply: Message) -> Upload | None:
        """The checked upload in a reply; None if the node is done."""
        if FRAME not in reply.content.config_records:
            if node not in self._last:
                raise FrameError("the reply to a step has no frame, before the node's last one")
            return None
        frame = _bytes(reply.content, "upload")
        traffic = self.traffic[node]
        upload = decode_upload(parse_upload(frame))
        traffic.came(upload.payload, len(frame))
        self._checks[node](upload)
        traffic.frames += 1
        if upload.last:
            self._last.add(node)
        return upload


def _bytes(content: RecordDict, name: str) -> bytes:
    value = content.config_records[FRAME].get(name)
    if not isinstance(value, bytes):
        raise FrameError(f"the record {FRAME} has no bytes named {name}")
    return value
