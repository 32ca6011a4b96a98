"""Malformed inputs made of real ones: frames, answers, and the bytes of a handshake."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from random import Random

import safetensors.torch
import torch
from torch import Tensor

from sglr_flower.exchange import exchange_pb2 as pb

Frame = pb.Upload | pb.Download

NUMBERS = [0, 1, 2, 3, 4, 5, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
DIMENSIONS = [0, 1, 2, 7, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -1, -(2**63), 1.5, "2", None, [], True]
DTYPES = ["F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "U64", "F32", "X", "", 7]
VALUES = [float("nan"), float("inf"), -float("inf")]


def flip(draw: Random, content: bytes, low: int = 0, high: int | None = None) -> bytes:
    """A few bits turned over."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(low, high or len(changed))
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw: Random, content: bytes) -> bytes:
    """The beginning only, or the end."""
    place = draw.randrange(1, len(content))
    return content[:place] if draw.random() < 0.7 else content[place:]


def rearrange(draw: Random, content: bytes) -> bytes:
    """A block taken out, doubled, or painted over."""
    begin = draw.randrange(len(content))
    end = min(len(content), begin + draw.randint(1, 64))
    block = content[begin:end]
    inside = draw.choice([b"", block * 2, bytes(len(block)), b"\xff" * len(block), draw.randbytes(len(block))])
    return content[:begin] + inside + content[end:]


def extend(draw: Random, content: bytes) -> bytes:
    """More than there should be, up to a thousand times as much."""
    more = draw.choice([1, 8, 100, 4096, len(content), 256 * len(content), 1000 * len(content)])
    tail = draw.choice([bytes, lambda n: b"\xff" * n, draw.randbytes])(more)
    return content + tail if draw.random() < 0.8 else tail + content


def noise(draw: Random, content: bytes) -> bytes:
    """Random bytes."""
    return draw.randbytes(draw.choice([0, 1, 2, 9, 64, 500, 5000]))


def header_bits(draw: Random, content: bytes) -> bytes:
    """Bits turned over where numbers, names and shapes are, not in the tensors' values."""
    found = content.find(b"}}")
    return flip(draw, content, 0, found + 2 if found > 0 else None)


BYTES: dict[str, Callable[[Random, bytes], bytes]] = {
    "bits": flip,
    "bits of the header": header_bits,
    "cut off": cut,
    "blocks": rearrange,
    "oversize": extend,
    "random bytes": noise,
}


