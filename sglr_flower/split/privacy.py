"""Differential privacy for SplitAvg: what is bounded, what is noised, and by how much.

Every random release is a Gaussian mechanism (Dwork & Roth, "The algorithmic foundations of differential privacy", 2014,
appendix A): a tensor that the protected data can move by at most its sensitivity in L2 norm, and noise whose standard
deviation is the *noise multiplier* times that. Which data and against whom, and why it holds over a whole run although
all clients train one server segment, is in docs/privacy.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sglr_flower.split.noise import FRESH, key, noised

if TYPE_CHECKING:
    from sglr_flower.split.plan import RoundPlan

Protects = Literal["updates", "messages"]


@dataclass(frozen=True)
class GaussianDp:
    """The differential privacy of a run.

    Attributes
    ----------
    noise : float
        The noise multiplier, above 0.
    clip : float
        The largest L2 norm of a client's cut gradient, or with ``per_sample`` of each of its samples.
    per_sample : bool
        What ``clip`` bounds. What is protected is a client's whole data either way.
    server_clip : float
        The largest L2 norm of a client's gradient by the server segment's weights; for ``updates``.
    protects : str
        ``updates``: each client's contributions to SplitAvg's average and to the server segment's steps are bounded,
        and these two are noised. ``messages``: every message to a client is bounded as a whole and noised.
    noise_seed : int
        As in `noise.key`.
    """

    noise: float
    clip: float
    per_sample: bool = False
    server_clip: float = 1.0
    protects: Protects = "updates"
    noise_seed: int = FRESH

    def bounded(self, gradient: Tensor) -> Tensor:
        """A cut gradient (b, *cut shape), or with ``per_sample`` each of its rows, with a norm of at most ``clip``."""
        return within(gradient, self.clip) if self.per_sample else within(gradient[None], self.clip)[0]

    def reach(self, size: int) -> float:
        """The largest distance of two `bounded` tensors of ``size`` samples."""
        return 2 * self.clip * (math.sqrt(size) if self.per_sample else 1.0)

    def noisy(self, value: Tensor, sensitivity: float, *name: str | int) -> Tensor:
        """A release of what the protected data can move by ``sensitivity``."""
        return noised(value, self.noise * sensitivity, key(self.noise_seed, *name))

    def releases(self, phi: float) -> int:
        """Releases in one step that count against a client, where SplitAvg acts with ``phi``.

        Of ``updates``: the server's step, and the average, as if the client were active in every step. Of ``messages``:
        the one that the client receives.
        """
        return 2 if self.protects == "updates" and phi > 0 else 1


def within(rows: Tensor, bound: float) -> Tensor:
    """Each row scaled down to an L2 norm of at most ``bound``; zeros in place of a row that is not finite."""
    norms = torch.linalg.vector_norm(rows.double().flatten(1), dim=1)
    shape = (-1, *[1] * (rows.dim() - 1))
    scaled = rows * (bound / norms.clamp(min=bound)).to(rows.dtype).view(shape)
    return torch.where(norms.isfinite().view(shape), scaled, torch.zeros_like(rows))


def average_sensitivity(sizes: Sequence[int], over: str, clip: float, *, per_sample: bool = False) -> float:
    """How far one client can move SplitAvg's average (`splitavg.average`), in L2 norm.

    At position p the average has weights w_ip = b_i / W_p, W_p the sum of b_j over the active clients that have the
    position. Client i's gradient can become any other of its bound, at a distance of at most 2 clip: position by
    position that moves the average by at most 2 clip max_p w_ip, or with every sample bounded by
    2 clip sqrt(sum_p w_ip^2). Over clients and samples the average is sum_i sum_p g_i[p] / B, which moves by at most
    2 clip sqrt(b_i) / B (Cauchy and Schwarz), or 2 clip b_i / B. The largest of these over the active clients.

    Parameters
    ----------
    sizes : Sequence[int]
        b_i of the active clients, not empty.
    over : str
        ``clients`` or ``clients-and-samples``.
    clip : float
        The bound of each one's cut gradient, or with ``per_sample`` of each of its samples.
    """
    if over == "clients-and-samples":
        largest = max(sizes)
        return 2 * clip * (largest if per_sample else math.sqrt(largest)) / sum(sizes)
    totals = [sum(size for size in sizes if size > position) for position in range(max(sizes))]
    shares = [[size / total for total in totals[:size]] for size in sizes]
    return 2 * clip * max(math.hypot(*own) if per_sample else max(own) for own in shares)


def released(
    plan: RoundPlan, step: int, gradients: Mapping[int, Tensor], active: Sequence[int]
) -> tuple[Tensor | None, dict[int, Tensor]]:
    """SplitAvg with differential privacy: the average that active clients receive, and everybody's own gradient.

    Parameters
    ----------
    plan : RoundPlan
        Has ``privacy``.
    step : int
        The step within the round.
    gradients : Mapping[int, Tensor]
        Client -> its cut gradient, (b_i, *cut shape).
    active : Sequence[int]
        C_a; may be empty, and then there is no average.
    """
    dp, place = plan.privacy, (plan.server_round, step)
    assert dp is not None
    own = {client: dp.bounded(gradient) for client, gradient in gradients.items()}
    average = plan.cut_gradient(own, active, plan.average_over) if active else None
    if dp.protects == "messages":
        if average is not None:
            average = dp.noisy(dp.bounded(average), dp.reach(len(average)), "dp-average", *place)
        noisy = {
            client: dp.noisy(gradient, dp.reach(len(gradient)), "dp-own", client, *place)
            for client, gradient in own.items()
            if client not in active
        }
        return average, noisy
    if average is not None:
        sizes = [len(own[client]) for client in active]
        sensitivity = average_sensitivity(sizes, plan.average_over, dp.clip, per_sample=dp.per_sample)
        average = dp.noisy(average, sensitivity, "dp-average", *place)
    # A client's own gradient follows from its own batch and the server segment, whose steps are noised.
    return average, own


def refusal(segment: nn.Module) -> str:
    """Why a server segment cannot keep clients apart; empty if it can.

    Given its weights, what it computes in training of a client's batch must be a function of that batch. Batch norm's
    running statistics are only written then; what else it keeps may be read.
    """
    if not any(weight.requires_grad for weight in segment.parameters()):
        return "its server segment has no weight that is trained, so there is no update to protect (dp-protects)"
    for name, module in segment.named_modules():
        if not isinstance(module, _BatchNorm) and next(module.named_buffers(recurse=False), None) is not None:
            return (
                f"its server segment's part {name or type(module).__name__} keeps a buffer, which may hold other data"
            )
    return ""
