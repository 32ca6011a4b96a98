"""Tensors in memory that both ends of a stream have, where a simulated node and the server are on the same machine.

Each side has an `Outbox`, a piece of anonymous memory that the kernel takes back with the last process that uses it. It
lays a frame's tensors there and sends only where they lie; the other side reads them through its `Inbox`. The two take
turns, so a tensor that was read is good until the next frame is sent. Only for processes that trust each other: what
lies there can change after it was checked.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import secrets
from collections.abc import Mapping

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from sglr_flower.exchange import exchange_pb2 as pb

_LETTERS = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
}
"""Torch's name of a dtype -> safetensors', in the order in which it stores them."""
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _LETTERS}
_ALIGNMENT = 64  # bytes; a vector register's


def stored_bytes(shared: pb.Shared) -> int:
    """The size that safetensors would give the tensors that lie there, so that bytes count the same on every way."""
    if not shared.tensors:
        return 0
    header: dict[str, object] = {}
    end = 0
    # Safetensors stores by kind, the wider ones first, and then by name.
    order = list(_LETTERS)
    for place in sorted(shared.tensors, key=lambda place: (order.index(place.dtype), place.name)):
        begin, end = end, end + math.prod(place.shape) * _DTYPES[place.dtype].itemsize
        letters = _LETTERS[place.dtype]
        header[place.name] = {"dtype": letters, "shape": list(place.shape), "data_offsets": [begin, end]}
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + math.ceil(text / 8) * 8 + end


class Outbox:
    """What this process lays down for another one; grows as needed."""

    def __init__(self) -> None:
        self._file = os.memfd_create("sglr")
        self._size = 0
        self._memory: mmap.mmap | None = None

    def put(self, tensors: Mapping[str, Tensor]) -> pb.Shared:
        """Lay tensors down, in place of those before; where they lie.

        Parameters
        ----------
        tensors : Mapping[str, Tensor]
            Name -> contiguous tensor of a dtype that frames have, on any device.
        """
        places, end = [], 0
        for name, tensor in tensors.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            places.append(pb.Placed(name=name, dtype=dtype, shape=tensor.shape, offset=end))
            end += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
        self._grow(end)
        for place, tensor in zip(places, tensors.values(), strict=True):
            assert self._memory is not None
            _placed(self._memory, place).copy_(tensor)
        return pb.Shared(pid=os.getpid(), file=self._file, size=self._size, tensors=places)

    def close(self) -> None:
        """Give the memory back, once the other side has too."""
        os.close(self._file)
        self._memory = None

    def _grow(self, size: int) -> None:
        if size > self._size:
            self._size = math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self._file, self._size)
            self._memory = mmap.mmap(self._file, self._size)


class Inbox:
    """The other side's `Outbox`."""

    def __init__(self) -> None:
        self._of: tuple[int, int, int] | None = None
        self._memory: mmap.mmap | None = None

    def get(self, shared: pb.Shared) -> dict[str, Tensor]:
        """The tensors that lie there, not copied.

        Raises
        ------
        ValueError, OSError
            If the memory cannot be had, or has no such tensors.
        """
        of = (shared.pid, shared.file, shared.size)
        if of != self._of:
            with open(f"/proc/{shared.pid}/fd/{shared.file}", "r+b", buffering=0) as file:
                self._memory = mmap.mmap(file.fileno(), shared.size)
            self._of = of
        assert self._memory is not None
        return {place.name: _placed(self._memory, place) for place in shared.tensors}


def _placed(memory: mmap.mmap, place: pb.Placed) -> Tensor:
    if place.dtype not in _DTYPES:
        raise ValueError(f"a tensor of {place.dtype[:20]!r}")
    dtype, shape = _DTYPES[place.dtype], tuple(place.shape)
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=place.offset).view(shape)


class Proof:
    """Whether another process can read this one's memory: it has to say what lies there."""

    def __init__(self) -> None:
        self._outbox = Outbox()
        token = [int(number) for number in secrets.token_bytes(32)]
        self.shown: bytes = self._outbox.put({"token": torch.tensor(token)}).SerializeToString()
        self._expected = bytes(token).hex()

    def accepts(self, said: object) -> bool:
        """Whether that is what `read_proof` gave of `shown`."""
        return said == self._expected

    def close(self) -> None:
        """Give the memory back."""
        self._outbox.close()


def read_proof(shown: bytes) -> str:
    """What lies in another process's memory (`Proof.shown`); empty if this process cannot read it."""
    try:
        (token,) = Inbox().get(pb.Shared.FromString(shown)).values()
    except (OSError, ValueError, DecodeError):
        return ""
    return bytes(token.tolist()).hex()


def available() -> bool:
    """Whether this system has such memory: Linux does."""
    return hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd")
