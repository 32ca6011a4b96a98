"""Where the mean cut gradient is zero: proved for batch norm, tried on what may stand between it and the cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sglr_flower.split.vanishing import mean_vanishes

TAIL = (nn.ReLU(), nn.Linear(8, 3))
POOLED = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
VECTORS = {
    "batch norm": ([nn.BatchNorm1d(8), *TAIL], True),
    "behind a linear layer": ([nn.Linear(8, 8), nn.BatchNorm1d(8), *TAIL], True),
    "behind a ReLU": ([nn.ReLU(), nn.BatchNorm1d(8), *TAIL], False),
    "behind dropout": ([nn.Dropout(0.5), nn.BatchNorm1d(8), *TAIL], False),
    "before dropout": ([nn.BatchNorm1d(8), nn.Dropout(0.5), *TAIL], True),
    "layer norm": ([nn.LayerNorm(8), *TAIL], False),
    "no norm": ([nn.Linear(8, 8), *TAIL], False),
}
MAPS = {
    "over positions too": ([nn.BatchNorm2d(8), *POOLED], False),  # it sees a constant that differs by position
    "a convolution of all positions": ([nn.Conv2d(8, 8, 6), nn.BatchNorm2d(8), *POOLED], True),
    "pooled": ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), *TAIL], True),
}
SEGMENTS = {
    **{name: (layers, (8,), wanted) for name, (layers, wanted) in VECTORS.items()},
    **{name: (layers, (8, 6, 6), wanted) for name, (layers, wanted) in MAPS.items()},
}


class OwnDtype(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


def test_of_a_segment_with_a_dtype_of_its_own_nothing_is_known() -> None:
    assert not mean_vanishes(nn.Sequential(OwnDtype(8, 8), nn.BatchNorm1d(8)), (8,))


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments(name: str) -> None:
    layers, shape, wanted = SEGMENTS[name]
    torch.manual_seed(0)
    segment = nn.Sequential(*copy.deepcopy(layers))
    before = copy.deepcopy(segment.state_dict())
    state = torch.get_rng_state()
    assert mean_vanishes(segment, shape) is wanted
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in segment.state_dict().items())
