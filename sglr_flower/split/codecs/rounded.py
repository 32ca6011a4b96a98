"""Tensors as they are, and rounded to 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sglr_flower.split.codecs.codec import Coded, Part, StandardCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class AsIs(StandardCodec):
    """No codec."""

    off = True

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        """As of `Codec`."""
        return {"values": (shape, dtype)}

    def encode(self, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
        """As of `Codec`."""
        return Coded(tensor)

    def decode(self, coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As of `Codec`."""
        return coded.values.to(dtype)


OFF = AsIs()
"""Tensors travel as they are."""


@dataclass(frozen=True)
class Rounded(AsIs):
    """16 bits a value.

    Attributes
    ----------
    kind : Literal["bfloat16", "float16"]
        Which ones.
    """

    kind: Literal["bfloat16", "float16"]
    off = False

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        """As of `Codec`."""
        import torch

        return {"values": (shape, getattr(torch, self.kind))}

    def encode(self, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
        """As of `Codec`."""
        import torch

        if self.kind == "bfloat16":
            return Coded(tensor.to(torch.bfloat16))
        limit = torch.finfo(torch.float16).max
        near = tensor.clamp(-limit, limit)
        # What is infinite stays so: the receiver says that the training diverges.
        return Coded(near.where(tensor.isfinite(), tensor).to(torch.float16))
