"""An optimizer, and what makes one: the interfaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

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
        The learning rate; a tensor () on the parameters' device, which a recorded step reads anew (`split.recording`),
        only where ``recordable``.
    recordable : bool
        Whether its step can be recorded.
    """

    recordable = False

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.lr: float | Tensor = 0.0
        self._parameters = list(parameters)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @abstractmethod
    def step(self) -> None:
        """Update the parameters that have a gradient."""

    @abstractmethod
    def state(self) -> dict[int, Slots]:
        """Index of a parameter -> its live state tensors by name; of those that have been updated."""

    @abstractmethod
    def adopt(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Go on with these very tensors as the state; `load_state` takes copies."""

    def load_state(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take copies of what `state` gave."""
        self.adopt(
            {
                index: {name: _like(tensor, self._parameters[index]) for name, tensor in slots.items()}
                for index, slots in state.items()
            }
        )


class Functional(Optimizer):
    """An update rule for all parameters at once, and the tensors that it keeps for each of them."""

    recordable = True

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters)
        self._slots: dict[int, Slots] = {}

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

    def adopt(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Go on with these very tensors as the state."""
        self._slots = {index: dict(slots) for index, slots in state.items()}

    @abstractmethod
    def _new_slots(self, parameter: Tensor) -> Slots:
        """A parameter's state before its first update."""

    @abstractmethod
    def _update(self, parameters: list[Tensor], gradients: list[Tensor], slots: Sequence[Slots]) -> None:
        """The rule."""


class OptimizerFactory(ABC):
    """Makes the optimizer of a client or of the server segment: what the engine has in place of an optimizer's name.

    Attributes
    ----------
    stackable : bool
        Whether clients that are computed together can have one for all of them (`stacked`).
    """

    stackable = False

    @abstractmethod
    def __call__(self, parameters: Iterable[Tensor]) -> Optimizer:
        """One for these parameters, without a state yet."""

    def stacked(self, parameters: Iterable[Tensor], *, alike: bool = False) -> Functional:
        """One for parameters of many clients, each (clients, *shape): every row moves as one of its own would move it.

        ``alike``: all of these clients have made the same steps.
        """
        raise TypeError(f"{self} is for one client at a time")

    def nbytes(self, segment: nn.Module) -> int:
        """Bytes that it keeps for a segment's weights once they are trained; what is only a number is not counted."""
        weights = [weight.detach().clone().requires_grad_(weight.requires_grad) for weight in segment.parameters()]
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        optimizer = self(weights)
        optimizer.step()
        return sum(slot.nbytes for slots in optimizer.state().values() for slot in slots.values() if slot.dim())


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy on the parameter's device, and as it lies in memory there."""
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device).clone()
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
