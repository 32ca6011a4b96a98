"""What a convergence bound of split learning speaks of, measured at one point of a run: docs/convergence.md.

Gradients are compared in the metric of the bound, in which a step of server and clients at their different rates is one
step of SGD: the server's block weighs kappa = eta_s / eta_c, and client i's own gradient delta_i = b_i / N (1, where
``cut-gradient-scale`` is ``joint``).

Expectations over batches are estimated without bias: of draws a_1 ... a_M the squared norm of their mean is too large
by the variance over M, so norms and products of expectations are taken from pairs of *different* draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglr_flower.seeds import generator
from sglr_flower.split import splitavg
from sglr_flower.studies.convergence.point import Batches, Point, Side, flat, forward, grad, metric, untouched
from sglr_flower.studies.convergence.smoothness import Along, along_step, mean


@dataclass(frozen=True)
class CutGradients:
    """A client's own cut gradient beside SplitAvg's average; means over active clients and batches.

    Attributes
    ----------
    active : int
        n, the active clients of a step.
    own_norm, average_norm : float
        Euclidean norms.
    cosine : float
        Of the angle between the two; 1 / sqrt(n) where the clients' gradients are of one length and orthogonal.
    """

    active: int
    own_norm: float
    average_norm: float
    cosine: float


@dataclass(frozen=True)
class Gradients:
    """The joint gradient and what a step takes for it, in the metric of the bound.

    Attributes
    ----------
    norm2 : float
        ||grad F||^2, of server and clients; an unbiased estimate, so it may be below 0 where noise outweighs it.
    client_norm2 : float
        The clients' part of it.
    variance : float
        sigma^2 of a step's direction from batch to batch, SplitAvg's draw of active clients included.
    own_variance : float
        What it would be if all clients used their own cut gradients.
    bias2 : float
        ||b||^2 of the direction, which SplitAvg brings; unbiased as ``norm2``.
    kept : float
        <expected direction, grad F> / ||grad F||^2 in the clients' part: how much of a client's own gradient is left.
    kept_error : float
        Its standard error over the batches (jackknife).
    """

    norm2: float
    client_norm2: float
    variance: float
    own_variance: float
    bias2: float
    kept: float
    kept_error: float


@dataclass(frozen=True)
class Spread:
    """How far the client segments are apart: 0 if they are the same, near sqrt(1 - 1/C) if they have nothing in common.

    Attributes
    ----------
    weights : float
        Root mean square distance of the trained weights to their mean, relative to their root mean square norm.
    function : float
        The same of the smashed data that the clients make of the same images, in evaluation mode.
    """

    weights: float
    function: float


def relative_spread(vectors: Sequence[Tensor]) -> float:
    """sqrt(mean ||v_i - mean v||^2 / mean ||v_i||^2) of tensors of one shape; 0 of zeros."""
    stacked = torch.stack([vector.detach().double().flatten() for vector in vectors])
    size = stacked.square().sum(1).mean().item()
    apart = (stacked - stacked.mean(0)).square().sum(1).mean().item()
    return math.sqrt(apart / size) if size else 0.0


@torch.no_grad()
def spread(clients: Mapping[int, Side], images: Tensor) -> Spread:
    """How far the clients' segments are apart, in weights and on ``images`` (n, channels, h, w)."""
    with untouched(side.segment for side in clients.values()):
        smashed = [side.segment.eval()(images) for side in clients.values()]
    return Spread(
        weights=relative_spread([flat(side.parameters) for side in clients.values()]),
        function=relative_spread(smashed),
    )


@dataclass(frozen=True)
class _Step:
    """A step from a point.

    Attributes
    ----------
    loss : float
        Of the joint batch.
    active : tuple[int, ...]
        C_a.
    cut_own, cut_received : dict[int, Tensor]
        Client -> its own cut gradient, and what it received, (b_i, *cut shape).
    server : list[Tensor]
        The server's gradient, of each of its parameters.
    own, received : dict[int, list[Tensor]]
        Client -> the gradient of its parameters from either.
    """

    loss: float
    active: tuple[int, ...]
    cut_own: dict[int, Tensor]
    cut_received: dict[int, Tensor]
    server: list[Tensor]
    own: dict[int, list[Tensor]]
    received: dict[int, list[Tensor]]


