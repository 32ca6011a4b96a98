"""Frames: uploads and downloads as protobuf messages whose tensors are safetensors bytes; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.split.messages import Download, Upload


class FrameError(ValueError):
    """A frame that is not what its sender should have sent."""


def encode_upload(upload: Upload) -> pb.Upload:
    """Pack a node's upload."""
    return pb.Upload(
        server_round=upload.server_round,
        step=upload.step,
        split=upload.split,
        clients=upload.clients,
        sizes=upload.sizes,
        last=upload.last,
        tensors=_pack({"smashed": upload.smashed, "labels": upload.labels}),
    )


def decode_upload(frame: pb.Upload) -> Upload:
    """Unpack a node's upload.

    Raises
    ------
    FrameError
        If its tensors cannot be read, or do not fit the sizes it states.
    """
    tensors = _unpack(frame.tensors)
    if set(tensors) != {"smashed", "labels"}:
        raise FrameError(f"an upload has the tensors smashed and labels, not {', '.join(tensors) or 'none'}")
    clients, sizes = tuple(frame.clients), tuple(frame.sizes)
    rows = (len(tensors["smashed"]), len(tensors["labels"]), sum(sizes))
    if len(clients) != len(sizes) or len(set(rows)) != 1 or not all(sizes) or clients != tuple(sorted(set(clients))):
        raise FrameError(f"an upload's clients {clients}, sizes {sizes} and {rows[0]} samples do not fit together")
    return Upload(frame.server_round, frame.step, frame.split, clients, sizes, last=frame.last, **tensors)


def encode_download(download: Download) -> pb.Download:
    """Pack the server's answer; the average once, however many clients it is for."""
    tensors = {"average": download.average, "own": download.own}
    return pb.Download(
        server_round=download.server_round,
        step=download.step,
        active=download.active,
        tensors=_pack({name: tensor for name, tensor in tensors.items() if tensor is not None}),
    )


def decode_download(frame: pb.Download) -> Download:
    """Unpack the server's answer.

    Raises
    ------
    FrameError
        If its tensors cannot be read.
    """
    tensors = _unpack(frame.tensors)
    if not set(tensors) <= {"average", "own"}:
        raise FrameError(f"a download has the tensors average and own, not {', '.join(tensors)}")
    return Download(frame.server_round, frame.step, tuple(frame.active), tensors.get("average"), tensors.get("own"))


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    content: bytes = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return content


def _unpack(content: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except SafetensorError as error:
        raise FrameError(f"a frame's tensors cannot be read: {error}") from None
    return tensors
