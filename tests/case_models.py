"""Networks of users with a mistake each, and such as are right and were not trained rightly; for 10 classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sglr_flower import methods


def _stages(first: nn.Module, width: int = 4) -> nn.Sequential:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(OrderedDict(first=first, head=head))


def typo(num_classes: int, image_size: int) -> nn.Sequential:
    network = _stages(nn.Conv2d(3, 4, 3))
    network.frist.weight.data.zero_()  # line of typo
    return network


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # line of two_outputs
        return self.conv(x), x.mean()


class _Take(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        logits: Tensor = self.head(pair[0])
        return logits


def two_outputs(num_classes: int, image_size: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(first=_Two(), head=_Take()))


class _Detached(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:  # line of detached
        return super().forward(x).detach()


def detached(num_classes: int, image_size: int) -> nn.Sequential:
    return _stages(_Detached(3, 4, 3))


def detached_server(num_classes: int, image_size: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 3), head=_stages(_Detached(4, 4, 3))))


class _OnlyInTraining(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out[[99]] + out if self.training else out  # line of only_in_training


def only_in_training(num_classes: int, image_size: int) -> nn.Sequential:
    return _stages(_OnlyInTraining(3, 4, 3))


class _Asserts(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        assert not self.training  # line of asserts
        return super().forward(x)


def asserts(num_classes: int, image_size: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(first=nn.Conv2d(3, 3, 3), head=_stages(_Asserts(3, 4, 3))))


def batch_norm_1d(num_classes: int, image_size: int) -> nn.Sequential:  # line of batch_norm_1d
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 10))
    return nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 3), head=head))


def batch_norm_2d(num_classes: int, image_size: int) -> nn.Sequential:
    return _stages(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def grey(num_classes: int, image_size: int) -> nn.Sequential:  # line of grey
    return _stages(nn.Conv2d(1, 4, 3))


def probabilities(num_classes: int, image_size: int) -> nn.Sequential:
    network = _stages(nn.Conv2d(3, 4, 3))
    network.head.append(nn.Softmax(1))  # type: ignore[operator, union-attr]
    return network


def log_probabilities(num_classes: int, image_size: int) -> nn.Sequential:
    network = _stages(nn.Conv2d(3, 4, 3))
    network.head.append(nn.LogSoftmax(1))  # type: ignore[operator, union-attr]
    return network


def frozen_server(num_classes: int, image_size: int) -> nn.Sequential:
    network = _stages(nn.Conv2d(3, 4, 3))
    network.head.requires_grad_(False)  # type: ignore[union-attr]
    return network


def frozen_client(num_classes: int, image_size: int) -> nn.Sequential:  # line of frozen_client
    network = _stages(nn.Conv2d(3, 4, 3))
    network.first.requires_grad_(False)  # type: ignore[union-attr]
    return network


def tied(num_classes: int, image_size: int) -> nn.Sequential:
    """A weight at two places of the client segment, and another at two of the server segment."""
    low, high = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    up = nn.Sequential(high, nn.Tanh(), high, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    return nn.Sequential(OrderedDict(low=nn.Sequential(low, nn.Tanh(), low), up=up))


def tied_across(num_classes: int, image_size: int) -> nn.Sequential:  # line of tied_across
    both = nn.Conv2d(3, 3, 3, padding=1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    return nn.Sequential(OrderedDict(low=nn.Sequential(both, nn.Tanh()), up=nn.Sequential(both, nn.Tanh()), head=head))


def channels_last(num_classes: int, image_size: int) -> nn.Sequential:
    return _stages(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)


def _misspelt(gradients: Mapping[int, Tensor], active: Sequence[int], over: str) -> Tensor:
    return torch.stack([gradients[i] for i in activ])  # type: ignore[name-defined]  # noqa: F821  # line of misspelt


misspelt = methods.Method(cut_gradient=_misspelt, phi=1.0)


def norm_first(num_classes: int, image_size: int) -> nn.Sequential:
    """Batch norm where the server segment begins, with no more than a linear layer before it."""
    lower = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 16))
    upper = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))
    return nn.Sequential(OrderedDict(lower=lower, upper=upper))