def measure(point: Point, steps: Sequence[Batches]) -> tuple[CutGradients | None, Gradients, Along]:
    """Measure at a point.

    Parameters
    ----------
    point : Point
        Stays as it is.
    steps : Sequence[Batches]
        M >= 3 steps' data, drawn independently, with the same batch sizes.

    Returns
    -------
    CutGradients | None, Gradients, Along
        The first is None where no client is active.
    """
    cut: list[tuple[float, float, float]] = []
    rows: dict[str, list[Tensor]] = {"server": [], "own": [], "received": []}
    alongs: list[Along] = []
    kappa, weights = metric(point, steps[0])
    with untouched([point.server.segment, *(side.segment for side in point.clients.values())]):
        for number, batches in enumerate(steps):
            made = _step(point, batches, number)
            cut += [_compared(made.cut_own[i], made.cut_received[i]) for i in made.active]
            rows["server"].append(math.sqrt(kappa) * flat(made.server).cpu())
            for name, gradients in (("own", made.own), ("received", made.received)):
                rows[name].append(torch.cat([math.sqrt(weights[i]) * flat(gradients[i]).cpu() for i in gradients]))
            alongs.append(along_step(point, batches, number, made.server, made.received))
    active = len(made.active)
    found = CutGradients(active, *(sum(column) / len(cut) for column in zip(*cut, strict=True))) if cut else None
    return found, _gradients({name: torch.stack(found) for name, found in rows.items()}), mean(alongs)


def _compared(own: Tensor, average: Tensor) -> tuple[float, float, float]:
    """Both norms and the cosine between; 0 where one is nothing."""
    left, right = own.double().flatten(), average.double().flatten()
    norms = left.norm().item(), right.norm().item()
    return *norms, (left @ right).item() / math.prod(norms) if all(norms) else 0.0


def _step(point: Point, batches: Batches, number: int) -> _Step:
    """Forward, backward and SplitAvg as in the engine, with both cut gradients for every client."""
    plan = point.plan
    loss, smashed = forward(point, batches, number)
    cuts = list(smashed.values())
    gradients = grad(loss, [*cuts, *point.server.parameters])
    samples = sum(len(output) for output in cuts)
    own = {
        client: gradient * (samples / len(gradient)) if plan.gradient_scale == "own" else gradient
        for client, gradient in zip(smashed, gradients, strict=False)
    }
    draw = generator(plan.seed, "analyze", "splitavg", plan.server_round, number)
    active = splitavg.draw_active(tuple(own), plan.phi, draw)
    received = dict(own)
    if active:
        mean = plan.cut_gradient(own, active, plan.average_over)
        received |= {client: splitavg.received(mean, len(own[client])) for client in active}
    through = {
        client: [grad(smashed[client], point.clients[client].parameters, gradient) for gradient in both]
        for client, both in ((client, (own[client], received[client])) for client in own)
    }
    return _Step(
        loss=loss.item(),
        active=active,
        cut_own=own,
        cut_received=received,
        server=gradients[len(cuts) :],
        own={client: both[0] for client, both in through.items()},
        received={client: both[1] for client, both in through.items()},
    )


def _gradients(rows: Mapping[str, Tensor]) -> Gradients:
    """From rows of M draws each, (M, numbers), weighted by the metric's roots."""
    server, own, received = (rows[name].double() for name in ("server", "own", "received"))
    difference = received - own
    products = {
        "server": server @ server.T,
        "own": own @ own.T,
        "received": received @ received.T,
        "both": received @ own.T,
        "bias": difference @ difference.T,
    }
    mean = {name: _of_expectations(matrix) for name, matrix in products.items()}
    noise = {name: matrix.diagonal().mean().item() - mean[name] for name, matrix in products.items()}
    kept, error = _ratio(products["both"], products["own"])
    return Gradients(
        norm2=mean["server"] + mean["own"],
        client_norm2=mean["own"],
        variance=noise["server"] + noise["received"],
        own_variance=noise["server"] + noise["own"],
        bias2=mean["bias"],
        kept=kept,
        kept_error=error,
    )


def _of_expectations(products: Tensor) -> float:
    """<E a, E b> from the products <a_k, b_l> of M draws, (M, M): the mean over different draws, k != l."""
    count = len(products)
    return (products.sum() - products.diagonal().sum()).item() / (count * (count - 1))


def _ratio(above: Tensor, below: Tensor) -> tuple[float, float]:
    """A ratio of two such expectations, and its standard error by leaving out one draw after the other."""
    count = len(below)
    ratio = _quotient(above, below)
    kept = [[k for k in range(count) if k != out] for out in range(count)]
    without = torch.tensor([_quotient(above[k][:, k], below[k][:, k]) for k in kept], dtype=torch.float64)
    return ratio, math.sqrt((count - 1) * without.var(correction=0).item())


def _quotient(above: Tensor, below: Tensor) -> float:
    denominator = _of_expectations(below)
    return _of_expectations(above) / denominator if denominator else math.nan
