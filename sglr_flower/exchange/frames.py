"""Frames: uploads and downloads as protobuf messages whose tensors are safetensors bytes; nothing is unpickled.

Between a simulated node and the server of its machine the tensors lie in shared memory instead.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from sglr_flower.data.samples import Tensors
from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import shared
from sglr_flower.exchange.shared import Inbox, Outbox
from sglr_flower.split.messages import Download, Upload

MAX_HEADER = 8192
"""Bytes of the safetensors header of a frame's tensors: two, with codecs of one's own up to twelve, and
tensors of labels by name."""
MAX_LABELS = 32
"""Tensors of labels by name in one frame."""

MAX_CLIENTS = 100_000
"""Clients of one frame: a byte on the wire becomes ten in memory."""

_ASIDE = re.compile(r"[A-Za-z_]\w{0,19}", re.ASCII)
"""What tensors in `codecs.Coded.aside` may be called; `checks` knows those that the codec declares."""
_NAMED = "labels."
"""Begins the names of labels that are several tensors by name."""
_CHANNELS_LAST = ":channels_last"
"""Ends the name of a tensor that is stored as (n, height, width, channels)."""


class FrameError(ValueError):
    """A frame that is not what its sender should have sent."""


def parse_upload(content: bytes) -> pb.Upload:
    """The message in a frame's bytes; its tensors are still packed.

    Raises
    ------
    FrameError
        If it is no upload.
    """
    try:
        return pb.Upload.FromString(content)
    except DecodeError:
        raise FrameError("the frame is no upload") from None


def parse_download(content: bytes) -> pb.Download:
    """The message in an answer's bytes; its tensors are still packed.

    Raises
    ------
    FrameError
        If it is no download.
    """
    try:
        return pb.Download.FromString(content)
    except DecodeError:
        raise FrameError("the frame is no download") from None


def encode_upload(upload: Upload, outbox: Outbox | None = None) -> pb.Upload:
    """Pack a node's upload; with ``outbox`` its tensors are laid there."""
    return pb.Upload(
        server_round=upload.server_round,
        step=upload.step,
        split=upload.split,
        clients=upload.clients,
        sizes=upload.sizes,
        last=upload.last,
        **_packed({"smashed": upload.smashed, **_labels(upload.labels), **upload.aside}, outbox),
    )


def decode_upload(frame: pb.Upload, inbox: Inbox | None = None) -> Upload:
    """Unpack a node's upload; `sglr_flower.exchange.checks` says whether it is the right one.

    Tensors in shared memory are taken only with an ``inbox``, and are good until the node has its answer.

    Raises
    ------
    FrameError
        If its tensors cannot be read, or do not fit the sizes it states.
    """
    if not 0 < len(frame.clients) == len(frame.sizes) <= MAX_CLIENTS:
        raise FrameError(f"{len(frame.clients)} client(s) and {len(frame.sizes)} size(s)")
    clients, sizes = tuple(frame.clients), tuple(frame.sizes)
    if not all(sizes) or not _ascending(clients):
        raise FrameError(f"clients {few(clients)} with sizes {few(sizes)}")
    tensors = _unpacked(frame, ("smashed", "labels"), inbox)
    named = {name.removeprefix(_NAMED): tensors.pop(name) for name in list(tensors) if name.startswith(_NAMED)}
    alone = tensors.pop("labels", None)
    if "smashed" not in tensors or (alone is None) != bool(named) or len(named) > MAX_LABELS:
        found = [*tensors, *["labels"] * (alone is not None), *(f"{_NAMED}{_short(name)}" for name in list(named)[:3])]
        raise FrameError(f"an upload has the tensors smashed and labels, not {' and '.join(found) or 'none'}")
    smashed = tensors.pop("smashed")
    for own in named.values() if alone is None else [alone]:
        if not smashed.ndim or not own.ndim or not len(smashed) == len(own) == sum(sizes):
            raise FrameError(
                f"smashed data {few(smashed.shape)} and labels {few(own.shape)} do not fit sizes {few(sizes)}"
            )
    labels: Tensors = named if alone is None else alone
    return Upload(frame.server_round, frame.step, frame.split, clients, sizes, smashed, labels, frame.last, tensors)


