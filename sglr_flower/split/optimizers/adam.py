"""Adam and AdamW, of one client and of many at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from sglr_flower.split.optimizers.optimizer import Functional, Slots


class Adam(Functional):
    """Beta 0.9 and 0.999, eps 1e-8 (Kingma & Ba, arXiv 1412.6980), in one kernel for all parameters.

    Parameters
    ----------
    parameters : Iterable[Tensor]
        What it updates.
    weight_decay : float
        Times the weights, added to the gradients; if ``decoupled`` times the rate and the weights, taken off these
        (AdamW; Loshchilov & Hutter, arXiv 1711.05101).
    decoupled : bool
        AdamW instead of Adam.
    """

    def __init__(self, parameters: Iterable[Tensor], *, weight_decay: float = 0.0, decoupled: bool = False) -> None:
        super().__init__(parameters)
        self._decay, self._decoupled = weight_decay, decoupled

    def _new_slots(self, parameter: Tensor) -> Slots:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], slots: Sequence[Slots]) -> None:
        if isinstance(self.lr, Tensor) and self.lr.dtype == torch.float64:
            self._by_hand(parameters, gradients, slots)  # of a tensor torch's kernel for CUDA takes a float32 only
            return
        adam(
            parameters,
            gradients,
            [own["exp_avg"] for own in slots],
            [own["exp_avg_sq"] for own in slots],
            [],
            [own["step"] for own in slots],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self._decay,
            decoupled_weight_decay=self._decoupled,
            eps=1e-8,
            maximize=False,
        )

    def _by_hand(self, parameters: list[Tensor], gradients: list[Tensor], slots: Sequence[Slots]) -> None:
        """The same rule in several kernels, for steps () or (clients,) and any rate."""
        for own in slots:
            own["step"] += 1
        steps = torch.stack([own["step"] for own in slots]).double()  # as torch's kernel: 0.999^t is close to 1
        rates, roots = self.lr / (1 - 0.9**steps), (1 - 0.999**steps).sqrt()
        for k, (parameter, gradient, own) in enumerate(zip(parameters, gradients, slots, strict=True)):
            shape = (*rates[k].shape, *[1] * (parameter.dim() - rates[k].dim()))
            rate, root = (of[k].to(parameter.dtype).view(shape) for of in (rates, roots))
            if self._decoupled:
                parameter.mul_(1 - self.lr * self._decay)
            elif self._decay:
                gradient = gradient.add(parameter, alpha=self._decay)
            own["exp_avg"].lerp_(gradient, 1 - 0.9)
            own["exp_avg_sq"].mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            denominator = own["exp_avg_sq"].sqrt().div_(root).add_(1e-8)
            parameter.sub_((own["exp_avg"] / denominator).mul_(rate))


class StackedAdam(Adam):
    """Adam for many clients at once: parameters (clients, *shape), and every client at a step of its own.

    Torch's rule has one step for all of a tensor, and clients that miss rounds have made fewer.

    Parameters
    ----------
    parameters : Iterable[Tensor]
        What it updates.
    alike : bool
        All clients have made the same steps, so that torch's rule is theirs.
    weight_decay, decoupled
        As of `Adam`.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        alike: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay, decoupled=decoupled)
        self._alike = alike

    def _new_slots(self, parameter: Tensor) -> Slots:
        steps = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
        return {**super()._new_slots(parameter), "step": steps}

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], slots: Sequence[Slots]) -> None:
        if self._alike:
            super()._update(parameters, gradients, [{**own, "step": own["step"][0]} for own in slots])
            for own in slots:
                own["step"][1:].add_(1)
            return
        self._by_hand(parameters, gradients, slots)
