"""Table 6 of arXiv 2112.05929 against its own worked example, and against what runs move."""

from __future__ import annotations

from pathlib import Path

import pytest
from counting import by_formula, counted, counted_run
from hypothesis import given
from hypothesis import strategies as st

from sglr_flower.run import inprocess
from sglr_flower.split.methods import METHODS
from sglr_flower.studies.costs.communication import Average, Sizes, client_down, epoch_bytes
from sglr_flower.studies.paper.published import TABLE_6_EXAMPLE


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
        assert moved.broadcast == size
        assert moved.unicast == 0.5 * 96 * 100
        assert client_down(moved, 4, 0.5) == moved.unicast / 4 + 0.5 * size
    assert epoch_bytes(METHODS["sglr"], sizes, 0.0).broadcast == 0
    assert epoch_bytes(METHODS["psl"], sizes, 0.5) == epoch_bytes(METHODS["sglr"], sizes, 0.0)


@given(clients=st.integers(1, 50), per_client=st.integers(1, 100), phi=st.floats(0, 1))
def test_sglr_never_moves_more_than_psl_but_for_the_average(clients: int, per_client: int, phi: float) -> None:
    sizes = Sizes(clients, clients * per_client, 8, 10.0, 5.0, 20.0)
    sglr, psl = (epoch_bytes(METHODS[name], sizes, phi) for name in ("sglr", "psl"))
    assert sglr.up == psl.up
    assert sglr.down - sglr.broadcast <= psl.down * (1 + 1e-12)
    assert sglr.total == pytest.approx((2 - phi) * sizes.samples * sizes.cut + sglr.broadcast)


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize(
    ("method", "phi", "over"),
    [
        ("psl", 0.5, "clients"),
        ("sfl", 0.5, "clients"),
        ("sglr", 0.0, "clients"),
        ("sglr", 0.5, "clients"),
        ("sglr", 0.5, "clients-and-samples"),
        ("sglr", 1.0, "clients-and-samples"),
        ("fedavg", 0.5, "clients"),
        ("centralized", 0.5, "clients"),
    ],
)
def test_a_run_moves_what_the_formula_says(method: str, phi: float, over: Average, nodes: int, tmp_path: Path) -> None:
    """In one process, where bytes are those of tensors and there is no framing."""
    config = counted_run(tmp_path / "run", method, phi, over)
    summary = inprocess.run(config, nodes)
    assert counted(summary) == by_formula(config, nodes)
    assert summary["bytes_up"] == sum(summary[f"bytes_{part}"] for part in ("smashed", "labels", "segments_up"))
    assert summary["bytes_down"] == sum(summary[f"bytes_{part}"] for part in ("unicast", "broadcast", "segments_down"))
    clients = 1 if method == "centralized" else 4
    assert summary["bytes_up_per_client"] == summary["bytes_up"] / clients


def test_an_average_over_connections_saves_nothing_where_every_client_is_a_node() -> None:
    """Phi |C| copies of a batch's gradients are as many bytes as the unicast that they replace."""
    sizes = Sizes(clients=4, samples=96, batch_size=8, cut=100.0, client_segment=1.0, network=2.0)
    psl = epoch_bytes(METHODS["psl"], sizes).total
    assert epoch_bytes(METHODS["sglr"], sizes, 0.5, "clients", copies=2).total == psl
    assert epoch_bytes(METHODS["sglr"], sizes, 0.5, "clients").total == 0.875 * psl
    assert epoch_bytes(METHODS["sglr"], sizes, 0.5, "clients-and-samples", copies=2).total < 0.79 * psl
