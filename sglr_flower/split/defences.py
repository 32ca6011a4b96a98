"""What a client does to its smashed data against a server that is curious: NoPeek, clipping, noise.

NoPeek (Vepakomma, Singh, Gupta & Raskar, "NoPeek: Information leakage reduction to share activations in distributed
deep learning", arXiv 2008.09161) adds to the client's loss the distance correlation between its inputs and its smashed
data. Clipping bounds the L2 norm of each sample's smashed data, and noise is Gaussian. What they protect from, and what
not, is in docs/privacy.md. One's own is a `Defence` by its import path: ``defence = "package.module:name"``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sglr_flower import imports
from sglr_flower.errors import UserError
from sglr_flower.split.distances import distance_correlation
from sglr_flower.split.noise import FRESH, key, noised

Penalty = Callable[[Tensor, Tensor], Tensor | None]
"""As `Defence.penalty`."""


class Defence:
    """What clients do to their smashed data: the interface of a defence, one's own too. By itself it does nothing.

    Three things may be done: a function of each sample's smashed data, a penalty in the client's loss, and what is only
    done to what is sent, such as noise.
    """

    def changed(self, smashed: Tensor) -> Tensor:
        """What takes the place of smashed data (n, *cut shape), of the same shape and dtype and with its graph.

        It is part of the network: the backward pass goes through it, evaluations have it, and exported networks too.
        """
        return smashed

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor | None:
        """What is added to the client's mean loss of its own batch, (); None: nothing.

        Parameters
        ----------
        inputs, smashed : Tensor
            (b, *input shape) and (b, *cut shape), the latter before `changed`; the penalty's gradient by it is what
            is added to the cut gradient.
        """
        return None

    def sent(self, smashed: Tensor, *name: str | int, first: int = 0) -> Tensor:
        """What leaves the client in place of `changed` smashed data, (n, *cut shape), without a graph.

        Its random numbers must not be torch's global ones, which would be others with other clients beside it.
        Its derivative is taken as 1. It is made once; a forward that is made again may draw other noise.

        Parameters
        ----------
        smashed : Tensor
            (n, *cut shape).
        name : str | int
            Of the draw of its noise: what the data are for, whose, and when (`sglr_flower.split.noise`).
        first : int
            The number of the first sample: sample k is the draw (*name, first + k), however samples are grouped.
        """
        return smashed

    def shaped(self, inputs: Tensor, smashed: Tensor, batch_dims: int = 1) -> Tensor:
        """A client's smashed data with all that its backward pass has to know: the penalty, and `changed`.

        `sent` is no part of it: the gradient by what is sent is the gradient by what the noise was added to.

        Parameters
        ----------
        inputs, smashed : Tensor
            (b, *input shape) and (b, *cut shape) with its graph; of k clients at once (k, b, ...).
        batch_dims : int
            1, or 2 where there are several clients.
        """
        if batch_dims == 2:
            return torch.stack([self.shaped(*own) for own in zip(inputs, smashed, strict=True)])
        if smashed.requires_grad:
            smashed = _Penalised.apply(smashed, inputs, self.penalty)
        return self.changed(smashed)

    def stage(self) -> tuple[str, nn.Module] | None:
        """`changed` as a stage at the cut of a whole network, and its name; None: it changes nothing."""
        return None if type(self).changed is Defence.changed else ("defence", Changed(self))


@dataclass(frozen=True)
class StandardDefence(Defence):
    """The defences of the run-config; one that is 0 is off.

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

    def changed(self, smashed: Tensor) -> Tensor:
        """Clipped."""
        return clipped(smashed, self.clip) if self.clip else smashed

    def shaped(self, inputs: Tensor, smashed: Tensor, batch_dims: int = 1) -> Tensor:
        """As of `Defence`: NoPeek, then clipping; all clients at once."""
        if self.nopeek_weight and smashed.requires_grad:
            smashed = _Penalised.apply(smashed, inputs, functools.partial(self._nopeek, batch_dims))
        return clipped(smashed, self.clip, batch_dims) if self.clip else smashed

    def _nopeek(self, batch_dims: int, inputs: Tensor, smashed: Tensor) -> Tensor:
        flat = (inputs.flatten(batch_dims), smashed.flatten(batch_dims))
        return self.nopeek_weight * distance_correlation(*flat).sum()

    def sent(self, smashed: Tensor, *name: str | int, first: int = 0) -> Tensor:
        """With noise."""
        if not self.noise:
            return smashed
        rows = [noised(row, self.noise, key(self.noise_seed, *name, first + k)) for k, row in enumerate(smashed)]
        return torch.empty_like(smashed).copy_(torch.stack(rows))

    def stage(self) -> tuple[str, nn.Module] | None:
        """The clipping."""
        return ("smashed_clip", Clip(self.clip)) if self.clip else None


def get(name: str) -> Defence:
    """One's own defence by the run-config key ``defence``: an object, or a class that is made without arguments.

    Raises
    ------
    UserError
        If it is no `Defence`.
    """
    own = imports.instance(name, "defence")
    if not isinstance(own, Defence):
        wanted = "it must be a sglr_flower.split.defences.Defence, or a class of such without arguments"
        raise UserError(f"run-config key defence = {name!r}: {wanted}, not a {type(own).__name__}")
    return own


def refusal(defence: Defence, inputs: Tensor, smashed: Tensor) -> str:
    """Why a defence cannot act on inputs (b, ...) and their smashed data (b, *cut shape); empty if it can. Tries it."""
    if isinstance(defence, StandardDefence):
        return ""
    try:
        with torch.random.fork_rng(devices=[]):
            output = smashed.detach().requires_grad_()
            defence.shaped(inputs, output).sum().backward()
            for made in (defence.changed(smashed), defence.sent(smashed, "check")):
                if made.shape != smashed.shape or made.dtype != smashed.dtype:
                    kinds = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (smashed, made)]
                    return f"of smashed data {kinds[0]} it must make such, not {kinds[1]}"
            if not torch.allclose(defence.changed(smashed[:1]), defence.changed(smashed)[:1]):
                return "what it makes of a sample depends on the samples beside it"
    except Exception as error:  # whatever the user's own class does
        reason = str(error).strip().partition("\n")[0]
        return f"it fails with smashed data {tuple(smashed.shape)}: {type(error).__name__}: {reason}"
    return ""


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
    return defence.sent(defence.changed(smashed), *name, first=first)


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


class Changed(nn.Module):
    """What a defence makes of smashed data, as a stage of a whole network."""

    def __init__(self, defence: Defence) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, smashed: Tensor) -> Tensor:
        """Change (n, *shape)."""
        return self.defence.changed(smashed)


class _Penalised(torch.autograd.Function):
    """Smashed data as they are; in the backward pass the penalty's gradient joins the cut gradient.

    The client never has the task loss: of the sum of both it adds up the gradients at its output.
    """

    @staticmethod
    def forward(ctx: Any, smashed: Tensor, inputs: Tensor, penalty: Penalty) -> Tensor:
        ctx.save_for_backward(smashed, inputs)
        ctx.penalty = penalty
        return smashed.view_as(smashed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        smashed, inputs = ctx.saved_tensors
        with torch.enable_grad():
            output = smashed.detach().requires_grad_()
            penalty = ctx.penalty(inputs, output)
            if penalty is None:
                return gradients[0], None, None
            (own,) = torch.autograd.grad(penalty, output)
        return gradients[0] + own, None, None
