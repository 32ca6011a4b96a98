"""A convolution by matrix products is a convolution, alone and for clients together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.testing import assert_close

from benchmarks.device.products import ByProducts

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    {"kernel_size": (1, 3), "stride": (2, 1), "dilation": (1, 2)},
    {"kernel_size": 3, "groups": 2},  # as it was
    {"kernel_size": 3, "padding": "same"},  # as it was
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_products_are_the_convolution_and_its_gradients(settings) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(4, 6, **settings).double()
    weights = {name: torch.randn(3, *weight.shape).double() for name, weight in module.named_parameters()}
    images = torch.randn(3, 2, 4, 7, 8).double().requires_grad_()

    def gradients() -> list[torch.Tensor]:
        own = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        output = vmap(lambda w, x: functional_call(module, w, (x,)))(own, images)
        return [output, *torch.autograd.grad(output.pow(3).sum(), [images, *own.values()])]

    expected = gradients()
    with ByProducts():
        ours = gradients()
    assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_convolution_does_not_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with torch.profiler.profile() as seen:
        module(images)
    assert any("convolution" in event.key for event in seen.key_averages())
    with ByProducts(), torch.profiler.profile() as seen:
        module(images)
    assert not any("convolution" in event.key for event in seen.key_averages())
