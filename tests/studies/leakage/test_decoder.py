"""Decoders for any cut."""

from __future__ import annotations

import pytest
import torch

from sglr_flower import models
from sglr_flower.errors import UserError
from sglr_flower.models import SplitModel
from sglr_flower.studies.leakage.decoder import Decoder, as_maps


def cuts(name: str) -> list[str]:
    return models.stage_names(SplitModel(name, "", 10, seed=0).whole())[:-1]


@pytest.mark.parametrize(
    ("name", "cut"), [(name, cut) for name in ("resnet16", "alexnet", "resnet18", "vit") for cut in cuts(name)]
)
def test_every_model_and_cut_has_a_decoder_to_its_images(name: str, cut: str) -> None:
    shape = SplitModel(name, cut, 10, seed=0).smashed_shape()
    assert Decoder(shape, 1, 32)(torch.rand(2, *shape)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("shape", "size"), [((7,), 16), ((7,), 2), ((5, 3), 8), ((4, 3, 3), 10), ((4, 6, 3), 12), ((2, 40, 40), 16)]
)
def test_other_shapes_too(shape: tuple[int, ...], size: int) -> None:
    assert Decoder(shape, 3, size)(torch.rand(2, *shape)).shape == (2, 3, size, size)


def test_a_shape_that_is_none_of_a_sample_is_refused() -> None:
    with pytest.raises(UserError, match=r"smashed data of shape \(2, 3, 4, 5\) per sample cannot be decoded"):
        Decoder((2, 3, 4, 5), 1, 16)


@pytest.mark.parametrize("class_token", [0, 1])
def test_tokens_take_the_places_of_their_patches(class_token: int) -> None:
    tokens = torch.arange(9.0).view(1, 9, 1).repeat(1, 1, 2)
    tokens = torch.cat([torch.full((1, class_token, 2), -1.0), tokens], dim=1)
    maps = as_maps(tokens)
    assert maps is not None
    assert maps[0, 1].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_what_has_no_places_has_no_maps() -> None:
    assert as_maps(torch.zeros(2, 7)) is None
    assert as_maps(torch.zeros(2, 7, 3)) is None
