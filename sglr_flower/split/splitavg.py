"""SplitAvg: who is active in a step, and which cut gradient every client receives.

Pal et al., arXiv 2112.05929, eq. 15-16: each step the server draws a set C_a of phi*C active clients, averages
*their* cut gradients and broadcasts that one average to them; every other client gets its own gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def num_active(phi: float, num_clients: int) -> int:
    """|C_a| = phi * C (eq. 15), rounded to the nearest whole client, a half upwards."""
    return math.floor(phi * num_clients + 0.5)


def draw_active(clients: Sequence[int], phi: float, generator: torch.Generator) -> tuple[int, ...]:
    """Draw C_a: ``num_active`` of the step's ``clients``, uniformly without replacement, in ascending order."""
    import torch  # here and below: a run-config is read without it, by `sglr run`

    order = torch.randperm(len(clients), generator=generator).tolist()
    return tuple(sorted(clients[k] for k in order[: num_active(phi, len(clients))]))


def in_phase(phase: str, server_round: int, num_rounds: int) -> bool:
    """Whether SplitAvg acts in this round (Table 3's phases).

    Parameters
    ----------
    phase : str
        ``all``, ``first:F`` (the first fraction F of the rounds) or ``last:F``; F in (0, 1].
    server_round : int
        The round, from 1.
    num_rounds : int
        Rounds of the whole run.

    Raises
    ------
    ValueError
        If the phase is not one of these.
    """
    if phase == "all":
        return True
    which, _, text = phase.partition(":")
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if which not in ("first", "last") or not 0 < fraction <= 1:
        raise ValueError("it must be all, first:F or last:F with a fraction F in (0, 1]")
    length = math.floor(fraction * num_rounds + 0.5)
    return server_round <= length if which == "first" else server_round > num_rounds - length


def average(gradients: Mapping[int, Tensor], active: Sequence[int], over: str = "clients") -> Tensor:
    """The one cut gradient that all active clients receive (eq. 16), weighted by delta_i.

    delta_i is client i's share of the active clients' samples, b_i / sum_j b_j, as in eq. 4. Ragged batches: a
    position is averaged over the active clients that have it, their weights re-normalised to sum to one.

    Parameters
    ----------
    gradients : Mapping[int, Tensor]
        Client -> cut gradient of its own batch, shape (b_i, *cut shape).
    active : Sequence[int]
        C_a, not empty.
    over : str
        ``clients``: position by position, result (max b_i, *cut shape). ``clients-and-samples``: over the positions
        too, result (1, *cut shape), which is what Table 6 counts as "+ S(L)".

    Returns
    -------
    Tensor
        In the gradients' dtype and device.
    """
    import torch

    sizes = [len(gradients[i]) for i in active]
    if over == "clients-and-samples":
        # sum_i delta_i * mean_p g_i[p] with delta_i = b_i / sum b: the plain mean over all samples.
        return torch.cat([gradients[i] for i in active]).mean(0, keepdim=True)
    if len(set(sizes)) == 1:
        return torch.stack([gradients[i] for i in active]).mean(0)
    first = gradients[active[0]]
    total = first.new_zeros((max(sizes), *first.shape[1:]))
    weight = first.new_zeros(max(sizes))
    for i, size in zip(active, sizes, strict=True):
        total[:size] += size * gradients[i]
        weight[:size] += size
    return total / weight.view(-1, *[1] * (first.dim() - 1))


def received(mean: Tensor, batch_size: int) -> Tensor:
    """What an active client with ``batch_size`` samples takes from the broadcast average.

    Its first ``batch_size`` positions; an average over samples too (one row) is repeated for each position.
    """
    return mean.expand(batch_size, *mean.shape[1:]) if len(mean) == 1 else mean[:batch_size]
