"""The optimizers of both sides, and their state as flat named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def build(name: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """``adam`` (beta 0.9/0.999, eps 1e-8: Kingma & Ba, arXiv 1412.6980) or ``sgd`` without momentum.

    The rate is 0 until `set_lr`: every step sets its own.
    """
    group = [{"params": list(parameters)}]  # a group may be empty, unlike a list: the server segment of FedAvg is
    if name == "adam":
        # fused: the same update in one kernel for all parameters instead of several per parameter.
        return torch.optim.Adam(group, lr=0.0, fused=True)
    return torch.optim.SGD(group, lr=0.0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def flat_state(segment: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and optimizer state as tensors named ``segment.NAME`` and ``optimizer.INDEX.NAME``.

    The tensors are the live ones, not copies.
    """
    state = {f"segment.{name}": tensor for name, tensor in segment.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        state.update({f"optimizer.{index}.{name}": tensor for name, tensor in values.items()})
    return state


def segment_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The segment's own ``state_dict`` (weights and buffers) out of a flat state."""
    return {name.removeprefix("segment."): tensor for name, tensor in state.items() if name.startswith("segment.")}


def load_flat_state(segment: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Copy what `flat_state` gave into a segment and optimizer of the same shapes."""
    weights: dict[str, Tensor] = {}
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        kind, rest = key.split(".", 1)
        if kind == "segment":
            weights[rest] = tensor
        else:
            index, name = rest.split(".", 1)
            slots.setdefault(int(index), {})[name] = tensor.clone()
    segment.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
