"""Loss and gradient along the step that a run's optimizer makes: Santurkar et al., arXiv 1805.11604, Figure 4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglr_flower.studies.convergence.point import Batches, Point, flat, forward, grad, metric, update

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the step at which loss and gradient are looked at."""


@dataclass(frozen=True)
class Along:
    """Loss and gradient along the step that the run's optimizer makes, on the step's own batches; means over steps.

    Attributes
    ----------
    losses : tuple[float, ...]
        Loss at 0 and at `MULTIPLES` of the step.
    smoothness : float
        max ||grad L(w + t u) - grad L(w)|| / ||t u|| over the multiples t: the local Lipschitz constant of the gradient
        along the update u, Euclidean (Santurkar et al., arXiv 1805.11604, Figure 4: "effective beta-smoothness").
    rate_smoothness : float
        eta_c times the same in the metric of the bound, which asks for 1 at most.
    """

    losses: tuple[float, ...]
    smoothness: float
    rate_smoothness: float


def along_step(
    point: Point, batches: Batches, number: int, server: Sequence[Tensor], received: Mapping[int, Sequence[Tensor]]
) -> Along:
    """Loss and gradient at multiples of a step.

    Parameters
    ----------
    point : Point
        From where; its weights are moved, and are back at the end but for rounding.
    batches : Batches
        The step's data, on which loss and gradient are computed.
    number : int
        Of the step: its random numbers.
    server : Sequence[Tensor]
        The gradient that the server's optimizer takes, of each of its trained parameters.
    received : Mapping[int, Sequence[Tensor]]
        Client -> the same of its own.
    """
    plan = point.plan
    sides = [point.server, *(point.clients[client] for client in batches)]
    updates = [update(point.server, point.server_optimizer or point.optimizer, server, plan.server_rate(len(batches)))]
    updates += [
        update(point.clients[client], point.optimizer, received[client], plan.client_rate()) for client in batches
    ]
    kappa, weights = metric(point, batches)
    scales = [kappa, *(1 / weights[client] for client in batches)]
    parameters = [side.parameters for side in sides]
    start = [[parameter.detach().clone() for parameter in own] for own in parameters]
    moved = [flat(own).double() for own in updates]

    def at(multiple: float) -> tuple[float, list[Tensor]]:
        with torch.no_grad():
            for own, before, added in zip(parameters, start, updates, strict=True):
                for parameter, value, change in zip(own, before, added, strict=True):
                    parameter.copy_(value + multiple * change)
        loss, _ = forward(point, batches, number)
        gradient = grad(loss, [parameter for own in parameters for parameter in own])
        pieces = iter(gradient)
        return loss.item(), [flat([next(pieces) for _ in own]).double() for own in parameters]

    loss, before = at(0.0)
    losses, plain, weighted = [loss], [0.0], [0.0]
    for multiple in MULTIPLES:
        loss, after = at(multiple)
        losses.append(loss)
        turned = [(new - old).square().sum().item() for new, old in zip(after, before, strict=True)]
        went = [multiple**2 * step.square().sum().item() for step in moved]
        if any(went):
            plain.append(math.sqrt(sum(turned) / sum(went)))
            weighted.append(
                math.sqrt(
                    sum(m * part for m, part in zip(scales, turned, strict=True))
                    / sum(part / m for m, part in zip(scales, went, strict=True))
                )
            )
    at(0.0)
    return Along(tuple(losses), max(plain), plan.client_rate() * max(weighted))


def mean(alongs: Sequence[Along]) -> Along:
    """The mean of several, figure by figure."""
    count = len(alongs)
    return Along(
        losses=tuple(sum(losses) / count for losses in zip(*(along.losses for along in alongs), strict=True)),
        smoothness=sum(along.smoothness for along in alongs) / count,
        rate_smoothness=sum(along.rate_smoothness for along in alongs) / count,
    )
