"""A point of a run, and a step from there: what the measurements of convergence start from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sglr_flower.seeds import seed_torch
from sglr_flower.split.optimizers import OptimizerFactory, Slots
from sglr_flower.split.plan import RoundPlan

Batches = Mapping[int, tuple[Tensor, Tensor]]
"""A step's data: client -> inputs (b_i, channels, h, w) and labels int64 (b_i,), in client order."""


@dataclass(frozen=True)
class Side:
    """A segment at a point of a run.

    Attributes
    ----------
    segment : nn.Module
        Stays as it is.
    slots : Mapping[int, Slots]
        Its optimizer's state, by index of the parameter.
    """

    segment: nn.Module
    slots: Mapping[int, Slots]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [parameter for parameter in self.segment.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class Point:
    """A point of a run: its weights, and how it makes a step from there.

    Attributes
    ----------
    clients : Mapping[int, Side]
        Those that take part in the step, ascending.
    server : Side
        The server segment.
    plan : RoundPlan
        Gives rates, SplitAvg and the loss.
    optimizer : str
        ``adam`` or ``sgd``.
    """

    clients: Mapping[int, Side]
    server: Side
    plan: RoundPlan
    optimizer: OptimizerFactory
    server_optimizer: OptimizerFactory | None = None


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Several tensors as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors]) if tensors else torch.empty(0)


def grad(output: Tensor, inputs: Sequence[Tensor], upstream: Tensor | None = None) -> list[Tensor]:
    """Of each input, zeros where it has no part in the output; the graph stays.

    ``upstream`` is the gradient of the output, None of a loss.
    """
    found = torch.autograd.grad(output, inputs, upstream, retain_graph=True, materialize_grads=True, allow_unused=True)
    return list(found)


def metric(point: Point, batches: Batches) -> tuple[float, dict[int, float]]:
    """Kappa, and client -> what the square of its own gradient weighs."""
    samples = sum(len(labels) for _, labels in batches.values())
    kappa = point.plan.server_rate(len(batches)) / point.plan.client_rate()
    own = point.plan.gradient_scale == "own"
    return kappa, {i: len(labels) / samples if own else 1.0 for i, (_, labels) in batches.items()}


def forward(point: Point, batches: Batches, number: int) -> tuple[Tensor, dict[int, Tensor]]:
    """The joint loss and client -> its smashed data, with their graph; dropout's masks are the step's."""
    smashed = {}
    for client, (inputs, _) in batches.items():
        seed_torch(inputs.device, point.plan.seed, "analyze", client, point.plan.server_round, number)
        smashed[client] = point.clients[client].segment.train()(inputs)
    together, labels = torch.cat(list(smashed.values())), torch.cat([labels for _, labels in batches.values()])
    seed_torch(together.device, point.plan.seed, "analyze", "server", point.plan.server_round, number)
    return point.plan.loss(point.server.segment.train()(together), labels), smashed


def update(side: Side, optimizer: OptimizerFactory, gradients: Sequence[Tensor], lr: float) -> list[Tensor]:
    """What an optimizer's step would add to a side's trained parameters."""
    copies = [parameter.detach().clone().requires_grad_(parameter.requires_grad) for parameter in _all(side)]
    moved = [parameter for parameter in copies if parameter.requires_grad]
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.grad = gradient.clone()
    stepping = optimizer(copies)
    stepping.load_state(side.slots)
    stepping.lr = lr
    stepping.step()
    return [after.detach() - before.detach() for after, before in zip(moved, side.parameters, strict=True)]


def _all(side: Side) -> list[nn.Parameter]:
    return list(side.segment.parameters())


@contextlib.contextmanager
def untouched(segments: Iterable[nn.Module]) -> Iterator[None]:
    """Put weights, batch-norm statistics and modes back as they were, and the caller's random numbers."""
    kept = [
        (segment, segment.training, {name: tensor.clone() for name, tensor in segment.state_dict().items()})
        for segment in segments
    ]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for segment, training, state in kept:
            segment.load_state_dict(state)
            segment.train(training)
