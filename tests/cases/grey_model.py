"""A user's network for grey images."""

from collections import OrderedDict

from torch import nn


def grey(num_classes: int, image_size: int) -> nn.Sequential:
    """Two convolutions of which the first takes one channel."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()),
            second=nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            head=nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes)),
        )
    )


grey.cut = "first"  # type: ignore[attr-defined]
