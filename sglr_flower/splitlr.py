"""SplitLr and the learning-rate schedules.

SplitLr (Pal et al., arXiv 2112.05929, eq. 12-13) accelerates the server: a step's server batch |B_s| is C times
a client's, so the server's rate is eta_s = eta_0 * C^alpha while the clients keep eta_c = eta_0.
"""

from __future__ import annotations

import math


def server_lr(eta_0: float, num_clients: int, alpha: float) -> float:
    """SplitLr, eq. 13: the server's learning rate eta_s = eta_0 * C^alpha.

    Parameters
    ----------
    eta_0 : float
        The clients' learning rate (after the schedule).
    num_clients : int
        C, the clients whose batches make up this step's server batch.
    alpha : float
        Exponent in [0, 2]; 0 leaves the rate at ``eta_0``.
    """
    return float(eta_0 * num_clients**alpha)


def schedule_factor(schedule: str, server_round: int, num_rounds: int) -> float:
    """Factor in (0, 1] on both sides' learning rates in one round.

    ``constant`` is 1. ``step`` is 0.1 once 80 % of the rounds are done (the authors' code). ``cosine`` falls
    from 1 in the first round towards 0 after the last (Loshchilov & Hutter, arXiv 1608.03983, without restarts).

    Parameters
    ----------
    schedule : str
        ``constant``, ``step`` or ``cosine``.
    server_round : int
        The round, from 1.
    num_rounds : int
        Rounds of the whole run.

    Raises
    ------
    ValueError
        If the schedule is unknown.
    """
    done = (server_round - 1) / num_rounds
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        # In whole numbers: 4/5 of the rounds done, without a float that falls just short of 0.8.
        return 0.1 if 5 * (server_round - 1) >= 4 * num_rounds else 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError("it must be constant, step or cosine")
