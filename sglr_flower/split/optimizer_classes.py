"""Optimizers of `torch.optim`'s classes and of one's own, by import path; what they cannot do is found by trying it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from sglr_flower import imports
from sglr_flower.errors import UserError
from sglr_flower.split.optimizers import WEIGHT_DECAY, Optimizer, OptimizerFactory, Slots, StandardOptimizer

Make = Callable[[list[Tensor]], TorchOptimizer]
"""From parameters to one of torch's optimizers."""

_NUMBERS: dict[str, tuple[type, torch.dtype]] = {
    "bool": (bool, torch.bool),
    "int": (int, torch.int64),
    "float": (float, torch.float64),
}
"""Ends the name of a state tensor that is a number of Python's -> its type, and the tensor's dtype."""


class ClassOptimizer(Optimizer):
    """One of torch's optimizers behind our interface: ``lr`` is set before each step, its state is named tensors.

    Parameters
    ----------
    parameters : Iterable[Tensor]
        What it updates; may be empty, which torch's own may not.
    make : Make
        Makes it.
    """

    def __init__(self, parameters: Iterable[Tensor], make: Make) -> None:
        super().__init__(parameters)
        self._make = make
        self._own = make(self._parameters) if self._parameters else None

    def step(self) -> None:
        """Update the parameters that have a gradient."""
        if self._own is not None:
            (group,) = self._own.param_groups
            group["lr"] = self.lr
            self._own.step()

    def unfit(self) -> str:
        """Why it is none that a step can be made with as `step` makes it; empty if it is one."""
        if self._own is not None and len(self._own.param_groups) != 1:
            return f"it has {len(self._own.param_groups)} groups of parameters, whose rates nobody could tell apart"
        if self._own is not None and "closure" in _needed(self._own.step):
            return "its step needs a closure that computes the loss again, for which the other side would be needed"
        return ""

    def state(self) -> dict[int, Slots]:
        """Index of a parameter -> its state by name; what is a number there is a tensor () here."""
        if self._own is None:
            return {}
        states = {index: self._own.state.get(parameter, {}) for index, parameter in enumerate(self._parameters)}
        return {
            index: dict(_as_tensor(name, value) for name, value in state.items() if value is not None)
            for index, state in states.items()
            if any(value is not None for value in state.values())
        }

    def load_state(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take copies of what `state` gave, each of its dtype, where torch's own ``load_state_dict`` would have it."""
        self.adopt(
            {index: {n: self._placed(n, slot, index) for n, slot in slots.items()} for index, slots in state.items()}
        )

    def _placed(self, name: str, slot: Tensor, index: int) -> Tensor:
        group = {} if self._own is None else self._own.param_groups[0]
        if name == "step" and not (group.get("capturable") or group.get("fused")):
            return slot.clone()  # a number that torch's classes read on the CPU
        parameter = self._parameters[index]
        if slot.shape != parameter.shape:
            return slot.to(parameter.device, copy=True)
        return torch.empty_like(parameter, dtype=slot.dtype).copy_(slot)

    def adopt(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Go on with these very tensors as the state, and with a new optimizer: what else it had is the old one's."""
        if self._own is None:
            return
        self._own = self._make(self._parameters)
        for index, slots in state.items():
            self._own.state[self._parameters[index]] = dict(_as_value(name, slot) for name, slot in slots.items())


@dataclass(frozen=True)
class ClassFactory(OptimizerFactory):
    """A class of `torch.optim`, or one's own.

    Attributes
    ----------
    path : str
        Its import path, which is what it is known by.
    make : Make
        Makes it.
    """

    path: str
    make: Make = field(compare=False)

    def __str__(self) -> str:
        return self.path

    def __call__(self, parameters: Iterable[Tensor]) -> Optimizer:
        """One for these parameters, without a state yet."""
        return ClassOptimizer(parameters, self.make)


def get(name: str, key: str = "optimizer", momentum: float = 0.0, weight_decay: float = -1.0) -> OptimizerFactory:
    """The optimizer of the run-config keys ``optimizer`` or ``server-optimizer``, ``momentum`` and ``weight-decay``.

    Parameters
    ----------
    name : str
        ``adam``, ``adamw``, ``sgd``, or ``package.module:name`` of a class such as ``torch.optim:RMSprop``, or of a
        function or ``functools.partial`` that is called with the parameters, and with ``lr`` if it cannot do without,
        and gives such an optimizer.
    key : str
        Which of the two, for the sentence.
    momentum : float
        Of ``sgd``; others have none.
    weight_decay : float
        Of ours; below 0: the default of torch's class. One's own has its arguments in itself.

    Raises
    ------
    UserError
        If there is no such optimizer.
    """
    if name in WEIGHT_DECAY:
        decay = WEIGHT_DECAY[name] if weight_decay < 0 else weight_decay
        return StandardOptimizer(name, momentum if name == "sgd" else 0.0, decay)
    if not imports.is_path(name):
        raise imports.unknown(key, name, WEIGHT_DECAY)
    own, wrong = imports.load(name, key), f"run-config key {key} = {name!r}"
    if not callable(own):
        raise UserError(f"{wrong}: it must be called with parameters, which a {type(own).__name__} cannot be")

    def make(parameters: list[Tensor]) -> TorchOptimizer:
        try:
            # Whatever the rate here, each step sets its own.
            made = own(parameters) if _binds(own, parameters) else own(parameters, lr=1e-3)
        except Exception as error:  # whatever torch or the user's own class has against these parameters
            raise UserError(f"{wrong}: it cannot be made for the model's weights: {_first_line(error)}") from error
        if not isinstance(made, TorchOptimizer):
            raise UserError(f"{wrong}: it must give a torch.optim.Optimizer, not a {type(made).__name__}")
        return made

    return ClassFactory(name, make)


def of(own: Callable[..., TorchOptimizer], what: str = "optimizer") -> tuple[OptimizerFactory, float]:
    """A factory and the learning rate of an optimizer given as Python has it, not by a name.

    Parameters
    ----------
    own : Callable[..., TorchOptimizer]
        Called with parameters: a class of `torch.optim`, a ``functools.partial`` of one with its arguments, or a
        function. Of Adam, AdamW and SGD with arguments that ours have it is ours, which is faster and stacks.
    what : str
        What it is, for the sentence.

    Raises
    ------
    UserError
        If it makes no optimizer that a step can be made with.
    """
    if not callable(own):
        raise UserError(f"{what}: it must be called with parameters, which a {type(own).__name__} cannot be")

    def make(parameters: list[Tensor]) -> TorchOptimizer:
        try:
            made = own(parameters)
        except Exception as error:  # whatever torch or the user's own class has against these parameters
            raise UserError(f"{what}: it cannot be made for the segment's weights: {_first_line(error)}") from error
        if not isinstance(made, TorchOptimizer):
            raise UserError(f"{what}: it must give a torch.optim.Optimizer, not a {type(made).__name__}")
        return made

    rate = make([torch.zeros(1, requires_grad=True)]).param_groups[0].get("lr")
    if not isinstance(rate, int | float) or not rate > 0:
        raise UserError(f"{what}: its lr = {rate!r} must be a number above 0, as it is eta_0")
    name, arguments = getattr(own, "func", own), getattr(own, "keywords", {})
    if name in _OURS and not getattr(own, "args", ()) and arguments.keys() <= {"lr", *_OURS[name][1]}:
        given = {key: float(value) for key, value in arguments.items() if key != "lr"}
        given.setdefault("weight_decay", WEIGHT_DECAY[_OURS[name][0]])
        return StandardOptimizer(_OURS[name][0], **given), float(rate)
    return ClassFactory(f"{what} {getattr(name, '__name__', name)}", make), float(rate)


_OURS: dict[Any, tuple[str, tuple[str, ...]]] = {
    torch.optim.Adam: ("adam", ("weight_decay",)),
    torch.optim.AdamW: ("adamw", ("weight_decay",)),
    torch.optim.SGD: ("sgd", ("momentum", "weight_decay")),
}
"""Class of torch's -> ours, and the arguments beside lr that it has."""


@torch.enable_grad()
def refusal(factory: OptimizerFactory, parameters: Iterable[Tensor]) -> str:
    """Why an optimizer cannot train these parameters, which stay as they are; empty if it can.

    Tries it: three steps, and the last two once more from its state after the first, as a resumed run does.

    Raises
    ------
    UserError
        If it cannot be made for them.
    """
    if isinstance(factory, StandardOptimizer):
        return ""
    start = [weight.detach().clone().requires_grad_(weight.requires_grad) for weight in parameters]
    optimizer = factory(start)
    if isinstance(optimizer, ClassOptimizer) and (wrong := optimizer.unfit()):
        return wrong
    try:
        with torch.random.fork_rng(devices=[]):
            _steps(optimizer, start, range(1))
            again = [weight.detach().clone().requires_grad_(weight.requires_grad) for weight in start]
            resumed = factory(again)
            resumed.load_state(optimizer.state())
            for one, weights in ((optimizer, start), (resumed, again)):
                torch.manual_seed(0)
                _steps(one, weights, range(1, 3))
    except Exception as error:  # whatever torch or the user's own class stumbles over
        return f"a step of it fails: {_first_line(error)}"
    if all(torch.equal(one, other) for one, other in zip(start, again, strict=True)):
        return ""
    return "it keeps something beside the state of its parameters, from which a checkpoint could not go on"


def _steps(optimizer: Optimizer, weights: Iterable[Tensor], steps: range) -> None:
    weights = list(weights)
    for step in steps:
        for index, weight in enumerate(weights):
            draw = torch.Generator().manual_seed(100 * index + step)
            gradient = torch.randn(weight.shape, generator=draw, dtype=weight.dtype).to(weight.device)
            weight.grad = gradient if weight.requires_grad else None
        optimizer.lr = 1e-3 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()


def _binds(own: Callable[..., Any], parameters: list[Tensor]) -> bool:
    try:
        inspect.signature(own).bind(parameters)
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        return True
    return True


def _needed(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function cannot do without."""
    known = inspect.signature(function).parameters.values()
    return [argument.name for argument in known if argument.default is inspect.Parameter.empty]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _as_tensor(name: str, value: Any) -> tuple[str, Tensor]:
    if isinstance(value, Tensor):
        return name, value
    for kind, (type_, dtype) in _NUMBERS.items():
        if type(value) is type_:
            return f"{name}.{kind}", torch.tensor(value, dtype=dtype)
    raise TypeError(f"its state {name} is a {type(value).__name__}, neither a tensor nor a number")


def _as_value(name: str, slot: Tensor) -> tuple[str, Any]:
    base, dot, kind = name.rpartition(".")
    return (base, slot.item()) if dot and kind in _NUMBERS else (name, slot)
