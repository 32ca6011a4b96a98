"""8 bits a value, with a scale for each sample or channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglr_flower.split.codecs.codec import NOT_FINITE, Coded, Part, StandardCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEVELS = 127
"""Largest whole number of int8: -128 has no counterpart."""


@dataclass(frozen=True)
class Int8(StandardCodec):
    """Whole numbers times a scale.

    Attributes
    ----------
    channels : bool
        A scale for each channel of a sample, not for the sample.
    """

    channels: bool = False

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        """As of `Codec`."""
        import torch

        together = self._together(len(shape) + 1)
        scale = tuple(1 if dim in together else side for dim, side in enumerate(shape, 1))
        return {"values": (shape, torch.int8), "scale": (scale, dtype)}

    def encode(self, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
        """As of `Codec`."""
        import torch

        scale = tensor.abs().amax(self._together(tensor.dim()), keepdim=True) / LEVELS
        # Of a sample of zeros, or of values so small that their scale is none, zeros are sent.
        whole = (tensor / scale.where(scale != 0, 1)).round().clamp(-LEVELS, LEVELS)
        return Coded(whole.to(torch.int8), {"scale": scale})

    def decode(self, coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As of `Codec`."""
        return coded.values.to(dtype) * coded.aside["scale"]

    def wrong(self, coded: Coded, shape: tuple[int, ...]) -> str:
        """Scales that are none."""
        import torch

        scale = coded.aside["scale"]
        largest = torch.finfo(scale.dtype).max / 128  # an int8 reaches to -128
        right = bool(((scale >= 0) & (scale <= largest)).all())
        return "" if right else f"with a scale that is negative or {NOT_FINITE}"

    def _together(self, dims: int) -> tuple[int, ...]:
        """The dimensions that one scale is for. Channels are the first of an image's, and the last of a sequence's."""
        if self.channels and dims == 4:
            return (2, 3)
        if self.channels and dims == 3:
            return (1,)
        return tuple(range(1, dims))
