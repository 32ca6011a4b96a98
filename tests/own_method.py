"""A method of one's own, as a user would write it: the median of the cut gradients in the place of their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sglr_flower import methods, splitlr


def median(gradients: Mapping[int, Tensor], active: Sequence[int], over: str) -> Tensor:
    return torch.stack([gradients[i] for i in active]).median(0).values


def half_the_rate(eta_0: float, num_clients: int, alpha: float) -> float:
    return splitlr.server_lr(eta_0, num_clients, alpha) / 2


robust = methods.Method(server_lr=half_the_rate, cut_gradient=median)
not_a_method = "psl"
