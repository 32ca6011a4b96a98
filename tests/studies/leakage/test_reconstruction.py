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


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_cross_entropy_is_not_below_its_floor(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    original, guess = torch.rand(2, 2, 1, 3, 3, generator=draw)
    found = fidelity(original, guess)
    assert found.cross_entropy >= found.entropy
    assert fidelity(original, original).cross_entropy == pytest.approx(found.entropy)
