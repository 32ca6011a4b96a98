"""The paper's numbers, spot-checked against arXiv 2112.05929."""

from __future__ import annotations

import pytest

from sglr_flower.studies.paper import published


@pytest.mark.parametrize(
    ("clients", "alpha", "phi", "percent"),
    [
        (1, 0.0, 0.0, 82.45),
        (2, 2.0, 0.0, 82.11),
        (4, 0.5, 0.75, 84.22),
        (6, 0.5, 0.5, 84.89),
        (6, 1.5, 0.0, 84.21),
        (8, 2.0, 0.0, 58.41),
        (10, 1.0, 0.75, 86.11),
        (10, 2.0, 0.0, 34.37),
        (15, 1.0, 0.0, 85.79),
        (15, 1.5, 0.0, 84.08),
        (20, 0.0, 0.25, 86.33),
        (20, 0.5, 0.5, 87.48),
        (20, 1.0, 0.75, 86.67),
    ],
)
def test_tables_1_and_2(clients: int, alpha: float, phi: float, percent: float) -> None:
    assert published.accuracy(clients, alpha, phi) == percent


@pytest.mark.parametrize(("clients", "alpha", "phi"), [(15, 2.0, 0.0), (20, 1.5, 0.0), (3, 0.0, 0.0), (6, 0.0, 1.0)])
def test_a_cell_that_the_paper_does_not_report_has_no_number(clients: int, alpha: float, phi: float) -> None:
    assert published.accuracy(clients, alpha, phi) is None


@pytest.mark.parametrize(
    ("clients", "phase", "percent"),
    [
        (2, "none", 81.68),
        (4, "first:0.6", 83.49),
        (10, "first:0.4", 85.32),
        (15, "last:0.6", 85.05),
        (15, "none", 85.59),
        (20, "last:0.4", 86.53),
        (20, "always", 60.67),
    ],
)
def test_table_3(clients: int, phase: str, percent: float) -> None:
    assert published.phased_accuracy(clients, phase) == percent


def test_table_3_has_no_6_clients() -> None:
    assert published.phased_accuracy(6, "none") is None


@pytest.mark.parametrize(
    ("phi", "entropy"), [(0.0, 0.2153), (0.25, 0.2142), (0.5, 0.2166), (0.75, 0.2296), (1.0, 0.2759)]
)
def test_table_5(phi: float, entropy: float) -> None:
    assert published.reconstruction(6, phi) == entropy
    assert published.reconstruction(4, phi) is None
    assert published.reconstruction(6, 0.1) is None


def test_table_4() -> None:
    rows = {method: published.alexnet(method) for method in ("centralized", "fedavg", "sglr", "sfl", "psl")}
    assert [row.accuracy for row in rows.values() if row] == [90.5, 89.7, 89.3, 86.0, 84.7]
    assert [row.client_petaflops for row in rows.values() if row] == [2.944, 0.588, 0.031, 0.031, 0.031]
    assert published.alexnet("ssl") is None
