"""A segment and its optimizer as flat named tensors, which is how they are kept and travel."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sglr_flower.split.optimizers.optimizer import Optimizer, Slots


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
