"""How much a client computes, with the whole network for comparison: Table 4 of arXiv 2112.05929."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

_BATCH = 2  # batch norm over a single value has nothing to normalise


@dataclass(frozen=True)
class Compute:
    """Floating-point operations of training on one sample, forward and backward.

    Attributes
    ----------
    client : int
        Of the client segment.
    whole : int
        Of the whole network, as in centralised or federated learning.
    """

    client: int
    whole: int

    @property
    def ratio(self) -> float:
        """The client segment's share of the whole."""
        return self.client / self.whole


def training_flops(network: nn.Sequential, cut: int, image_size: int) -> Compute:
    """Count the operations of one training step, by running it, for one sample.

    PyTorch's counter counts convolutions, linear layers and attention, two operations for a multiply-add, and in the
    backward pass only the gradients that are really computed: those of weights, and of activations except the images.
    It does not count biases, pooling, normalisation, activation functions, the loss, or the optimizer.

    Parameters
    ----------
    network : nn.Sequential
        The whole network, logits (n, classes); it stays as it is.
    cut : int
        Number of stages of the client segment, from 1 to one less than all.
    image_size : int
        Pixels of a side of the square images.
    """
    network = copy.deepcopy(network).train()
    weight = next(network.parameters())
    images = torch.zeros(_BATCH, 3, image_size, image_size, dtype=weight.dtype, device=weight.device)
    with torch.random.fork_rng(devices=[]):  # dropout must not move the caller's random numbers
        return Compute(client=_client_flops(network[:cut], images), whole=_whole_flops(network, images))


def _client_flops(segment: nn.Sequential, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        smashed = segment(images)
        smashed.backward(torch.ones_like(smashed))  # any cut gradient
    return int(counter.get_total_flops()) // _BATCH


def _whole_flops(network: nn.Sequential, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(images), torch.zeros(_BATCH, dtype=torch.int64, device=images.device)).backward()
    return int(counter.get_total_flops()) // _BATCH
