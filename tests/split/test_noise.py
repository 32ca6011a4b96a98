"""The noise by its statistics, by its names, and by what can be drawn again and what cannot."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sglr_flower.split.noise import FRESH, gaussian, key, noised


def test_it_is_normal() -> None:
    numbers = gaussian(key(0, "test"), (1000, 200)).flatten()

    # Of 200,000 standard normal numbers the mean has a standard deviation of 0.0022, the variance one of 0.0032.
    assert abs(float(numbers.mean())) < 0.011
    assert abs(float(numbers.var()) - 1) < 0.016
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-4
    # 12.67 are expected beyond four standard deviations.
    assert 1 <= int((numbers.abs() > 4).sum()) < 35


def test_the_two_halves_of_box_and_mullers_transform_are_independent() -> None:
    first, second = gaussian(key(0, "test"), (2, 100_000))

    # A correlation of 100,000 independent pairs has a standard deviation of 0.0032, that of their squares too.
    for left, right in ((first, second), (first.square(), second.square())):
        assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 0.016


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (5,), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    numbers = gaussian(key(0, "test"), shape)
    assert (numbers.shape, numbers.dtype) == (torch.Size(shape), torch.float64)
    assert numbers.isfinite().all()


def test_a_named_draw_is_the_same_again_and_others_are_others() -> None:
    assert key(7, "a", 1) == key(7, "a", 1)
    assert len({key(7, "a", 1), key(8, "a", 1), key(7, "b", 1), key(7, "a", 2), key(7, "a", 1, 0)}) == 5
    assert torch.equal(gaussian(key(7, "a"), (9,)), gaussian(key(7, "a"), (9,)))
    assert not torch.equal(gaussian(key(7, "a"), (9,)), gaussian(key(7, "b"), (9,)))


def test_a_fresh_draw_is_never_the_same_again() -> None:
    assert len({key(FRESH, "a", 1) for _ in range(1000)}) == 1000


def test_noise_has_the_deviation_asked_for_and_keeps_dtype_and_order_in_memory() -> None:
    value = torch.full((4, 8, 32, 32), 5.0).to(memory_format=torch.channels_last)
    noisy = noised(value, 0.25, key(0, "test"))

    assert noisy.dtype == torch.float32
    assert noisy.is_contiguous(memory_format=torch.channels_last)
    # Of 32,768 numbers: the mean's standard deviation is 0.0014, the deviation's 0.001.
    assert float(noisy.mean()) == pytest.approx(5, abs=0.007)
    assert float(noisy.std()) == pytest.approx(0.25, abs=0.005)
    assert torch.equal(value, torch.full_like(value, 5.0))


def test_who_knows_the_noise_seed_takes_the_noise_away() -> None:
    """Why a run's noise is fresh unless it is asked for by number."""
    value = torch.linspace(-1, 1, 100, dtype=torch.float64)
    noisy = noised(value, 10.0, key(3, "smashed", 0))

    torch.testing.assert_close(noisy - 10.0 * gaussian(key(3, "smashed", 0), (100,)), value)
