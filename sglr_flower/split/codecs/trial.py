"""A codec of one's own tried before a run begins: whether it keeps to the interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglr_flower.split.codecs.codec import Codec, Coded, StandardCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8")
"""Of tensors in a frame."""
_MOST_PARTS = 4
_LONGEST_NAME = 20
"""Of a codec: tensors beside the values and letters of their names, so that a frame's header is small."""


def refusal(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Why a codec cannot carry samples of a shape; empty if it can. Tries it, with random numbers."""
    import torch

    if isinstance(codec, StandardCodec):
        return ""
    try:
        for each in (codec, codec.scoring()):
            if wrong := _unfit(each, shape, dtype):
                return wrong
            tensor = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
            draws = [(torch.Generator().manual_seed(seed), size) for seed, size in ((1, 1), (2, 2)) if each.random]
            again = [(torch.Generator().manual_seed(1), 1)] if each.random else []
            coded, alone = each.encode(tensor, draws), each.encode(tensor[:1], again)
            form = {name: ((3, *own), kind) for name, (own, kind) in each.parts(shape, dtype).items()}
            found = {name: (tuple(part.shape), part.dtype) for name, part in _parts_of(coded).items()}
            if found != form:
                return f"it makes {found} of three samples, and declares {form}"
            if wrong := each.wrong(coded, shape):
                return f"it refuses what it makes itself: {wrong}"
            back = each.decode(coded, shape, dtype)
            if tuple(back.shape) != (3, *shape) or back.dtype != dtype or not bool(back.isfinite().all()):
                return f"it decodes three samples {(3, *shape)} to {tuple(back.shape)} {back.dtype}, or not to numbers"
            if not torch.equal(each.decode(alone, shape, dtype), back[:1]):
                return "what it makes of a sample depends on the samples beside it"
            if each.sparse and each.sent(coded, shape).shape != back.shape:
                return "what it says to have sent is not of the samples' shape"
    except Exception as error:  # whatever the user's own class does
        reason = str(error).strip().partition("\n")[0]
        return f"it fails with samples of shape {shape} and {dtype}: {type(error).__name__}: {reason}"
    return ""


def _unfit(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    parts = codec.parts(shape, dtype)
    kinds = {str(kind).removeprefix("torch.") for _, kind in parts.values()}
    beside = parts.keys() - {"values"}
    if "values" not in parts or "shape" in parts or len(beside) > _MOST_PARTS:
        return f"it must declare values and up to {_MOST_PARTS} other tensors, none of them shape, not {list(parts)}"
    if not all(name.isascii() and name.isidentifier() and len(name) <= _LONGEST_NAME for name in beside):
        return f"the names of its tensors must be identifiers of up to {_LONGEST_NAME} letters, not {list(parts)}"
    if codec.sparse and type(codec).sent is Codec.sent:
        return "it leaves values out (sparse) and has no method sent that says which travel"
    if not kinds <= set(_DTYPES):
        return f"its tensors must be of {', '.join(_DTYPES)}, not of {', '.join(sorted(kinds))}"
    return ""


def _parts_of(coded: Coded) -> dict[str, Tensor]:
    return {"values": coded.values, **coded.aside}
