"""The optimizers are torch's, to the bit, and go on where they were."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sglr_flower.split import optimizers
from sglr_flower.split.optimizer_classes import get
from sglr_flower.split.optimizers import ADAM, SGD, StandardOptimizer

THEIRS = {
    "adam": (partial(torch.optim.Adam, fused=True), ADAM),
    "adam with decay": (partial(torch.optim.Adam, fused=True, weight_decay=0.1), StandardOptimizer("adam", 0.0, 0.1)),
    "adamw": (partial(torch.optim.AdamW, fused=True), get("adamw")),
    "sgd": (torch.optim.SGD, SGD),
    "sgd with momentum": (partial(torch.optim.SGD, momentum=0.9), get("sgd", momentum=0.9)),
    "sgd with both": (partial(torch.optim.SGD, momentum=0.5, weight_decay=0.1), StandardOptimizer("sgd", 0.5, 0.1)),
}
"""Torch's class -> what has to be the same."""


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def train(module: nn.Module, steps: range, step) -> None:
    for k in steps:
        images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(k))
        module.zero_grad()
        module(images).square().mean().backward()
        step(k)


@pytest.mark.parametrize("name", THEIRS)
def test_updates_as_torchs_own_class_and_goes_on_from_its_state(name: str) -> None:
    theirs, ours, later = network(), network(), network()
    make, factory = THEIRS[name]
    theirs_optimizer = make(theirs.parameters())

    def their_step(k: int) -> None:
        theirs_optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
        theirs_optimizer.step()

    def our_step(optimizer: optimizers.Optimizer):
        def step(k: int) -> None:
            optimizer.lr = 0.1 / (k + 1)
            optimizer.step()

        return step

    first, second = (factory(module.parameters()) for module in (ours, later))
    train(theirs, range(6), their_step)
    train(ours, range(3), our_step(first))
    optimizers.load_flat_state(later, second, optimizers.flat_state(ours, first))
    train(later, range(3, 6), our_step(second))

    assert_close(dict(later.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    expected = theirs_optimizer.state_dict()["state"] if name != "sgd" else {}
    assert_close(second.state(), {index: dict(slots) for index, slots in expected.items()}, rtol=0, atol=0)


def test_a_parameter_without_gradient_stays_and_gets_no_state() -> None:
    module = network()
    module[3].weight.requires_grad_(False)
    before = module[3].weight.clone()
    optimizer = ADAM(module.parameters())
    optimizer.lr = 0.1
    train(module, range(1), lambda _: optimizer.step())

    assert torch.equal(module[3].weight, before)
    assert set(optimizer.state()) == {0, 1, 2, 3, 5}


def test_a_step_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from sglr_flower.split import optimizers\n"
        "weight = torch.nn.Parameter(torch.ones(2)); weight.sum().backward()\n"
        "for name in ('adam', 'adamw', 'sgd'): optimizers.StandardOptimizer(name, 0.9, 0.1)([weight]).step()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", THEIRS)
def test_a_rate_in_a_tensor_is_that_rate(name: str, dtype: torch.dtype) -> None:
    """As a recorded step has it; a kernel that reads it as float32 must not be what float64 ends with."""
    ends = []
    for as_tensor in (False, True):
        weight = torch.linspace(-1, 1, 12, dtype=dtype).view(3, 4).requires_grad_()
        optimizer = THEIRS[name][1]([weight])
        for k in range(20):
            rate = 0.1 / (k + 1)
            optimizer.lr = torch.tensor(rate, dtype=dtype) if as_tensor else rate
            (weight - 0.3).pow(4).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(weight.detach())
    assert_close(ends[1], ends[0], rtol=1e-14 if dtype == torch.float64 else 1e-5, atol=1e-15)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("alike", [True, False])
def test_stacked_clients_move_as_each_would_alone(alike: bool, name: str) -> None:
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    rows = [row.clone().requires_grad_() for row in start]
    alone = [THEIRS[name][1]([row]) for row in rows]
    stacked = start.clone().requires_grad_()
    together = THEIRS[name][1].stacked([stacked], alike=alike)
    for k in range(5):
        for row, optimizer in zip(rows, alone, strict=True):
            optimizer.lr = 0.1 / (k + 1)
            (row - 0.3).pow(4).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        together.lr = 0.1 / (k + 1)
        (stacked - 0.3).pow(4).sum().backward()
        together.step()
        together.zero_grad()
    assert_close(stacked.detach(), torch.stack(rows).detach(), rtol=1e-14, atol=1e-15)
    if "sgd" not in name:
        assert together.state()[0]["step"].tolist() == [5.0, 5.0]
