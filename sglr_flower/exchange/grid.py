"""The grid exchange: the same steps as plain Flower messages, for nodes that can reach no port of ours.

Every step is one message to each node and its reply. The node keeps nothing but ``context.state`` in between, so it
recomputes the forward of the step that it is answered for (`TrainSession.restore`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange.frames import decode_download, decode_upload, encode_download, encode_upload
from sglr_flower.split.messages import Download, Upload

FRAME = "frame"


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
    return decode_download(pb.Download.FromString(_bytes(content, "download")))


class GridLink:
    """The server's side of one round over Flower messages (a `sglr_flower.split.rounds.Link`).

    Parameters
    ----------
    opening : Mapping[int, Message]
        Node -> the message that opens the round there.
    deliver : Callable[[list[Message]], dict[int, Message]]
        Sends messages and waits for their replies, node -> reply; raises if a node fails or is silent.
    """

    def __init__(self, opening: Mapping[int, Message], deliver: Callable[[list[Message]], dict[int, Message]]) -> None:
        self.bytes_up = self.bytes_down = 0
        self.replies: dict[int, Message] = {}
        self._opening = opening
        self._pending = list(opening.values())
        self._deliver = deliver

    def receive(self) -> dict[int, Upload]:
        """Send what is pending; the uploads in the replies. A reply without one is the node's last."""
        if not self._pending:
            return {}
        replies = self._deliver(self._pending)
        self._pending = []
        uploads = {}
        for node, reply in replies.items():
            if FRAME in reply.content.config_records:
                frame = _bytes(reply.content, "upload")
                self.bytes_up += len(frame)
                uploads[node] = decode_upload(pb.Upload.FromString(frame))
            else:
                self.replies[node] = reply
        return uploads

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Answer the uploads last received, with the next `receive`."""
        for node, download in downloads.items():
            first = self._opening[node]
            frame = encode_download(download).SerializeToString()
            self.bytes_down += len(frame)
            # Without what only a round's first message brings: the segment that all clients start from.
            content = RecordDict({**first.content.config_records, FRAME: ConfigRecord({"download": frame})})
            self._pending.append(Message(content, node, first.metadata.message_type))


def _bytes(content: RecordDict, name: str) -> bytes:
    value = content.config_records[FRAME][name]
    assert isinstance(value, bytes)
    return value
