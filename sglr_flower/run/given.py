"""What a caller of `SplitLearning` gives, looked at before it is used: a mistake is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sglr_flower import imports
from sglr_flower.data.inputs import is_image
from sglr_flower.data.samples import Samples, Tensors, one
from sglr_flower.data.source import guess, read_as, samples_of
from sglr_flower.data.targets import Kind
from sglr_flower.errors import UserError
from sglr_flower.split import optimizers
from sglr_flower.split.methods import Method
from sglr_flower.split.optimizers import OptimizerFactory


def check_state(owner: str, state: Mapping[str, Tensor], segment: nn.Module, factory: OptimizerFactory) -> None:
    """Refuse a state of another segment, or of another optimizer."""
    wanted = {name: tensor.shape for name, tensor in segment.state_dict().items()}
    found = {name: tensor.shape for name, tensor in optimizers.segment_weights(state).items()}
    if found != wanted:
        raise UserError(f"state: the weights of {owner} are not those of this network")
    weight = torch.zeros(2, 2, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    tried = factory([weight])
    tried.lr = 1e-3
    tried.step()
    known = set(tried.state().get(0, {}))
    slots = {name.split(".", 2)[2] for name in state if name.startswith("optimizer.")}
    if slots and slots != known:
        raise UserError(f"state: the optimizer of {owner} keeps {sorted(slots)}, and this one {sorted(known)}")


def clients_of(clients: Sequence[Any], method: Method, targets: Kind | None) -> tuple[dict[int, Samples], Kind]:
    """Client -> its samples, and the kind of their targets, which must be the same of all."""
    if not isinstance(clients, Sequence) or len(clients) == 0:
        raise UserError("clients: it must be a list of at least one client's data")
    if method.pooled and len(clients) > 1:
        raise UserError("method: with one that pools all data there must be one client, which has them all")
    found = {number: samples_of(f"clients[{number}]", own) for number, own in enumerate(clients)}
    first = torch.zeros(1, dtype=torch.int64)
    kinds = {number: guess([own.take(first).targets]) for number, own in found.items()} if targets is None else {}
    for number, own in kinds.items():
        if type(own) is not type(kinds[0]):
            names = [type(each).__name__ for each in (own, kinds[0])]
            raise UserError(f"clients[{number}]: its targets are {names[0]}, and those of clients[0] {names[1]}")
    kind = kinds[0] if targets is None else targets
    return {number: read_as(own, kind) for number, own in found.items()}, kind


def device_of(chosen: torch.device | str | None) -> torch.device:
    """The device of this name, which torch must be able to compute on; None: a GPU if there is one."""
    try:
        device = torch.device(chosen or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device = {chosen!r}: torch cannot compute there: {_first_line(error)}") from None
    return device


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuse what is not of a kind."""
    if not isinstance(value, kind):
        raise UserError(f"{name}: it must be a {kind.__module__}.{kind.__name__}, not a {type(value).__name__}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def made(make: Callable[[], nn.Module], name: str, what: str) -> nn.Module:
    """The module that the user's function makes."""
    if isinstance(make, nn.Module) or not callable(make):
        raise UserError(f"{name}: it must be a function that makes {what}, not a {type(make).__name__}")
    try:
        module = make()
    except UserError:
        raise
    except Exception as error:  # whatever the user's own function does
        raise UserError(f"{name}: making {what} fails with {imports.told(error, make)}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{name}: it must give a torch.nn.Module, not an {type(module).__name__}")
    return module


def check_counts(**counts: tuple[int, int]) -> None:
    """Refuse numbers that are not whole, or below their least: ``name=(number, least)``."""
    for name, (count, least) in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise UserError(f"{name} = {count!r}: it must be a whole number from {least} up")


def channels_last(inputs: Tensors) -> str:
    """What is said of images whose channels are their last dimension; empty of other inputs."""
    stored = one(inputs)
    if stored.ndim != 4 or stored.shape[3] not in (1, 3) or is_image(stored):
        return ""
    return f" (inputs of shape {tuple(stored.shape[1:])}: images have their channels first, inputs.permute(0, 3, 1, 2))"
