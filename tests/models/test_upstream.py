"""A backward pass from a gradient that is given has the gradients of torch's own, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sglr_flower.models import upstream


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_has_torchs_own_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    segment = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).to(dtype)
    images = torch.randn(5, 3, 8, 8, dtype=dtype)
    gradient = torch.randn(5, 4 * 36, dtype=dtype)
    segment(images).backward(gradient)
    own = [parameter.grad for parameter in segment.parameters()]
    segment.zero_grad()

    upstream.scalar(segment(images), gradient).backward()

    for parameter, expected in zip(segment.parameters(), own, strict=True):
        assert parameter.grad is not None
        assert expected is not None
        assert torch.equal(parameter.grad, expected)


def test_a_gradient_of_another_shape_is_refused() -> None:
    smashed = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"a gradient of shape \(3,\) for a tensor of shape \(2, 3\)"):
        upstream.scalar(smashed, torch.ones(3))
