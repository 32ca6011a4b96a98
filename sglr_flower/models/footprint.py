"""What a client holds in memory while it trains, and what its network weighs."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sglr_flower.data.inputs import Inputs

_BATCH = 2  # batch norm over a single value has nothing to normalise


@dataclass(frozen=True)
class Footprint:
    """Bytes that a client's training step needs besides the program itself.

    What is needed for a moment within a kernel is not counted.

    Attributes
    ----------
    weights : int
        Weights and buffers.
    gradients : int
        Of the weights that are trained.
    optimizer : int
        What it keeps, such as moments.
    activations : int
        What the forward saves for the backward, and the smashed data; the inputs are among them.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def weight_bytes(segment: nn.Module) -> int:
    """Bytes of a network's weights and buffers: what a message that carries it weighs."""
    return sum(tensor.nbytes for tensor in segment.state_dict().values())


def footprint(segment: nn.Module, optimizer: int, batch_size: int, inputs: Inputs) -> Footprint:
    """Measure what a client's training step needs, by running its forward.

    That is done with a few samples: saved is an amount for each of them, and some for all.

    Parameters
    ----------
    segment : nn.Module
        The client segment; stays as it is.
    optimizer : int
        Bytes that its optimizer keeps (`OptimizerFactory.nbytes`).
    batch_size : int
        Samples in a step.
    inputs : Inputs
        What a sample's input is.
    """
    segment = copy.deepcopy(segment).train()
    trained = sum(weight.nbytes for weight in segment.parameters() if weight.requires_grad)
    few, more = (_saved(segment, count, inputs) for count in (_BATCH, _BATCH + 1))
    return Footprint(
        weights=weight_bytes(segment),
        gradients=trained,
        optimizer=optimizer,
        activations=few + (batch_size - _BATCH) * (more - few),
    )


def training_bytes(segment: nn.Module, optimizer: int, batch_size: int, inputs: Inputs) -> int:
    """The whole `footprint`."""
    return footprint(segment, optimizer, batch_size, inputs).total


def _saved(segment: nn.Module, count: int, inputs: Inputs) -> int:
    """Bytes of activations with a batch of ``count`` samples."""
    own = {tensor.untyped_storage().data_ptr() for tensor in segment.state_dict().values()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weight = next(segment.parameters())
    batch = inputs.example(count, weight.dtype, weight.device)
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = segment(batch)
    saved[output.untyped_storage().data_ptr()] = output.nbytes  # what is sent
    return sum(saved.values())
