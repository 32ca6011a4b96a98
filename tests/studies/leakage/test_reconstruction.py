"""How near images are, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglr_flower.studies.leakage.reconstruction import fidelity


def test_two_images_by_hand() -> None:
    """Pixels 0, 1, 0.5, 0.5, guessed as 0.5 everywhere, and the same shown rightly but for the first, guessed 0.5."""
    original = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    guess = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 1.0, 0.5, 0.5]]).view(2, 1, 2, 2)
    found = fidelity(original, guess)
    ln2 = math.log(2)
    assert found.cross_entropy == pytest.approx((4 * ln2 + 3 * ln2) / 8)
    assert found.entropy == pytest.approx(ln2 / 2)
    assert found.mse == pytest.approx((0.5 + 0.25) / 8)
    # Errors 0.125 and 0.0625: 9.03 and 12.04 dB, and their mean; not the PSNR of the mean error.
    assert found.psnr == pytest.approx((-10 * math.log10(0.125) - 10 * math.log10(0.0625)) / 2, abs=1e-5)
    assert found.ssim is None


def test_ssim_is_1_of_equal_images_and_less_of_others() -> None:
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert fidelity(images, images).ssim == pytest.approx(1)
    noisy = fidelity(images, images.flip(3)).ssim
    assert noisy is not None
    assert noisy < 0.3


def test_ssim_is_the_mean_over_the_windows_inside() -> None:
    """Wang et al. (2004), equations 13 to 16, window by window: 36 of them lie inside 16 x 16 pixels."""
    draw = torch.Generator().manual_seed(0)
    original = torch.rand(1, 1, 16, 16, generator=draw, dtype=torch.float64)
    guess = (original + 0.1 * torch.randn(1, 1, 16, 16, generator=draw, dtype=torch.float64)).clamp(0, 1)
    bell = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    weights = torch.outer(bell, bell) / bell.sum() ** 2
    values = []
    for row in range(6):
        for column in range(6):
            x, y = (image[0, 0, row : row + 11, column : column + 11] for image in (original, guess))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            spread_x, spread_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            both = (weights * (x - mean_x) * (y - mean_y)).sum()
            light = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
            values.append(light * (2 * both + 0.03**2) / (spread_x + spread_y + 0.03**2))
    assert fidelity(original, guess).ssim == pytest.approx(torch.stack(values).mean().item(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_cross_entropy_is_not_below_its_floor(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    original, guess = torch.rand(2, 2, 1, 3, 3, generator=draw)
    found = fidelity(original, guess)
    assert found.cross_entropy >= found.entropy
    assert fidelity(original, original).cross_entropy == pytest.approx(found.entropy)
