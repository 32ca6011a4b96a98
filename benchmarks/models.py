"""A network that is almost no work, so that a step's time is the exchange's."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

NARROW = "benchmarks.models:narrow"
"""Value of the run-config key ``model`` for it."""

SMASHED_CHANNELS = 32


def narrow(num_classes: int, image_size: int) -> nn.Sequential:
    """One convolution below the cut, one linear layer above it; 8 KiB of smashed data per image of 16 x 16 (digits)."""
    low = nn.Sequential(nn.Conv2d(3, SMASHED_CHANNELS, 3, 2, 1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * SMASHED_CHANNELS, num_classes))
    return nn.Sequential(OrderedDict(low=low, head=head))


narrow.cut = "low"  # type: ignore[attr-defined]
