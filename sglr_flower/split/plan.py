"""A round as a value: everything that the nodes and the server have to agree on before its first step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sglr_flower.seeds import generator
from sglr_flower.split import methods, splitavg, splitlr
from sglr_flower.split.codecs import OFF, Codec
from sglr_flower.split.defences import Defence
from sglr_flower.split.loss import Loss
from sglr_flower.split.privacy import GaussianDp

if TYPE_CHECKING:
    from sglr_flower.split.methods import Server

ServerLr = Callable[[float, int, float], float]
"""A rule for the server's learning rate, as `splitlr.server_lr`: (eta_0, number of clients, alpha) -> eta_s."""

CutGradient = Callable[[Mapping[int, Tensor], Sequence[int], str], Tensor]
"""A rule for the cut gradient of active clients, as `splitavg.average`: (client -> gradient, active, over) -> one."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch of training images, uint8 (n, channels, h, w), at random."""


@dataclass(frozen=True)
class RoundPlan:
    """The settings of one training round, the same on every node and on the server.

    Attributes
    ----------
    seed : int
        The run's seed; all draws of the round follow from it.
    server_round : int
        From 1.
    clients : tuple[int, ...]
        The clients that take part, ascending.
    local_epochs : int
        Passes over each client's data.
    batch_size : int
        Samples of one client in one step; its last batch of an epoch may be smaller.
    reshuffle : bool
        Whether the sample order is drawn anew every epoch, or once for the run.
    client_lr : float
        eta_0: the clients' learning rate before the schedule.
    alpha : float
        SplitLr's exponent; 0: off.
    phi : float
        SplitAvg's fraction in this round; 0: off.
    average_over : str
        ``clients`` or ``clients-and-samples``.
    gradient_scale : str
        ``own``: cut gradients of a client's own batch mean (eq. 5); ``joint``: of the concatenated batch's mean.
    loss : Loss
        Of outputs and targets, the mean over the samples.
    server : Server | None
        Makes the server's side; None: there is no server segment (see `sglr_flower.split.methods.Method`).
    sequential : bool
        The clients train one after the other (see `turns`).
    shares_segment : bool
        At the end of the round, or of a turn, the clients' segments go to the server, averaged.
    server_lr : ServerLr
        Rule for the server's rate.
    cut_gradient : CutGradient
        Rule for what active clients receive.
    augment : Augment | None
        Applied to every training batch; None: images as they are.
    client_schedule, server_schedule : splitlr.Schedule
        Factors on eta_0 over the run.
    first_step, round_steps : int
        Which of the round's server steps is the first of this turn, and how many there are; known to the server alone.
    up, down : Codec
        How smashed data and cut gradients travel.
    defence : Defence | None
        What clients do to their smashed data; None: nothing.
    privacy : GaussianDp | None
        What the server does to what it learns and sends; None: nothing.
    """

    seed: int
    server_round: int
    clients: tuple[int, ...]
    local_epochs: int
    batch_size: int
    reshuffle: bool
    client_lr: float
    alpha: float
    phi: float
    average_over: str
    gradient_scale: str
    loss: Loss
    server: Server | None = methods.joint
    sequential: bool = False
    shares_segment: bool = False
    server_lr: ServerLr = splitlr.server_lr
    cut_gradient: CutGradient = splitavg.average
    augment: Augment | None = None
    client_schedule: splitlr.Schedule = splitlr.constant
    server_schedule: splitlr.Schedule = splitlr.constant
    first_step: int = 0
    round_steps: int = 0
    up: Codec = OFF
    down: Codec = OFF
    defence: Defence | None = None
    privacy: GaussianDp | None = None

    def client_rate(self, batch: int = 0, batches: int = 1) -> float:
        """eta_c of a client's step.

        A client's time runs by its own batches: one with fewer samples moves through the same part of a cycle in fewer
        steps, and no node has to know what others host.

        Parameters
        ----------
        batch, batches : int
            Which of the client's batches of the round it is, from 0, and how many it has.
        """
        return self.client_lr * self.client_schedule(self.server_round - 1 + batch / batches)

    def server_rate(self, clients: int, step: int = 0) -> float:
        """eta_s of a step, the ``step``-th of this turn from 0, with the batches of so many ``clients``."""
        done = (self.first_step + step) / self.round_steps if self.round_steps else 0.0
        return self.server_lr(self.client_lr * self.server_schedule(self.server_round - 1 + done), clients, self.alpha)

    def turns(self) -> list[RoundPlan]:
        """The round's parts, one after the other: each client by itself in a sequential method, else all at once."""
        return [replace(self, clients=(client,)) for client in self.clients] if self.sequential else [self]

    def steps(self, sizes: Mapping[int, int]) -> int:
        """Number of steps, given each client's number of samples."""
        return self.local_epochs * max(-(-sizes[client] // self.batch_size) for client in self.clients)

    def sizes_at(self, step: int, samples: Mapping[int, int]) -> dict[int, int]:
        """Who has a batch in a step, and of how many samples.

        Parameters
        ----------
        step : int
            Within the round, from 0.
        samples : Mapping[int, int]
            Client -> number of its training images.

        Returns
        -------
        dict[int, int]
            Client -> batch size of those of ``samples`` that take part and have a batch left, ascending.
        """
        sizes = {}
        for client in sorted(samples.keys() & set(self.clients)):
            epoch, batch = divmod(step, max(1, -(-samples[client] // self.batch_size)))
            size = min(self.batch_size, samples[client] - batch * self.batch_size)
            if epoch < self.local_epochs and size > 0:
                sizes[client] = size
        return sizes

    @property
    def step_lr(self) -> float:
        """eta_s of the round's first step, if all participants are present; 0 without a server segment."""
        if self.server is None:
            return 0.0
        together = getattr(self.server, "together", False) and not self.sequential
        return self.server_rate(len(self.clients) if together else 1)

    def batches(self, client: int, num_samples: int) -> tuple[Tensor, ...]:
        """Sample indices of the client's batches in this round, in order; int64, each of shape (b,).

        A client with fewer samples simply has fewer batches: in later steps it is absent, and nothing is dropped.
        """
        first_epoch = (self.server_round - 1) * self.local_epochs
        batches: list[Tensor] = []
        for epoch in range(first_epoch, first_epoch + self.local_epochs):
            draw = generator(self.seed, "order", client, epoch if self.reshuffle else "once")
            batches.extend(torch.randperm(num_samples, generator=draw).split(self.batch_size))
        return tuple(batches)


def of_method(method: methods.Method, *, alpha: float, phi: float, averages: bool = True, **settings: Any) -> RoundPlan:
    """A round of a method.

    Parameters
    ----------
    method : Method
        Says who learns how.
    alpha, phi : float
        SplitLr's exponent and SplitAvg's fraction, where the method has these remedies and does not say them itself.
    averages : bool
        Whether SplitAvg acts in this round (`splitavg.in_phase`).
    settings : Any
        All else, as `RoundPlan` has it.
    """
    return RoundPlan(
        alpha=(alpha if method.alpha is None else method.alpha) if method.server_lr else 0.0,
        phi=(phi if method.phi is None else method.phi) if method.cut_gradient and averages else 0.0,
        server=method.makes_server,
        sequential=method.sequential,
        shares_segment=method.shares_segment,
        server_lr=method.server_lr or splitlr.server_lr,
        cut_gradient=method.cut_gradient or splitavg.average,
        **settings,
    )


def draw_participants(seed: int, server_round: int, num_clients: int, fraction: float) -> tuple[int, ...]:
    """The clients of one round: ``fraction`` of all (at least one), uniform without replacement, ascending.

    Clients are drawn, not nodes, so that the training does not depend on how clients are spread over nodes.
    """
    if fraction == 1.0:
        return tuple(range(num_clients))
    count = max(1, math.floor(fraction * num_clients + 0.5))
    order = torch.randperm(num_clients, generator=generator(seed, "participants", server_round))
    return tuple(sorted(order[:count].tolist()))


def spread(num_clients: int, num_nodes: int) -> list[tuple[int, ...]]:
    """Which clients each node hosts: consecutive ones, as evenly as can be; the first nodes have one more."""
    share, more = divmod(num_clients, num_nodes)
    starts = [node * share + min(node, more) for node in range(num_nodes + 1)]
    return [tuple(range(start, end)) for start, end in itertools.pairwise(starts)]
