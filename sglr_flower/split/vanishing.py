"""Cut gradients whose mean over a joint batch is zero, so that SplitAvg over clients and samples teaches nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

_COUNT = 16  # of which a mean of unrelated gradients has a quarter of their length
_ROUNDING = 1e-8  # in float64; what does not vanish is above a tenth


def mean_vanishes(segment: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the mean of the samples' cut gradients is zero, whatever the loss.

    It is where batch norm subtracts the batch's mean before anything that is not linear has come: a constant added to
    the smashed data of all samples is not seen, so the loss does not change along it. The proof is in
    docs/convergence.md.

    Parameters
    ----------
    segment : torch.nn.Module
        The server segment; a copy of it is tried.
    shape : sequence of int
        That of one sample's smashed data.
    """
    draw = torch.Generator().manual_seed(0)
    server = copy.deepcopy(segment).cpu().double().train()
    cut = torch.randn(_COUNT, *shape, generator=draw, dtype=torch.float64, requires_grad=True)
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = server(cut)
    except Exception:  # one's own that computes in a dtype of its own: nothing is known of it
        return False
    (outputs * torch.randn(outputs.shape, generator=draw, dtype=torch.float64)).sum().backward()
    if cut.grad is None:
        return False
    length: float = cut.grad.flatten(1).norm(dim=1).mean().item()
    mean: float = cut.grad.mean(0).norm().item()
    return length > 0 and mean < _ROUNDING * length
