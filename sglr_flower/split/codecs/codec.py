"""A codec: the interface, one's own too, and what a coded tensor is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NOT_FINITE = "not finite: the training may be diverging (a smaller client-lr), or inputs are not finite"
"""The end of a sentence about numbers."""

Part = tuple[tuple[int, ...], "torch.dtype"]
"""The shape of what one sample has of a tensor, and its dtype."""


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


class StandardCodec(Codec):
    """One of this package's, by which its interface is known to be kept."""

    sends_shape = False


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
