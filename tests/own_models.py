"""Networks as a user may write them, among them such that cannot be trained."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def unnamed(num_classes: int, image_size: int) -> nn.Sequential:
    """One ReLU object at two places, and stages without names."""
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), relu, nn.Conv2d(4, 4, 3, 2), relu, nn.Flatten(), nn.LazyLinear(num_classes)
    )


def flat_first(num_classes: int, image_size: int) -> nn.Sequential:
    """Nothing to train below a cut after its first stage."""
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.Linear(3 * image_size**2, num_classes)))


def tied(num_classes: int, image_size: int) -> nn.Sequential:
    """The same weight under two names."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    low = nn.Sequential(conv, conv)
    return nn.Sequential(OrderedDict(low=low, head=nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))))


def viewing(num_classes: int, image_size: int) -> nn.Sequential:
    """A network that takes for granted how a convolution's output lies in memory."""

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.view(len(images), -1)

    low, flat = nn.Conv2d(3, 4, 3, 2), Flat()
    return nn.Sequential(OrderedDict(low=low, flat=flat, head=nn.LazyLinear(num_classes)))
