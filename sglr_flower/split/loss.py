"""The training loss: what outputs and targets make one number of, which both sides' gradients are of."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower import imports
from sglr_flower.data.samples import Tensors, join
from sglr_flower.errors import UserError

Loss = Callable[[Any, Any], Tensor]
"""(outputs (n, ...), targets (n, ...)) -> a scalar with a graph: the mean over the n samples. A source with several
targets gives them by name.

That it is a mean matters: the server's loss is of all clients' samples, and a client's cut gradient is made the one of
its own batch's mean from it (eq. 5 of arXiv 2112.05929).
"""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of logits (n, classes) and int64 labels (n,), as in the paper."""
    return F.cross_entropy(outputs, targets)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the authors' code: softmax of logits (n, classes), then binary cross-entropy against the one-hot label (n,).

    Averaged over the outputs too.
    """
    # Of a run that diverged torch's function refuses what softmax gives, where cross-entropy and its gradient are nan.
    # So are these, without a look at the values: for that a step would wait for its device.
    finite = outputs.isfinite().all()
    doubt = torch.where(finite, 0.0, math.nan).to(outputs.dtype)
    one_hot = torch.zeros_like(outputs).scatter_(1, targets.unsqueeze(1), 1.0)
    return F.binary_cross_entropy(outputs.where(finite, 0.0).softmax(1), one_hot) + (outputs * doubt).sum()


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, averaged over samples and outputs: (n, ...) of both, or (n, 1) and (n,)."""
    return F.mse_loss(outputs, _fitting(outputs, targets))


def l1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error, averaged over samples and outputs: (n, ...) of both, or (n, 1) and (n,)."""
    return F.l1_loss(outputs, _fitting(outputs, targets))


def bce_with_logits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of several labels a sample, each 0 or 1: sigmoid and binary cross-entropy, averaged over samples and labels.

    (n, labels) of both, or (n, 1) and (n,).
    """
    return F.binary_cross_entropy_with_logits(outputs, _fitting(outputs, targets))


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
    "mse": mse,
    "l1": l1,
    "bce-with-logits": bce_with_logits,
}


@functools.lru_cache(maxsize=8)  # an object of one's own class is made once, as the plans of all rounds have the same
def get(name: str) -> Loss:
    """The loss of the run-config key ``loss``.

    Parameters
    ----------
    name : str
        One of `LOSSES`, or ``package.module:name`` of a function, an ``nn.Module`` or a class of such that is made
        without arguments, as ``torch.nn:SmoothL1Loss``.

    Raises
    ------
    UserError
        If it is none of them, or has weights that are trained: nobody would train them.
    """
    if name in LOSSES:
        return LOSSES[name]
    if not imports.is_path(name):
        raise imports.unknown("loss", name, LOSSES)
    return of(imports.instance(name, "loss"), f"run-config key loss = {name!r}")


def of(own: Any, what: str = "loss") -> Loss:
    """A loss given as Python has it: a function, a module, or a class of such that is made without arguments.

    Parameters
    ----------
    own : Any
        The loss.
    what : str
        What it is, for the sentence.

    Raises
    ------
    UserError
        As of `get`.
    """
    wrong = f"{what}: it must be"
    if inspect.isclass(own):
        try:
            own = own()
        except Exception as error:  # whatever the user's own class does
            raise UserError(f"{wrong} made without arguments, and that fails with: {error}") from error
    if not callable(own):
        raise UserError(f"{wrong} a callable (outputs, targets) -> scalar, not a {type(own).__name__}")
    if not isinstance(own, nn.Module):
        return own  # type: ignore[no-any-return]  # whatever it is, `refusal` tries it
    if any(weight.requires_grad for weight in own.parameters()):
        raise UserError(f"{wrong} without weights of its own that would have to be trained")
    return _Module(own)


def mean_of_each(loss: Loss, outputs: Tensor, targets: Sequence[Tensors]) -> Tensor:
    """The mean of the losses of k clients: outputs (k, b, ...), and each one's targets (b, ...).

    At once where the loss is one of ours; of one's own nobody knows whether that of all samples is the mean of them
    (with weights of classes it is not).
    """
    if loss in LOSSES.values():
        return loss(outputs.flatten(0, 1), join(targets))
    return torch.stack([loss(*own) for own in zip(outputs, targets, strict=True)]).mean()


def link_function(loss: Loss) -> str:
    """What a loss puts outputs through itself, ``softmax`` or ``sigmoid``, so that it takes logits; empty of others."""
    own = loss.module if isinstance(loss, _Module) else getattr(loss, "func", loss)
    if own in (cross_entropy, binary_cross_entropy, F.cross_entropy) or isinstance(own, nn.CrossEntropyLoss):
        return "softmax"
    known = own in (bce_with_logits, F.binary_cross_entropy_with_logits) or isinstance(own, nn.BCEWithLogitsLoss)
    return "sigmoid" if known else ""


def refusal(loss: Loss, outputs: Tensor, targets: Tensors) -> str:
    """Why a loss cannot train with such outputs and targets; empty if it can. Tries it."""
    outputs = outputs.detach().requires_grad_()
    try:
        mean = loss(outputs, targets)
        if not isinstance(mean, Tensor) or mean.dim():
            found = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            return f"it must give a scalar tensor, the mean over the samples, not {found}"
        mean.backward()
    except Exception as error:  # whatever the user's own function does
        several = [targets] if isinstance(targets, Tensor) else list(targets.values())
        kinds = " and ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (outputs, *several))
        return f"it fails with outputs and targets of {kinds}: {imports.told(error)}"
    return "" if outputs.grad is not None else "it does not depend on the outputs"


@dataclass(frozen=True)
class _Module:
    """A loss that is a module: its buffers, such as weights of classes, follow the outputs' device and dtype."""

    module: nn.Module

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean: Tensor = self.module.to(outputs.device, outputs.dtype)(outputs, targets)
        return mean


def _fitting(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the outputs' shape and dtype: torch would broadcast (n, 1) and (n,) to (n, n)."""
    if (*targets.shape, 1) == tuple(outputs.shape):
        targets = targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        raise ValueError(f"targets {tuple(targets.shape)} do not fit outputs {tuple(outputs.shape)}")
    return targets.to(outputs.dtype)