def encode_download(download: Download, outbox: Outbox | None = None) -> pb.Download:
    """Pack the server's answer; the average once, however many clients it is for. ``outbox`` as in `encode_upload`."""
    tensors = {"average": download.average, "own": download.own}
    return pb.Download(
        server_round=download.server_round,
        step=download.step,
        active=download.active,
        **_packed({name: each for name, each in tensors.items() if each is not None} | {**download.aside}, outbox),
    )


def decode_download(frame: pb.Download, inbox: Inbox | None = None) -> Download:
    """Unpack the server's answer; `sglr_flower.exchange.checks.check_answer` says whether it is the right one.

    ``inbox`` as in `decode_upload`.

    Raises
    ------
    FrameError
        If its tensors cannot be read, or its active clients are not ascending.
    """
    active = tuple(frame.active[:MAX_CLIENTS])
    if len(frame.active) > MAX_CLIENTS or not _ascending(active):
        raise FrameError(f"active clients {few(active)} are not ascending")
    tensors = _unpacked(frame, ("average", "own"), inbox)
    average, own = tensors.pop("average", None), tensors.pop("own", None)
    return Download(frame.server_round, frame.step, active, average, own, tensors)


def nbytes(frame: pb.Upload | pb.Download) -> int:
    """Bytes of a frame as a stream carries it, also where its tensors lie in shared memory."""
    if not frame.HasField("shared"):
        return int(frame.ByteSize())
    size = shared.stored_bytes(frame.shared)
    alone = copy.deepcopy(frame)
    alone.ClearField("shared")
    return int(alone.ByteSize()) + 1 + math.ceil(size.bit_length() / 7) + size  # a tag and a length before the bytes


def _labels(labels: Tensors) -> dict[str, Tensor]:
    if isinstance(labels, Tensor):
        return {"labels": labels}
    return {f"{_NAMED}{name}": own for name, own in labels.items()}


def _packed(tensors: Mapping[str, Tensor], outbox: Outbox | None) -> dict[str, Any]:
    """The part of a frame that has its tensors."""
    stored = {}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            # As it lies in memory, and so it comes out again: another order would be a copy here and one there.
            stored[name + _CHANNELS_LAST] = tensor.permute(0, 2, 3, 1)
        else:
            stored[name] = tensor.contiguous()
    if outbox is not None and stored:
        return {"shared": outbox.put(stored)}
    return {"tensors": safetensors.torch.save({name: tensor.cpu() for name, tensor in stored.items()})}


def _unpacked(frame: pb.Upload | pb.Download, names: Sequence[str], inbox: Inbox | None) -> dict[str, Tensor]:
    tensors = {}
    for key, tensor in _stored(frame, inbox).items():
        name = key.removesuffix(_CHANNELS_LAST)
        of, dot, part = name.partition(".")
        known = of in names and (not dot or (name == key if of == "labels" else _ASIDE.fullmatch(part)))
        if not known or name in tensors or (name != key and tensor.ndim != 4):
            raise FrameError(f"it has tensors {' and '.join(names)}, not {_short(key)}")
        tensors[name] = tensor if name == key else tensor.permute(0, 3, 1, 2)
    return tensors


def _stored(frame: pb.Upload | pb.Download, inbox: Inbox | None) -> dict[str, Tensor]:
    if frame.HasField("shared"):
        if inbox is None:
            raise FrameError("its tensors are in shared memory, which is for simulated nodes")
        try:
            return inbox.get(frame.shared)
        except (OSError, ValueError) as error:
            raise FrameError(f"tensors that cannot be read: {_short(str(error))}") from None
    content = frame.tensors
    # The header is JSON that is parsed before anything is known of it: no more of it than names and shapes can need.
    header = int.from_bytes(content[:8], "little")
    if header > MAX_HEADER:
        raise FrameError(f"a header of {header} bytes; it has {MAX_HEADER} at most")
    try:
        stored: dict[str, Tensor] = safetensors.torch.load(content)
    except Exception as error:  # whatever the header makes safetensors or torch stumble over
        raise FrameError(f"tensors that cannot be read: {_short(str(error))}") from None
    return stored


def _ascending(clients: Sequence[int]) -> bool:
    return all(before < after for before, after in itertools.pairwise(clients))


def few(numbers: Sequence[int]) -> str:
    """Numbers as a tuple in a sentence that somebody reads, however many there are."""
    first = str(tuple(numbers[:20]))
    return first if len(numbers) <= 20 else f"{first[:-1]}, ... {len(numbers)} in all)"


def _short(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 120 else f"{printable[:120]}..."
