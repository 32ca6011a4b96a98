"""A user's own model by its import path: used like one of ours, and every mistake in it is one sentence."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from sglr_flower import models
from sglr_flower.data.inputs import rgb
from sglr_flower.errors import UserError, traceback_of
from sglr_flower.models import SplitModel

Install = Callable[[object], str]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put an object into a module and give its import path."""

    def put(thing: object) -> str:
        module = ModuleType("users_models")
        module.__dict__["build"] = thing
        monkeypatch.setitem(sys.modules, "users_models", module)
        return "users_models:build"

    return put


def small(num_classes: int, image_size: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            below=nn.Conv2d(3, 4, 3),
            middle=nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)),
            head=nn.Sequential(nn.Flatten(), nn.Linear(4 * (image_size - 2) ** 2, num_classes)),
        )
    )


def test_a_model_in_a_file_of_ones_own_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_first_models.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size ** 2, 4), nn.Linear(4, num_classes))\n"
        "tiny.cut = 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = SplitModel("my_first_models:tiny", "", 7, inputs=rgb(5), seed=0)
    client, server = model.client_segment(3), model.server_segment()
    server(client(torch.ones(2, 3, 5, 5))).sum().backward()
    assert (len(client), len(server)) == (2, 1)
    assert client[1].weight.grad is not None


def test_its_cut_is_the_users_or_its_own_attribute(install: Install) -> None:
    def build(num_classes: int, image_size: int) -> nn.Sequential:
        return small(num_classes, image_size)

    build.cut = "middle"  # type: ignore[attr-defined]
    assert len(SplitModel(install(build), "", 10, seed=0).client_segment(0)) == 2
    assert len(SplitModel(install(build), "below", 10, seed=0).client_segment(0)) == 1


def test_without_a_cut_the_possible_ones_are_named(install: Install) -> None:
    with pytest.raises(UserError, match=r"cut = '': it must be one of below, middle, or .* 1 to 2"):
        SplitModel(install(small), "", 10, seed=0).server_segment()


def test_a_stage_that_works_in_place_leaves_the_smashed_data_alone(install: Install) -> None:
    model = SplitModel(install(small), "below", 10, inputs=rgb(8), seed=0)
    smashed = model.client_segment(0)(torch.randn(2, 3, 8, 8)).detach().requires_grad_()
    before = smashed.detach().clone()
    model.server_segment()(smashed).sum().backward()
    assert torch.equal(smashed, before)
    assert (before < 0).any()


def test_its_weights_are_the_clients_and_unmoved_by_the_check(install: Install) -> None:
    def build(num_classes: int, image_size: int) -> nn.Sequential:
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(num_classes))

    model = SplitModel(install(build), "2", 10, inputs=rgb(8), seed=0)
    network = model.whole(1)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), model.whole(1).parameters(), strict=True))
    assert not torch.equal(network[0].weight, model.whole(2)[0].weight)
    assert torch.equal(network[1].running_mean, torch.zeros(4))
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        (nn.Sequential(), r"must be a function .*, not a Sequential"),
        (math.pow, r"must be a function .*, not a builtin_function_or_method"),
        (3, r"must be a function \(num_classes: int, image_size: int\) -> torch\.nn\.Sequential, not a int"),
        (lambda: small(10, 32), r"must be a function .*too many positional arguments"),
        (lambda a, b, c: small(a, b), r"must be a function .*missing a required argument: 'c'"),
        (lambda a, b: nn.Linear(a, b), r"must return a torch\.nn\.Sequential of stages, not a Linear"),
        (lambda a, b: nn.Sequential(nn.Flatten()), r"must return two stages or more.*not 1"),
        (
            lambda a, b: small(a, b + 1),
            r"must map images \(1, 3, 32, 32\) .*, and its stage 'head' fails with .*mat1.*test_own.py:",
        ),
        (lambda a, b: small(a + 1, b), r"must map images \(1, 3, 32, 32\) to logits \(1, 10\), not to \(1, 11\)"),
        (
            lambda a, b: nn.Sequential(nn.Flatten(), nn.LSTM(3072, 10)),
            r"must map images .*to logits \(1, 10\), not to tuple",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said(install: Install, thing: object, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"model = 'users_models:build': it {sentence}"):
        SplitModel(install(thing), "1", 10, seed=0).server_segment()


@pytest.mark.parametrize("path", ["no_such_module_here:build", "torch:no_such_function", ":build"])
def test_a_path_to_nothing_is_the_users_mistake(path: str) -> None:
    with pytest.raises(UserError, match=f"model = '{path}'"):
        models.get(path)


def test_a_type_error_within_ones_own_function_is_a_sentence_with_its_line_and_keeps_its_traceback(
    install: Install,
) -> None:
    def build(num_classes: int, image_size: int) -> nn.Sequential:
        return small(num_classes, None)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"calling it fails with TypeError: .*NoneType.*test_own\.py:\d+\)$") as caught:
        SplitModel(install(build), "1", 10, seed=0).whole()
    assert "in small" in traceback_of(caught.value)


def test_the_same_network_twice_would_be_all_clients_own(install: Install) -> None:
    given = small(10, 16)
    network = SplitModel(install(lambda num_classes, image_size: given), "1", 10, inputs=rgb(16), seed=0)
    network.client_segment(0)
    with pytest.raises(UserError, match="return a new network each time"):
        network.client_segment(1)
