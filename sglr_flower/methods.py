"""The methods by name: each a composition of the two rules that distinguish them.

All four are parallel split learning; they differ in the server's learning rate and in the cut gradient sent back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglr_flower import splitavg, splitlr
from sglr_flower.split.plan import RoundPlan, draw_participants

if TYPE_CHECKING:  # config validates method names with this module
    from sglr_flower.config import RunConfig


@dataclass(frozen=True)
class Method:
    """Which of the paper's two remedies a method uses (arXiv 2112.05929, Algorithm 1).

    Attributes
    ----------
    split_lr : bool
        The server's rate is accelerated by ``splitlr-alpha`` (eq. 13); otherwise alpha is 0.
    split_avg : bool
        Cut gradients are averaged over ``splitavg-phi`` of the clients (eq. 16); otherwise phi is 0.
    """

    split_lr: bool
    split_avg: bool


_METHODS = {
    "sglr": Method(split_lr=True, split_avg=True),
    "slr": Method(split_lr=True, split_avg=False),
    "sgl": Method(split_lr=False, split_avg=True),
    "psl": Method(split_lr=False, split_avg=False),
}


def get(name: str) -> Method:
    """Look a method up.

    Raises
    ------
    ValueError
        If it is unknown; the message lists the known ones.
    """
    try:
        return _METHODS[name]
    except KeyError:
        raise ValueError(f"it must be one of {', '.join(_METHODS)}") from None


def plan(config: RunConfig, server_round: int) -> RoundPlan:
    """The method's round ``server_round`` (from 1) as a value: who takes part, at which rates, what is averaged."""
    method = get(config.method)
    acts = method.split_avg and splitavg.in_phase(config.splitavg_phase, server_round, config.num_server_rounds)
    factor = splitlr.schedule_factor(config.lr_schedule, server_round, config.num_server_rounds)
    return RoundPlan(
        seed=config.seed,
        server_round=server_round,
        clients=draw_participants(config.seed, server_round, config.num_clients, config.fraction_train),
        local_epochs=config.local_epochs,
        batch_size=config.batch_size,
        reshuffle=config.sample_order == "every-epoch",
        client_lr=config.client_lr * factor,
        alpha=config.splitlr_alpha if method.split_lr else 0.0,
        phi=config.splitavg_phi if acts else 0.0,
        average_over=config.splitavg_over,
        gradient_scale=config.cut_gradient_scale,
        loss=config.loss,
    )
