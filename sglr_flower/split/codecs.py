"""Wire codecs: smashed data and cut gradients made smaller before they travel, and what the other side computes with.

========================  ============================================================================================
none                      as computed; costs nothing
bfloat16, float16         rounded to 16 bits; float16 ends at ±65,504, to which larger values are cut off
int8, int8-channel        8 bits: x ~ scale * q with whole q in -127..127 and scale = max|x| / 127 of one sample, or of
                          each channel of one sample
topk:F                    the fraction F of a sample's values that are largest in magnitude, and where they lie
randtopk:F:A              the same number of them, drawn without replacement: each draw is of the largest with
                          probability 1 - A, of the tail with A, and even within both; a score is taken with topk:F.
                          Zheng et al., "Reducing Communication for Split Learning by Randomized Top-k Sparsification",
                          arXiv 2305.18469
========================  ============================================================================================

Everything is made sample by sample (of SplitAvg's average: position by position), so what comes out does not depend on
how samples are grouped into batches, nodes and frames.

There is no error feedback, the memory of what was left out that is added to the next message. It corrects a sum to
which every message contributes, such as a weight's gradients over the steps of a run. Rows of smashed data and of cut
gradients are of other images in every step, and what was left out of one image's is no part of another's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, cast, get_args

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind = Literal["none", "bfloat16", "float16", "int8", "int8-channel", "topk", "randtopk"]
LEVELS = 127
"""Largest whole number of int8: -128 has no counterpart."""
_SHORT = 1 << 15
"""Up to so many values of a sample, a position is an int16."""


@dataclass(frozen=True)
class Codec:
    """How tensors of one direction travel.

    Attributes
    ----------
    kind : Kind
        As in the table above.
    keep : float
        F, the fraction of values that are sent, in (0, 1).
    tail : float
        A, the probability of a draw from the rest, in (0, 1).
    """

    kind: Kind = "none"
    keep: float = 1.0
    tail: float = 0.0

    @property
    def off(self) -> bool:
        """Whether tensors travel as they are."""
        return self.kind == "none"

    @property
    def sparse(self) -> bool:
        """Whether values are left out."""
        return self.kind in ("topk", "randtopk")

    def kept(self, values: int) -> int:
        """How many of a sample's values are sent: at least one."""
        return max(1, math.floor(self.keep * values + 0.5)) if self.sparse else values

    def scoring(self) -> Codec:
        """The codec of an evaluation: without chance."""
        return replace(self, kind="topk", tail=0.0) if self.kind == "randtopk" else self


OFF = Codec()
"""Tensors travel as they are."""


def parse(text: str) -> Codec:
    """Read a codec's name.

    Raises
    ------
    ValueError
        If it is none; the sentence says which there are.
    """
    kind, *numbers = text.split(":")
    wanted = {"topk": 1, "randtopk": 2}.get(kind, 0)
    try:
        fractions = [float(number) for number in numbers]
    except ValueError:
        fractions = []
    if kind in get_args(Kind) and len(fractions) == wanted == len(numbers) and all(0 < part < 1 for part in fractions):
        return Codec(cast(Kind, kind), *fractions)
    raise ValueError(
        "it must be none, bfloat16, float16, int8, int8-channel, topk:F or randtopk:F:A with fractions F and A "
        "between 0 and 1"
    )


