"""The smashed data's shape, known without training."""

from __future__ import annotations

import pytest
import torch

from sglr_flower.data.inputs import rgb
from sglr_flower.models import SplitModel


@pytest.mark.parametrize("name", ["resnet16", "alexnet", "resnet18", "vit"])
@pytest.mark.parametrize("cut", ["", "1"])
def test_it_is_what_a_client_segment_puts_out(name: str, cut: str) -> None:
    model = SplitModel(name, cut, 10, seed=0)
    smashed = model.client_segment(1)(torch.zeros(2, 3, 32, 32))
    assert model.smashed_shape() == tuple(smashed.shape[1:])


def test_it_depends_on_the_image_size_and_works_in_float64() -> None:
    shapes = {
        SplitModel("resnet16", "", 10, inputs=rgb(n), seed=0, dtype=torch.float64).smashed_shape() for n in (32, 64)
    }
    assert len(shapes) == 2


def test_asking_moves_no_random_numbers() -> None:
    torch.manual_seed(3)
    SplitModel("alexnet", "conv2", 10, seed=0).smashed_shape()
    after = torch.rand(1)
    torch.manual_seed(3)
    assert after == torch.rand(1)
