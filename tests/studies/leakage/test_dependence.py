"""Distance correlation and mutual information against hand-computed values, closed forms and the library dcor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from torch import Tensor

from sglr_flower.studies.leakage.dependence import (
    corrected_distance_correlation,
    dependence,
    distance_correlation,
    mutual_information,
    principal_components,
)


def gaussians(rho: float, samples: int, dimensions: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs of standard normal vectors of which each component is correlated with its counterpart alone."""
    draw = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(samples, dimensions, generator=draw, dtype=torch.float64) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def test_distance_correlation_of_three_points_by_hand() -> None:
    """Of 0, 1, 2 and 0, 1, 0: centred distances are ninths, their products sum to 72, 360 and 144 of 81."""
    x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0])
    assert distance_correlation(x[:, None], y[:, None]) == pytest.approx(10 ** (-1 / 4), abs=1e-12)


def test_both_are_what_dcor_says() -> None:
    """Values of dcor 0.7: `distance_correlation` and `u_distance_correlation_sqr`."""
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0], [4.0, 4.0], [5.0, 1.0], [2.0, 2.0]])
    y = torch.tensor([[1.0], [0.0], [4.0], [5.0], [3.0], [3.0]])
    assert distance_correlation(x, y) == pytest.approx(0.8334747524366463, abs=1e-9)
    assert corrected_distance_correlation(x, y) == pytest.approx(0.42947218453203817, abs=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_of_bivariate_normals_both_are_near_the_closed_form(rho: float) -> None:
    """Szekely, Rizzo and Bakirov (2007), theorem 7."""
    top = rho * math.asin(rho) + math.sqrt(1 - rho**2) - rho * math.asin(rho / 2) - math.sqrt(4 - rho**2) + 1
    squared = top / (1 + math.pi / 3 - math.sqrt(3))
    x, y = gaussians(rho, 2000)
    assert distance_correlation(x, y) == pytest.approx(math.sqrt(squared), abs=0.05)
    assert corrected_distance_correlation(x, y) == pytest.approx(squared, abs=0.04)


def test_of_independent_variables_with_many_dimensions_only_the_corrected_one_is_0() -> None:
    x, y = gaussians(0.0, 50, 2000)
    assert distance_correlation(x, y) > 0.9
    assert abs(corrected_distance_correlation(x, y)) < 0.1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-5, 5))
def test_what_is_turned_scaled_and_moved_is_wholly_dependent(seed: int, scale: float, shift: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 3, generator=draw, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=draw, dtype=torch.float64))
    y = scale * x @ turn + shift
    assert distance_correlation(x, y) == pytest.approx(1, abs=1e-6)
    assert corrected_distance_correlation(x, y) == pytest.approx(1, abs=1e-6)
    assert distance_correlation(y, x) == pytest.approx(distance_correlation(x, y), abs=1e-9)


def test_a_constant_depends_on_nothing() -> None:
    x = torch.arange(6.0)[:, None]
    assert distance_correlation(x, torch.ones(6, 2)) == corrected_distance_correlation(x, torch.ones(6, 2)) == 0


@pytest.mark.parametrize(("dimensions", "nats", "bias"), [(1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0), (2, 3, -0.15)])
def test_mutual_information_of_correlated_gaussians_is_near_the_closed_form(
    dimensions: int, nats: float, bias: float
) -> None:
    """I = -d/2 log(1 - rho^2): up to 3 nats in two dimensions the bias is small."""
    rho = math.sqrt(1 - math.exp(-2 * nats / dimensions))
    x, y = gaussians(rho, 1000, dimensions)
    assert mutual_information(x.numpy(), y.numpy()) == pytest.approx(nats + bias, abs=0.1)


def test_mutual_information_saturates() -> None:
    """Of 6 nats it says less, and never more than psi(n) - psi(k)."""
    x, y = gaussians(math.sqrt(1 - math.exp(-6)), 2000, 2)
    assert 4.8 < mutual_information(x.numpy(), y.numpy()) < 5.5
    most = float(digamma(2000) - digamma(3))
    assert most - 0.5 < mutual_information(x.numpy(), x.numpy()) <= most


def test_mutual_information_does_not_ask_how_its_variables_are_scaled() -> None:
    """0.83 nats; of their linear correlation after exp alone one would conclude 0.32."""
    x, y = (part.numpy() for part in gaussians(0.9, 1000))
    assert mutual_information(x, np.exp(y)) == pytest.approx(-math.log(1 - 0.81) / 2, abs=0.1)


def test_principal_components_are_the_directions_of_most_variance() -> None:
    draw = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 10.0, 0.1, 3.0])
    samples = (torch.randn(500, 4, generator=draw) * scales).view(500, 2, 2)
    components = principal_components(samples, 2)
    assert components.std(axis=0, ddof=1) == pytest.approx([1, 1])
    assert abs(np.corrcoef(components[:, 0], samples[:, 0, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(components[:, 1], samples[:, 1, 1])[0, 1]) > 0.99


def test_all_three_together_are_the_three() -> None:
    x, y = gaussians(0.8, 200, 3)
    found = dependence(x, y)
    assert found.distance_correlation == distance_correlation(x, y)
    assert found.corrected_distance_correlation == corrected_distance_correlation(x, y)
    assert found.mutual_information == mutual_information(principal_components(x, 2), principal_components(y, 2))
