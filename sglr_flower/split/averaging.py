"""Weighted averages of whole segments (FedAvg's aggregation), and taking an average back.

McMahan et al., arXiv 1602.05629, Algorithm 1; the layer-wise average of client segments, arXiv 2112.05929, eq. 9-10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def mean(weights: Sequence[Mapping[str, Tensor]], samples: Sequence[int]) -> dict[str, Tensor]:
    """sum_i delta_i * w_i with delta_i = n_i / sum_j n_j, for weights and buffers alike.

    Parameters
    ----------
    weights : Sequence[Mapping[str, Tensor]]
        State dicts with the same names and shapes; not empty.
    samples : Sequence[int]
        n_i of each.

    Returns
    -------
    dict[str, Tensor]
        New tensors of the same dtypes; integer buffers are rounded.
    """
    total = sum(samples)
    averaged: dict[str, Tensor] = {}
    for name, first in weights[0].items():
        exact = torch.promote_types(first.dtype, torch.float32)
        value = torch.zeros_like(first, dtype=exact)
        for state, count in zip(weights, samples, strict=True):
            value += state[name].detach() * (count / total)
        averaged[name] = as_like(value, first)
    return averaged


def load(segment: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy averaged weights and buffers into a segment."""
    current = segment.state_dict()
    segment.load_state_dict({name: as_like(tensor, current[name]) for name, tensor in weights.items()})


def as_like(value: Tensor, template: Tensor) -> Tensor:
    """Cast to the template's dtype; a mean of integers is rounded, not cut off."""
    if not template.is_floating_point() and value.is_floating_point():
        value = value.round()
    return value.to(template.dtype)