@dataclass(frozen=True)
class Coded:
    """A tensor as it travels; it says by itself how it is read.

    Attributes
    ----------
    values : Tensor
        (n, *shape) in the model's dtype, bfloat16, float16 or int8; of a sparse codec (n, k), the values that are sent.
    aside : Mapping[str, Tensor]
        What else is needed. Of int8 ``scale``, in the model's dtype, (n, 1, ...) or with the channels as they lie in
        ``values``. Of a sparse codec ``positions``, int16 or int32 (n, k), ascending within a sample, counted in
        row-major order of its shape, and ``shape``, int64, a sample's.
    """

    values: Tensor
    aside: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """What a coded tensor must be of: its codec, one sample's shape, and the dtype that is computed with."""

    codec: Codec
    shape: tuple[int, ...]
    dtype: torch.dtype

    def values(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape of one sample's `Coded.values`, and their dtype."""
        import torch

        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8, "int8-channel": torch.int8}
        shape = (self.codec.kept(math.prod(self.shape)),) if self.codec.sparse else self.shape
        return shape, dtypes.get(self.codec.kind, self.dtype)

    def aside(self, samples: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of `Coded.aside`."""
        import torch

        if self.codec.kind in ("int8", "int8-channel"):
            return {"scale": ((samples, *scale_shape(self.codec, self.shape)), self.dtype)}
        if not self.codec.sparse:
            return {}
        count = math.prod(self.shape)
        positions = (samples, self.codec.kept(count)), position_dtype(count)
        return {"positions": positions, "shape": ((len(self.shape),), torch.int64)}

    def sample_bytes(self) -> int:
        """Bytes of one coded sample; the shape that a sparse codec sends along once is framing and not among them."""
        count, width = math.prod(self.shape), self.dtype.itemsize
        if self.codec.kind in ("bfloat16", "float16"):
            return 2 * count
        if self.codec.kind == "int8":
            return count + width
        if self.codec.kind == "int8-channel":
            return count + math.prod(scale_shape(self.codec, self.shape)) * width
        return self.codec.kept(count) * (width + (_position_bytes(count) if self.codec.sparse else 0))


def encode(codec: Codec, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
    """Make a tensor smaller.

    Parameters
    ----------
    codec : Codec
        How.
    tensor : Tensor
        (n, *shape), float32 or float64.
    draws : Sequence[tuple[torch.Generator, int]]
        Of ``randtopk``: CPU generators, each for the next so many samples, n in all.
    """
    import torch

    if codec.off:
        return Coded(tensor)
    if codec.kind == "bfloat16":
        return Coded(tensor.to(torch.bfloat16))
    if codec.kind == "float16":
        limit = torch.finfo(torch.float16).max
        near = tensor.clamp(-limit, limit)
        # What is infinite stays so: the receiver says that the training diverges.
        return Coded(near.where(tensor.isfinite(), tensor).to(torch.float16))
    if codec.sparse:
        return _sparse(codec, tensor, draws)
    scale = tensor.abs().amax(_scaled_together(codec, tensor.dim()), keepdim=True) / LEVELS
    # Of a sample of zeros, or of values so small that their scale is none, zeros are sent.
    whole = (tensor / scale.where(scale != 0, 1)).round().clamp(-LEVELS, LEVELS)
    return Coded(whole.to(torch.int8), {"scale": scale})


def decode(coded: Coded, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Tensor:
    """The tensor that the other side computes with, (n, *shape) in ``dtype``; what does not travel is 0.

    ``shape`` where it is known already, so that the coded one need not be read.
    """
    values, aside = coded.values, coded.aside
    if "scale" in aside:
        return values.to(dtype) * aside["scale"]
    if "positions" not in aside:
        return values.to(dtype)
    shape = aside["shape"].tolist() if shape is None else shape
    flat = values.new_zeros((len(values), math.prod(shape)), dtype=dtype)
    dense: Tensor = flat.scatter_(1, aside["positions"].long(), values.to(dtype)).unflatten(1, shape)
    return dense


def sent(coded: Coded) -> Tensor:
    """Where values of a sparse codec travel, 1 or 0 in (n, *shape): its derivative."""
    import torch

    return decode(Coded(torch.ones_like(coded.values), coded.aside), coded.values.dtype)


def scale_shape(codec: Codec, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample's scale, given the sample's."""
    together = _scaled_together(codec, len(shape) + 1)
    return tuple(1 if dim in together else side for dim, side in enumerate(shape, 1))


def position_dtype(values: int) -> torch.dtype:
    """Of positions among so many values."""
    import torch

    return torch.int16 if _position_bytes(values) == 2 else torch.int32


def _position_bytes(values: int) -> int:
    return 2 if values <= _SHORT else 4


def _scaled_together(codec: Codec, dims: int) -> tuple[int, ...]:
    """The dimensions that one scale is for. Channels are the first of an image's, and the last of a sequence's."""
    if codec.kind == "int8-channel" and dims == 4:
        return (2, 3)
    if codec.kind == "int8-channel" and dims == 3:
        return (1,)
    return tuple(range(1, dims))


def _sparse(codec: Codec, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]]) -> Coded:
    import torch

    flat = tensor.flatten(1)
    count = flat.shape[1]
    kept = codec.kept(count)
    chosen = flat.abs().topk(kept, sorted=False).indices
    if codec.kind == "randtopk" and kept < count:
        # Drawing one after the other without replacement is a race of exponential clocks: the first ones are taken.
        weight = torch.full((len(flat), count), codec.tail / (count - kept), device=flat.device)
        weight.scatter_(1, chosen, (1 - codec.tail) / kept)
        clocks = [torch.empty(rows, count).exponential_(generator=generator) for generator, rows in draws]
        chosen = (weight / torch.cat(clocks).to(flat.device)).topk(kept, sorted=False).indices
    chosen = chosen.sort(1).values
    shape = torch.tensor(tensor.shape[1:], dtype=torch.int64)
    return Coded(flat.gather(1, chosen), {"positions": chosen.to(position_dtype(count)), "shape": shape})
