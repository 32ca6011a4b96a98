"""A module that is called with other weights stays as it is, also where a part of it has two names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import vmap

from sglr_flower.models import functional


class Tied(nn.Module):
    """One weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(torch.tanh(self.a(x)))
        return result


def twice() -> nn.Sequential:
    """Modules that have two names."""
    linear, norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
    return nn.Sequential(linear, norm, nn.Tanh(), linear, norm)


@pytest.mark.parametrize("make", [twice, Tied, lambda: nn.Linear(3, 3)], ids=["two names", "tied", "plain"])
def test_it_computes_with_what_is_given_and_keeps_its_own(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, other, inputs = make(), make(), torch.randn(8, 3)
    wanted = copy.deepcopy(other)
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    before = copy.deepcopy(module.state_dict())
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in other.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in other.named_buffers()}
    output = functional.call(module, {**weights, **buffers}, inputs)
    expected = wanted(inputs)
    assert torch.equal(output, expected)
    for name, buffer in wanted.named_buffers():
        assert torch.equal(buffers[name], buffer)  # the given ones are moved, where they are used twice then twice
    output.sum().backward()
    expected.sum().backward()
    for name, weight in wanted.named_parameters():
        assert torch.equal(weights[name].grad, weight.grad)
    assert all(tensor is own[name] for name, tensor in (*module.named_parameters(), *module.named_buffers()))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(isinstance(weight, nn.Parameter) for part in module.modules() for weight in part._parameters.values())


def test_several_at_once_leave_nothing_behind() -> None:
    module = twice().eval()
    before = module(torch.ones(4, 3))
    weights = {name: torch.stack([weight.detach(), 2 * weight.detach()]) for name, weight in module.named_parameters()}
    both = vmap(lambda own: functional.call(module, own, torch.ones(4, 3)))(weights)
    assert torch.allclose(both[0], before)
    assert torch.equal(module(torch.ones(4, 3)), before)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + 1
        return x


def test_a_buffer_that_is_put_in_anothers_place_is_told() -> None:
    module, buffers = Counting(), {"count": torch.tensor(4.0)}
    functional.call(module, buffers, torch.ones(2))
    assert (buffers["count"], module.count) == (5, 0)
