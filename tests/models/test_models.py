"""ResNet16 as the paper has it, cutting, and initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sglr_flower import models
from sglr_flower.errors import UserError
from sglr_flower.models import SplitModel


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_resnet16_has_the_papers_parameters_and_cut() -> None:
    model = SplitModel("resnet16", "", 10, seed=0)
    client, server = model.client_segment(0), model.server_segment()

    assert (parameters(client), parameters(server)) == (42_896, 206_346)
    smashed = client(torch.zeros(2, 3, 32, 32))
    assert smashed.shape == (2, 32, 16, 16)
    assert smashed[0].nbytes == 32 * 1024
    assert server(smashed).shape == (2, 10)


def test_convolutions_are_drawn_as_the_authors_draw_them() -> None:
    weight = SplitModel("resnet16", "", 10, seed=0).whole().stage3[2].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("cut", ["stem", "stage1", "stage2", "stage3", "1", "4"])
def test_any_cut_composes_to_the_unsplit_model(cut: str) -> None:
    model = SplitModel("resnet16", cut, 10, seed=0)
    whole = model.whole().eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.server_segment().eval()(model.client_segment(0).eval()(x)), whole(x))


@pytest.mark.parametrize("cut", ["head", "0", "5", "layer9", "-1"])
def test_a_wrong_cut_lists_the_right_ones(cut: str) -> None:
    with pytest.raises(UserError, match=r"cut = .*stem, stage1, stage2, stage3.*1 to 4"):
        SplitModel("resnet16", cut, 10, seed=0).client_segment(0)


def test_clients_start_from_their_own_weights_or_from_the_same() -> None:
    own = SplitModel("resnet16", "", 10, seed=0)
    shared = SplitModel("resnet16", "", 10, seed=0, shared=True)
    first = own.client_segment(0).stem[0].weight
    assert torch.equal(first, own.client_segment(0).stem[0].weight)
    assert not torch.equal(first, own.client_segment(1).stem[0].weight)
    assert torch.equal(first, shared.client_segment(1).stem[0].weight)
    assert not torch.equal(first, SplitModel("resnet16", "", 10, seed=1).client_segment(0).stem[0].weight)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"model = 'vgg'.*resnet16"):
        models.get("vgg")
