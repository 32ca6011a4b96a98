"""What a client does to its smashed data against a server that is curious: NoPeek, clipping, noise.

NoPeek (Vepakomma, Singh, Gupta & Raskar, "NoPeek: Information leakage reduction to share activations in distributed
deep learning", arXiv 2008.09161) adds to the client's loss the distance correlation between its images and its smashed
data. Clipping bounds the L2 norm of each sample's smashed data, and noise is Gaussian. What they protect from, and what
not, is in docs/privacy.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sglr_flower.split.distances import distance_correlation
from sglr_flower.split.noise import FRESH, key, noised


@dataclass(frozen=True)
class Defence:
    """The defences of a run; one that is 0 is off.

    Attributes
    ----------
    nopeek_weight : float
        Of the distance correlation in the client's loss, next to the mean task loss of its own batch.
    clip : float
        The largest L2 norm of one sample's smashed data.
    noise : float
        Standard deviation of the noise on each of its numbers, added after clipping.
    noise_seed : int
        As in `noise.key`.
    """

    nopeek_weight: float = 0.0
    clip: float = 0.0
    noise: float = 0.0
    noise_seed: int = FRESH

    def shaped(self, inputs: Tensor, smashed: Tensor, batch_dims: int = 1) -> Tensor:
        """A client's smashed data with all that its backward pass has to know: NoPeek, then clipping.

        Noise is not part of it: the gradient by what is sent is the gradient by what the noise was added to.

        Parameters
        ----------
        inputs, smashed : Tensor
            (b, *input shape) and (b, *cut shape) with its graph; of k clients at once (k, b, ...).
        batch_dims : int
            1, or 2 where there are several clients.
        """
        if self.nopeek_weight and smashed.requires_grad:
            smashed = _NoPeek.apply(smashed, inputs, self.nopeek_weight, batch_dims)
        return clipped(smashed, self.clip, batch_dims) if self.clip else smashed

    def sent(self, smashed: Tensor, *name: str | int, first: int = 0) -> Tensor:
        """What leaves the client in place of `shaped` smashed data, (b, *cut shape): the same with noise.

        The noise of sample k is the draw (*name, first + k), so that it does not depend on how samples are grouped.
        """
        if not self.noise:
            return smashed
        rows = [noised(row, self.noise, key(self.noise_seed, *name, first + k)) for k, row in enumerate(smashed)]
        return torch.empty_like(smashed).copy_(torch.stack(rows))


def defended(smashed: Tensor, defence: Defence | None, *name: str | int, first: int = 0) -> Tensor:
    """What a server gets to see of smashed data, without a graph: clipped, and with noise.

    Parameters
    ----------
    smashed : Tensor
        The client segment's output, (n, *cut shape).
    defence : Defence | None
        The run's (`assembly.defence`); None: the smashed data as they are.
    name : str | int
        Of the draw of the noise: what the data are for, whose, and when. Sample k is the draw (*name, first + k).
    first : int
        The number of the first sample, where a larger set is sent in parts.
    """
    smashed = smashed.detach()
    if defence is None:
        return smashed
    return defence.sent(clipped(smashed, defence.clip) if defence.clip else smashed, *name, first=first)


def clipped(smashed: Tensor, bound: float, batch_dims: int = 1) -> Tensor:
    """Each sample scaled down to an L2 norm of at most ``bound``; gradients flow through the norm too."""
    norms: Tensor = torch.linalg.vector_norm(smashed.flatten(batch_dims), dim=-1)
    # Divided by at least the bound, so that a sample of zeros has a gradient.
    scale = norms.new_tensor(bound) / norms.clamp(min=bound)
    return smashed * scale.view(*scale.shape, *[1] * (smashed.dim() - batch_dims))


class Clip(nn.Module):
    """`clipped` as a stage of a whole network.

    Parameters
    ----------
    bound : float
        The largest L2 norm of one sample.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, smashed: Tensor) -> Tensor:
        """Clip (n, *shape)."""
        return clipped(smashed, self.bound)


class _NoPeek(torch.autograd.Function):
    """Smashed data as they are; in the backward pass the penalty's gradient joins the cut gradient.

    The client never has the task loss: of the sum of both it adds up the gradients at its output.
    """

    @staticmethod
    def forward(ctx: Any, smashed: Tensor, inputs: Tensor, weight: float, batch_dims: int) -> Tensor:
        ctx.save_for_backward(smashed, inputs)
        ctx.weight, ctx.batch_dims = weight, batch_dims
        return smashed.view_as(smashed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        smashed, inputs = ctx.saved_tensors
        with torch.enable_grad():
            output = smashed.detach().requires_grad_()
            flat = (inputs.flatten(ctx.batch_dims), output.flatten(ctx.batch_dims))
            penalty = ctx.weight * distance_correlation(*flat).sum()
            (own,) = torch.autograd.grad(penalty, output)
        return gradients[0] + own, None, None, None
