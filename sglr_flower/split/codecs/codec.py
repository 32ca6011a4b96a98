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

One's own is a `Codec` by its import path: ``wire-up = "package.module:name"``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, cast, get_args

from sglr_flower import imports
from sglr_flower.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind = Literal["none", "bfloat16", "float16", "int8", "int8-channel", "topk", "randtopk"]
NOT_FINITE = "not finite: the training may be diverging (a smaller client-lr)"
"""The end of a sentence about numbers."""
LEVELS = 127
"""Largest whole number of int8: -128 has no counterpart."""
_SHORT = 1 << 15
"""Up to so many values of a sample, a position is an int16."""


Part = tuple[tuple[int, ...], "torch.dtype"]
"""The shape of what one sample has of a tensor, and its dtype."""
_DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8")
"""Of tensors in a frame."""
_MOST_PARTS = 4
_LONGEST_NAME = 20
"""Of a codec: tensors beside the values and letters of their names, so that a frame's header is small."""


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


class Codec(ABC):
    """How tensors of one direction travel: the interface of a codec, one's own too.

    Every sample is made by itself: what comes out must not depend on the samples beside it, nor on how many there are.

    Attributes
    ----------
    off : bool
        Tensors travel as they are.
    random : bool
        `encode` needs random numbers.
    sparse : bool
        Values are left out, so that the derivative by them is 0 (`sent`); else it is taken as 1 for every value.
    sends_shape : bool
        ``shape``, int64, a sample's, travels beside the tensors of `parts`, so that `decode` knows it. It is added to
        what `encode` gives.
    """

    off = False
    random = False
    sparse = False
    sends_shape = True

    @abstractmethod
    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Part]:
        """What travels of each sample: ``values``, and what else is needed.

        Parameters
        ----------
        shape : tuple[int, ...]
            Of one sample.
        dtype : torch.dtype
            That both sides compute with, float32 or float64.

        Returns
        -------
        Mapping[str, Part]
            Name -> shape of one sample's part, and its dtype: a float, or an int of 8 to 64 bits. Both sides refuse
            whatever is not of this form.
        """

    @abstractmethod
    def encode(self, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
        """Make a tensor smaller.

        Parameters
        ----------
        tensor : Tensor
            (n, *shape), float32 or float64, without a graph.
        draws : Sequence[tuple[torch.Generator, int]]
            If it is ``random``: CPU generators, each for the next so many samples, n in all.

        Returns
        -------
        Coded
            Each tensor of `parts`, (n, *its shape).
        """

    @abstractmethod
    def decode(self, coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What the other side computes with, (n, *shape) in ``dtype``; of what is of the form of `parts`."""

    def scoring(self) -> Codec:
        """The codec of an evaluation; it must be without chance."""
        return self

    def sent(self, coded: Coded, shape: tuple[int, ...]) -> Tensor:
        """Where values travel, 1 or 0 in (n, *shape): everywhere, unless it is ``sparse``, which has to say it."""
        import torch

        return torch.ones(len(coded.values), *shape, device=coded.values.device)

    def wrong(self, coded: Coded, shape: tuple[int, ...]) -> str:
        """What makes something of the right form, from a node that is not trusted, none of its; empty if nothing.

        As the end of a sentence, such as "with positions that there are not". What is not finite is
        refused after it.
        """
        return ""

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes of one coded sample; the shape that is sent along once is framing and not among them."""
        return sum(math.prod(own) * kind.itemsize for own, kind in self.parts(shape, dtype).values())


@dataclass(frozen=True)
class StandardCodec(Codec):
    """One of the table above.

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
    def off(self) -> bool:  # type: ignore[override]  # of an interface whose default is a plain attribute
        """Whether tensors travel as they are."""
        return self.kind == "none"

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether it draws."""
        return self.kind == "randtopk"

    @property
    def sparse(self) -> bool:  # type: ignore[override]
        """Whether values are left out."""
        return self.kind in ("topk", "randtopk")

    def kept(self, values: int) -> int:
        """How many of a sample's values are sent: at least one."""
        return max(1, math.floor(self.keep * values + 0.5)) if self.sparse else values

    @property
    def sends_shape(self) -> bool:  # type: ignore[override]
        """Whether a sample's shape is to be told."""
        return self.sparse

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        """As of `Codec`."""
        import torch

        if self.kind in ("int8", "int8-channel"):
            return {"values": (shape, torch.int8), "scale": (scale_shape(self, shape), dtype)}
        if self.sparse:
            count = math.prod(shape)
            kept = (self.kept(count),)
            return {"values": (kept, dtype), "positions": (kept, position_dtype(count))}
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        return {"values": (shape, dtypes.get(self.kind, dtype))}

    def encode(self, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
        """As of `Codec`."""
        return encode(self, tensor, draws)

    def decode(self, coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As of `Codec`."""
        return decode(coded, dtype, shape)

    def sent(self, coded: Coded, shape: tuple[int, ...]) -> Tensor:
        """As of `Codec`."""
        return sent(coded)

    def wrong(self, coded: Coded, shape: tuple[int, ...]) -> str:
        """Positions that there are not, and scales that are none."""
        import torch

        if "positions" in coded.aside:
            positions, last = coded.aside["positions"].long(), math.prod(shape) - 1
            if int(positions.min()) < 0 or int(positions.max()) > last or bool((positions.diff(dim=1) <= 0).any()):
                return f"with positions that are not ascending from 0 to {last}"
        if "scale" in coded.aside:
            scale = coded.aside["scale"]
            largest = torch.finfo(scale.dtype).max / 128  # an int8 reaches to -128
            if not bool(((scale >= 0) & (scale <= largest)).all()):
                return f"with a scale that is negative or {NOT_FINITE}"
        return ""

    def scoring(self) -> Codec:
        """The codec of an evaluation: without chance."""
        return replace(self, kind="topk", tail=0.0) if self.kind == "randtopk" else self


OFF = StandardCodec()
"""Tensors travel as they are."""


def parse(text: str) -> StandardCodec:
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
        return StandardCodec(cast(Kind, kind), *fractions)
    raise ValueError(
        "it must be none, bfloat16, float16, int8, int8-channel, topk:F or randtopk:F:A with fractions F and A "
        "between 0 and 1, or package.module:name"
    )


def is_own(name: str) -> bool:
    """Whether a name is the import path of one's own codec."""
    return imports.is_path(name) and name.partition(":")[0] not in get_args(Kind)


def get(name: str, key: str) -> Codec:
    """The codec of a run-config key, ``wire-up`` or ``wire-down``: `parse`'s, or one's own by its import path.

    Raises
    ------
    UserError
        If what the path names is neither a `Codec` nor a class of such that is made without arguments.
    ValueError
        As `parse`.
    """
    if not is_own(name):
        return parse(name)
    own = imports.instance(name, key)
    if not isinstance(own, Codec):
        wanted = "it must be a sglr_flower.split.codecs.Codec, or a class of such without arguments"
        raise UserError(f"run-config key {key} = {name!r}: {wanted}, not a {type(own).__name__}")
    return own


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


@dataclass(frozen=True)
class Form:
    """What a coded tensor must be of: its codec, one sample's shape, and the dtype that is computed with."""

    codec: Codec
    shape: tuple[int, ...]
    dtype: torch.dtype

    def values(self) -> Part:
        """Shape of one sample's `Coded.values`, and their dtype."""
        return self.codec.parts(self.shape, self.dtype)["values"]

    def aside(self, samples: int) -> dict[str, Part]:
        """Shape and dtype of each tensor of `Coded.aside`."""
        import torch

        parts = self.codec.parts(self.shape, self.dtype).items()
        told = {name: ((samples, *shape), dtype) for name, (shape, dtype) in parts if name != "values"}
        return {**told, "shape": ((len(self.shape),), torch.int64)} if self.codec.sends_shape else told

    def sample_bytes(self) -> int:
        """As `Codec.nbytes`."""
        return self.codec.nbytes(self.shape, self.dtype)


def encode(codec: StandardCodec, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
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


def scale_shape(codec: StandardCodec, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample's scale, given the sample's."""
    together = _scaled_together(codec, len(shape) + 1)
    return tuple(1 if dim in together else side for dim, side in enumerate(shape, 1))


def position_dtype(values: int) -> torch.dtype:
    """Of positions among so many values."""
    import torch

    return torch.int16 if _position_bytes(values) == 2 else torch.int32


def _position_bytes(values: int) -> int:
    return 2 if values <= _SHORT else 4


def _scaled_together(codec: StandardCodec, dims: int) -> tuple[int, ...]:
    """The dimensions that one scale is for. Channels are the first of an image's, and the last of a sequence's."""
    if codec.kind == "int8-channel" and dims == 4:
        return (2, 3)
    if codec.kind == "int8-channel" and dims == 3:
        return (1,)
    return tuple(range(1, dims))


def _sparse(codec: StandardCodec, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]]) -> Coded:
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
