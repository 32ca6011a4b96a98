"""Stochastic gradient descent, with momentum or without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from sglr_flower.split.optimizers.optimizer import Functional, Slots


class Sgd(Functional):
    """Stochastic gradient descent.

    Parameters
    ----------
    parameters : Iterable[Tensor]
        What it updates.
    momentum : float
        What is kept of the step before, as torch has it: the buffer is ``momentum`` times itself plus the gradient.
    weight_decay : float
        Times the weights, added to the gradients.
    """

    def __init__(self, parameters: Iterable[Tensor], *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(parameters)
        self._momentum, self._decay = momentum, weight_decay

    def _new_slots(self, parameter: Tensor) -> Slots:
        # Torch begins with the first gradient, which is what comes of zeros.
        return {"momentum_buffer": torch.zeros_like(parameter)} if self._momentum else {}

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], slots: Sequence[Slots]) -> None:
        if isinstance(self.lr, Tensor):  # of which torch's function would take the value that it has now
            for parameter, gradient, own in zip(parameters, gradients, slots, strict=True):
                if self._decay:
                    gradient = gradient.add(parameter, alpha=self._decay)
                if self._momentum:
                    gradient = own["momentum_buffer"].mul_(self._momentum).add_(gradient)
                parameter.addcmul_(gradient, self.lr.to(parameter.dtype), value=-1)
            return
        sgd(
            parameters,
            gradients,
            [own.get("momentum_buffer") for own in slots],
            foreach=False,
            fused=False,
            weight_decay=self._decay,
            momentum=self._momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
