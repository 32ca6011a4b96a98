"""A sample's largest values, or these with a random tail, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sglr_flower.split.codecs.codec import Codec, Coded, Part, StandardCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SHORT = 1 << 15
"""Up to so many values of a sample, a position is an int16."""


@dataclass(frozen=True)
class TopK(StandardCodec):
    """``topk`` and, with a tail, ``randtopk``.

    Attributes
    ----------
    keep : float
        F, the fraction of values that are sent, in (0, 1).
    tail : float
        A, the probability of a draw from the rest, in (0, 1); 0: nothing is drawn.
    """

    keep: float
    tail: float = 0.0
    sparse = True
    sends_shape = True

    @property
    def random(self) -> bool:  # type: ignore[override]  # of an interface whose default is a plain attribute
        """Whether it draws."""
        return self.tail > 0

    def kept(self, values: int) -> int:
        """How many of a sample's values are sent: at least one."""
        return max(1, math.floor(self.keep * values + 0.5))

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        """As of `Codec`."""
        count = math.prod(shape)
        kept = (self.kept(count),)
        return {"values": (kept, dtype), "positions": (kept, _position_dtype(count))}

    def encode(self, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
        """As of `Codec`."""
        import torch

        flat = tensor.flatten(1)
        count = flat.shape[1]
        kept = self.kept(count)
        chosen = flat.abs().topk(kept, sorted=False).indices
        if self.random and kept < count:
            # Drawing one after the other without replacement is a race of exponential clocks: the first ones are taken.
            weight = torch.full((len(flat), count), self.tail / (count - kept), device=flat.device)
            weight.scatter_(1, chosen, (1 - self.tail) / kept)
            clocks = [torch.empty(rows, count).exponential_(generator=generator) for generator, rows in draws]
            chosen = (weight / torch.cat(clocks).to(flat.device)).topk(kept, sorted=False).indices
        chosen = chosen.sort(1).values
        shape = torch.tensor(tensor.shape[1:], dtype=torch.int64)
        return Coded(flat.gather(1, chosen), {"positions": chosen.to(_position_dtype(count)), "shape": shape})

    def decode(self, coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As of `Codec`; what does not travel is 0."""
        values = coded.values
        flat = values.new_zeros((len(values), math.prod(shape)), dtype=dtype)
        dense: Tensor = flat.scatter_(1, coded.aside["positions"].long(), values.to(dtype)).unflatten(1, shape)
        return dense

    def sent(self, coded: Coded, shape: tuple[int, ...]) -> Tensor:
        """As of `Codec`."""
        import torch

        return self.decode(Coded(torch.ones_like(coded.values), coded.aside), shape, coded.values.dtype)

    def wrong(self, coded: Coded, shape: tuple[int, ...]) -> str:
        """Positions that there are not."""
        positions, last = coded.aside["positions"].long(), math.prod(shape) - 1
        if int(positions.min()) < 0 or int(positions.max()) > last or bool((positions.diff(dim=1) <= 0).any()):
            return f"with positions that are not ascending from 0 to {last}"
        return ""

    def scoring(self) -> Codec:
        """As of `Codec`."""
        return replace(self, tail=0.0)


def _position_dtype(values: int) -> torch.dtype:
    """Of positions among so many values."""
    import torch

    return torch.int16 if values <= _SHORT else torch.int32
