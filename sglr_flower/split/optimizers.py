"""The optimizers of both sides, and their state as flat named tensors.

Ours are torch's own update rules in their functional form: `torch.optim`'s classes import its compiler with their first
step, which is a second and 150 MB in every node's process, and cost a third of a millisecond per client and step
besides. Any other class of torch's or one's own is in `split.optimizer_classes`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class StandardOptimizer(OptimizerFactory):
    """Adam, AdamW and SGD as torch's classes of these names have them, and for many clients at once.

    Attributes
    ----------
    name : str
        ``adam``, ``adamw`` or ``sgd``.
    momentum : float
        Of ``sgd``.
    weight_decay : float
        As of `Adam` and `Sgd`.
    """

    name: str
    momentum: float = 0.0
    weight_decay: float = 0.0

    stackable = True

    def __call__(self, parameters: Iterable[Tensor]) -> Optimizer:
        """One for these parameters, without a state yet."""
        if self.name == "sgd":
            return Sgd(parameters, momentum=self.momentum, weight_decay=self.weight_decay)
        return Adam(parameters, weight_decay=self.weight_decay, decoupled=self.name == "adamw")

    def stacked(self, parameters: Iterable[Tensor], *, alike: bool = False) -> Functional:
        """As of `OptimizerFactory`."""
        if self.name == "sgd":
            return Sgd(parameters, momentum=self.momentum, weight_decay=self.weight_decay)
        decoupled = self.name == "adamw"
        return StackedAdam(parameters, alike=alike, weight_decay=self.weight_decay, decoupled=decoupled)


ADAM = StandardOptimizer("adam")
SGD = StandardOptimizer("sgd")
WEIGHT_DECAY = {"adam": 0.0, "adamw": 0.01, "sgd": 0.0}
"""Ours -> torch's default of their weight decay."""


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
