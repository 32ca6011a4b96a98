"""The optimizers of both sides, and their state as flat named tensors.

Torch's own update rules, in their functional form: `torch.optim`'s classes import its compiler with their first step,
which is a second and 150 MB in every node's process, and cost a third of a millisecond per client and step besides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

Slots = dict[str, Tensor]


class Optimizer(ABC):
    """Updates parameters by their gradients at the rate `lr`, which is 0 until somebody sets it.

    Parameters
    ----------
    parameters : Iterable[Tensor]
        What it updates, leaves of autograd; may be empty, as the server segment of FedAvg is.

    Attributes
    ----------
    lr : float | Tensor
        The learning rate; a tensor () on the parameters' device is read anew by a recorded step (`split.recording`).
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.lr: float | Tensor = 0.0
        self._parameters = list(parameters)
        self._slots: dict[int, Slots] = {}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        moving = [(index, parameter) for index, parameter in enumerate(self._parameters) if parameter.grad is not None]
        for index, parameter in moving:
            if index not in self._slots:
                self._slots[index] = self._new_slots(parameter)
        if moving:
            parameters = [parameter for _, parameter in moving]
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            self._update(parameters, gradients, [self._slots[index] for index, _ in moving])

    def state(self) -> dict[int, Slots]:
        """Index of a parameter -> its live state tensors by name; of those that have been updated."""
        return {index: slots for index, slots in self._slots.items() if slots}

    def load_state(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take copies of what `state` gave."""
        self._slots = {
            index: {name: _like(tensor, self._parameters[index]) for name, tensor in slots.items()}
            for index, slots in state.items()
        }

    def adopt(self, state: Mapping[int, Slots]) -> None:
        """Go on with these very tensors as the state; `load_state` takes copies."""
        self._slots = {index: dict(slots) for index, slots in state.items()}

    @abstractmethod
    def _new_slots(self, parameter: Tensor) -> Slots:
        """A parameter's state before its first update."""

    @abstractmethod
    def _update(self, parameters: list[Tensor], gradients: list[Tensor], slots: Sequence[Slots]) -> None:
        """The rule."""


class Adam(Optimizer):
    """Beta 0.9 and 0.999, eps 1e-8 (Kingma & Ba, arXiv 1412.6980), in one kernel for all parameters."""

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
            weight_decay=0.0,
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
    """

    def __init__(self, parameters: Iterable[Tensor], *, alike: bool = False) -> None:
        super().__init__(parameters)
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


class Sgd(Optimizer):
    """Without momentum."""

    def _new_slots(self, parameter: Tensor) -> Slots:
        return {}

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], slots: Sequence[Slots]) -> None:
        if isinstance(self.lr, Tensor):  # of which torch's function would take the value that it has now
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.addcmul_(gradient, self.lr.to(parameter.dtype), value=-1)
            return
        sgd(
            parameters,
            gradients,
            [None] * len(parameters),
            foreach=False,
            fused=False,
            weight_decay=0.0,
            momentum=0.0,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def build(name: str, parameters: Iterable[Tensor]) -> Optimizer:
    """The optimizer of the run-config key ``optimizer``: ``adam`` or ``sgd``."""
    return {"adam": Adam, "sgd": Sgd}[name](parameters)


def build_stacked(name: str, parameters: Iterable[Tensor], *, alike: bool = False) -> Optimizer:
    """The same for parameters of many clients, each (clients, *shape): every row moves as `build`'s would move it.

    ``alike``: all of these clients have made the same steps.
    """
    return StackedAdam(parameters, alike=alike) if name == "adam" else build(name, parameters)


def flat_state(segment: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and optimizer state as tensors named ``segment.NAME`` and ``optimizer.INDEX.NAME``.

    The tensors are the live ones, not copies.
    """
    state = {f"segment.{name}": tensor for name, tensor in segment.state_dict().items()}
    for index, slots in optimizer.state().items():
        state.update({f"optimizer.{index}.{name}": tensor for name, tensor in slots.items()})
    return state


def segment_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The segment's own ``state_dict`` (weights and buffers) out of a flat state."""
    return {name.removeprefix("segment."): tensor for name, tensor in state.items() if name.startswith("segment.")}


def load_flat_state(segment: nn.Module, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Copy what `flat_state` gave into a segment and optimizer of the same shapes."""
    weights: dict[str, Tensor] = {}
    slots: dict[int, Slots] = {}
    for key, tensor in state.items():
        kind, rest = key.split(".", 1)
        if kind == "segment":
            weights[rest] = tensor
        else:
            index, name = rest.split(".", 1)
            slots.setdefault(int(index), {})[name] = tensor
    segment.load_state_dict(weights)
    optimizer.load_state(slots)


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy on the parameter's device, and as it lies in memory there."""
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device).clone()
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
