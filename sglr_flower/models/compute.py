"""How much a client computes, with the whole network for comparison: Table 4 of arXiv 2112.05929."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sglr_flower.data.inputs import Inputs
from sglr_flower.data.samples import Tensors
from sglr_flower.models import upstream
from sglr_flower.models.formulas import FORMULAS

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


class _Counter(TorchDispatchMode):
    """Adds up the operations of what is computed in its context.

    PyTorch's own counter imports its compiler when it is first used: a second, and 150 MB, in the server's process.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; to have it skipped is what would import it

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


def segment_flops(segment: nn.Sequential, inputs: Inputs) -> tuple[int, int]:
    """Operations of a client segment's forward, and of its backward, on one sample; counted as by `training_flops`.

    Parameters
    ----------
    segment : nn.Sequential
        The client segment, or a network that is not cut; it stays as it is.
    inputs : Inputs
        What a sample's input is.
    """
    segment = _on_cpu(segment)
    images = _batch(segment, inputs)
    with torch.random.fork_rng(devices=[]):
        counter = _Counter()
        with counter, torch.no_grad():
            segment(images)
        forward = counter.flops // _BATCH
        return forward, _client_flops(segment, images) - forward


def training_flops(network: nn.Sequential, cut: int, inputs: Inputs) -> Compute:
    """Count the operations of one training step, by running it, for one sample.

    Counted are convolutions, linear layers and other matrix products, attention and LSTM layers (see `formulas`), two
    operations for a multiply-add, and in the backward pass only the gradients that are really computed: those of
    weights, and of activations except the images. Not counted are biases, pooling, normalisation, activation
    functions, the loss, and the optimizer. It is run on the CPU wherever the network lies, because by which operators
    attention is computed, and so how often its scores are, depends on the device.

    Parameters
    ----------
    network : nn.Sequential
        The whole network; it stays as it is.
    cut : int
        Number of stages of the client segment, from 1 to one less than all.
    inputs : Inputs
        What a sample's input is.
    """
    network = _on_cpu(network)
    images = _batch(network, inputs)
    with torch.random.fork_rng(devices=[]):  # dropout must not move the caller's random numbers
        return Compute(client=_client_flops(network[:cut], images), whole=_whole_flops(network, images))


def _on_cpu(network: nn.Sequential) -> nn.Sequential:
    return copy.deepcopy(network).cpu().train()


def _batch(network: nn.Module, inputs: Inputs) -> Tensors:
    return inputs.example(_BATCH, next(network.parameters()).dtype)


def _client_flops(segment: nn.Sequential, images: Tensors) -> int:
    counter = _Counter()
    with counter:
        smashed = segment(images)
        upstream.scalar(smashed, torch.ones_like(smashed)).backward()  # any cut gradient
    return counter.flops // _BATCH


def _whole_flops(network: nn.Sequential, images: Tensors) -> int:
    counter = _Counter()
    with counter:
        output = network(images)
        upstream.scalar(output, torch.ones_like(output)).backward()  # of any loss, which is not counted
    return counter.flops // _BATCH