def splice(draw: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of a frame and the end of another."""
    other = draw.choice(others)
    return content[: draw.randrange(1, len(content))] + other[draw.randrange(len(other)) :]


def swap_fields(draw: Random, content: bytes, others: Sequence[bytes], kind: type[Frame]) -> bytes:
    """Fields of other frames, or numbers from anywhere, in place of a frame's own."""
    frame, other = kind.FromString(content), kind.FromString(draw.choice(others))
    for field in draw.sample(list(kind.DESCRIPTOR.fields), draw.randint(1, 3)):
        value = getattr(other, field.name)
        if field.type == field.TYPE_BYTES or draw.random() < 0.3:
            pass  # the other's
        elif field.type == field.TYPE_STRING:
            value = draw.choice(["", "test", "validation", "TRAIN", "train\0", "x" * 10_000])
        elif field.type == field.TYPE_BOOL:
            value = not getattr(frame, field.name)
        elif field.type == field.TYPE_MESSAGE:
            own, bad = os.getpid(), draw.choice(NUMBERS)
            value = pb.Shared(pid=draw.choice([0, 1, own]), file=draw.randrange(20), size=bad)
            value.tensors.add(name="smashed", dtype="float32", shape=[bad], offset=draw.choice(NUMBERS))
        elif field.is_repeated:
            count = draw.choice([0, 1, 2, 3, 4, 1000])
            value = [draw.choice(NUMBERS) for _ in range(count)]
        else:
            value = draw.choice(NUMBERS)
        frame.ClearField(field.name)
        if field.is_repeated:
            getattr(frame, field.name).extend(value)
        elif field.type == field.TYPE_MESSAGE:
            getattr(frame, field.name).CopyFrom(value)
        else:
            setattr(frame, field.name, value)
    return bytes(frame.SerializeToString())


def other_tensors(draw: Random, content: bytes, kind: type[Frame]) -> bytes:
    """Well-formed tensors that are not the right ones: shapes, dtypes, names, values."""
    frame = kind.FromString(content)
    tensors = safetensors.torch.load(frame.tensors)
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    tensors.update(draw.choice(_TENSORS)(draw, name, tensor))
    frame.tensors = safetensors.torch.save({key: each.contiguous() for key, each in tensors.items()})
    return bytes(frame.SerializeToString())


def _poisoned(draw: Random, name: str, tensor: Tensor) -> dict[str, Tensor]:
    tensor = tensor.clone()
    place = draw.randrange(tensor.numel())
    if tensor.is_floating_point():
        tensor.view(-1)[place] = draw.choice(VALUES)
    else:
        info = torch.iinfo(tensor.dtype)
        wild = [value for value in (-1, 5, 6, 2**31, 2**62, -(2**63)) if info.min <= value <= info.max]
        tensor.view(-1)[place] = draw.choice([*wild, info.min, info.max])
    return {name: tensor}


_NAMES = [
    *("", "Smashed", "weights", "own.", "x" * 900, "\0"),
    *("smashed.scale", "labels.scale", "own.positions", "average.shape"),  # some codec's
]

_TENSORS: list[Callable[[Random, str, Tensor], dict[str, Tensor]]] = [
    _poisoned,
    _poisoned,
    lambda draw, name, t: {name: t.to(draw.choice([torch.float64, torch.float16, torch.int32, torch.bool]))},
    lambda draw, name, t: {name: t.flatten()[: draw.randrange(t.numel())]},
    lambda draw, name, t: {name: t.unsqueeze(draw.randint(0, t.ndim))},
    lambda draw, name, t: {name: t[:0]},
    lambda draw, name, t: {name: t.flatten()[0]},
    lambda draw, name, t: {name: t.repeat(draw.randint(2, 40), *[1] * (t.ndim - 1))},
    lambda draw, name, t: {draw.choice(_NAMES): t},
    lambda draw, name, t: {name: t, "more": t.clone()},
    lambda draw, name, t: {},
    lambda draw, name, t: {f"{name}{k}": torch.zeros(1) for k in range(draw.choice([2, 20, 200]))},
]


def lying_header(draw: Random, content: bytes, kind: type[Frame]) -> bytes:
    """A safetensors header that says what is not so, in front of the real tensors."""
    frame = kind.FromString(content)
    length = int.from_bytes(frame.tensors[:8], "little")
    header, data = json.loads(frame.tensors[8 : 8 + length]), frame.tensors[8 + length :]
    entry = header[draw.choice(sorted(header))]
    lie = draw.randrange(8)
    if lie == 0:
        entry["shape"] = [draw.choice(DIMENSIONS) for _ in range(draw.choice([0, 1, 2, 4, 60]))]
    elif lie == 1:
        entry["dtype"] = draw.choice(DTYPES)
    elif lie == 2:
        entry["data_offsets"] = [
            draw.choice([*DIMENSIONS, len(data), len(data) + 1]) for _ in range(draw.choice([0, 1, 2, 3]))
        ]
    elif lie == 3:
        entry.pop(draw.choice(sorted(entry)))
    elif lie == 4:
        header[draw.choice(["__metadata__", "more", ""])] = draw.choice(
            [
                {"x": "y" * draw.choice([1, 900])},
                {"x": {"y": 1}},
                3,
                None,
                {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
            ]
        )
    elif lie == 5:
        entry["shape"] = [2**32, 2**32, *entry["shape"]]
    written = json.dumps(header).encode()
    if lie == 6:
        written = b"[" * draw.choice([10, 1000, 100_000])
    said = len(written)
    if lie == 7:
        said = draw.choice([0, 1, len(written) - 1, len(written) + 1, 2**31, 2**63, 2**64 - 1, draw.getrandbits(64)])
    frame.tensors = struct.pack("<Q", said) + written + data
    return bytes(frame.SerializeToString())
