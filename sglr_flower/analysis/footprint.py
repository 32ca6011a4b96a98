"""What a client holds in memory while it trains, and what its network weighs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_MOMENTS = {"adam": 2, "sgd": 0}
"""Optimizer -> tensors of a weight's size that it keeps for each weight."""


def weight_bytes(segment: nn.Module) -> int:
    """Bytes of a network's weights and buffers: what a message that carries it weighs."""
    return sum(tensor.nbytes for tensor in segment.state_dict().values())


def training_bytes(segment: nn.Module, optimizer: str, batch_size: int, image_size: int) -> int:
    """Bytes that a client's training step needs besides the program itself.

    Weights and buffers, gradients, the optimizer's moments, and the activations that the forward saves for the backward
    (measured, by running it; the images are among them). What is needed for a moment within a kernel is not counted.

    Parameters
    ----------
    segment : nn.Module
        The client segment; stays as it is.
    optimizer : str
        ``adam`` or ``sgd``.
    batch_size : int
        Samples in a step.
    image_size : int
        Pixels of a side of the square images.
    """
    segment = copy.deepcopy(segment).train()
    weights = list(segment.parameters())
    trained = sum(weight.nbytes for weight in weights if weight.requires_grad)
    own = {tensor.untyped_storage().data_ptr() for tensor in segment.state_dict().values()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(batch_size, 3, image_size, image_size, dtype=weights[0].dtype)
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = segment(images)
    saved[output.untyped_storage().data_ptr()] = output.nbytes  # what is sent
    return weight_bytes(segment) + (1 + _MOMENTS[optimizer]) * trained + sum(saved.values())
