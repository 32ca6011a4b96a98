"""Table 6 of arXiv 2112.05929 against its own worked example, and against what runs move."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglr_flower import assembly, inprocess
from sglr_flower.analysis.communication import Average, Sizes, client_down, epoch_bytes
from sglr_flower.analysis.footprint import weight_bytes
from sglr_flower.config import RunConfig
from sglr_flower.methods import METHODS
from sglr_flower.paper.published import TABLE_6_EXAMPLE


def example() -> Sizes:
    """AlexNet among a hundred clients, in bytes."""
    return Sizes(clients=100, samples=50_000, batch_size=8, cut=24e3, client_segment=67e6, network=200e6)


def test_the_worked_example_of_the_paper() -> None:
    sizes = example()
    sglr = epoch_bytes(METHODS["sglr"], sizes, phi=0.5, average="once").total
    sfl, fedavg = (epoch_bytes(METHODS[name], sizes).total for name in ("sfl", "fedavg"))
    assert sglr == 1.5 * 50_000 * 24e3 + 24e3
    assert sfl == 2 * 50_000 * 24e3 + 2 * 100 * 67e6
    assert fedavg == 2 * 100 * 200e6
    assert round(100 * (1 - sglr / sfl), 1) == TABLE_6_EXAMPLE["sfl"]
    assert round(100 * (1 - sglr / fedavg), 1) == TABLE_6_EXAMPLE["fedavg"]


def test_what_the_average_is_decides_what_its_broadcast_weighs() -> None:
    sizes = Sizes(clients=4, samples=96, batch_size=8, cut=100.0, client_segment=1.0, network=2.0)
    assert sizes.steps == 3
    expected: dict[Average, float] = {"once": 100.0, "clients-and-samples": 300.0, "clients": 2400.0}
    for average, size in expected.items():
        moved = epoch_bytes(METHODS["sglr"], sizes, 0.5, average)
        assert moved.average == size
        assert moved.own == 0.5 * 96 * 100
        assert client_down(moved, 4, 0.5) == moved.own / 4 + 0.5 * size
    assert epoch_bytes(METHODS["sglr"], sizes, 0.0).average == 0
    assert epoch_bytes(METHODS["psl"], sizes, 0.5) == epoch_bytes(METHODS["sglr"], sizes, 0.0)


@given(clients=st.integers(1, 50), per_client=st.integers(1, 100), phi=st.floats(0, 1))
def test_sglr_never_moves_more_than_psl_but_for_the_average(clients: int, per_client: int, phi: float) -> None:
    sizes = Sizes(clients, clients * per_client, 8, 10.0, 5.0, 20.0)
    sglr, psl = (epoch_bytes(METHODS[name], sizes, phi) for name in ("sglr", "psl"))
    assert sglr.up == psl.up
    assert sglr.down - sglr.average <= psl.down * (1 + 1e-12)
    assert sglr.total == pytest.approx((2 - phi) * sizes.samples * sizes.cut + sglr.average)


@pytest.mark.parametrize(
    ("method", "phi", "over"),
    [
        ("psl", 0.5, "clients"),
        ("sfl", 0.5, "clients"),
        ("sglr", 0.0, "clients"),
        ("sglr", 0.5, "clients"),
        ("sglr", 1.0, "clients-and-samples"),
        ("fedavg", 0.5, "clients"),
        ("centralized", 0.5, "clients"),
    ],
)
def test_a_run_moves_what_the_formula_says(method: str, phi: float, over: Average, tmp_path: Path) -> None:
    """In one process, where bytes are those of tensors; labels come on top. One node, so one copy of each average."""
    config = RunConfig.parse(
        {
            "dataset": "digits",
            "method": method,
            "num-clients": 4,
            "samples-per-client": 24,
            "batch-size": 8,
            "num-server-rounds": 1,
            "evaluate-every": 0,
            "evaluate-samples": 4,
            "splitavg-phi": phi,
            "splitavg-over": over,
            "run-dir": str(tmp_path / "run"),
        }
    )
    summary = inprocess.run(config, 1)
    model = assembly.model(config.replace(method="psl"))
    smashed = 4
    for side in model.smashed_shape():
        smashed *= side
    segment = model.client_segment(0)
    sizes = Sizes(4, 96, 8, smashed, weight_bytes(segment), weight_bytes(model.whole()))
    moved = epoch_bytes(METHODS[method], sizes, phi, over)
    one_node = 1 / 4  # segments travel once for a node, not once for each of its clients
    labels = 0 if method in ("fedavg", "centralized") else 96 * 8
    assert summary["bytes_up"] == moved.smashed + one_node * moved.segments_up + labels
    first_round = 0 if method in ("sfl", "fedavg") else one_node * moved.segments_down  # clients begin alike
    assert summary["bytes_down"] == moved.own + moved.average + first_round
