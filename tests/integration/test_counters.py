"""A run over real Flower counts the bytes that the formulas of Table 6 say, on the stream and on the grid."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from counting import ROUNDS, by_formula, counted, counted_run
from integration.simulation import simulate

from sglr_flower.flower.server import serve
from sglr_flower.run.metrics import BYTE_COLUMNS
from sglr_flower.run.rundir import RunDirectory

pytestmark = pytest.mark.flower

NODES = 2
CASES = [
    ("psl", 0.5, "clients"),
    ("sfl", 0.5, "clients"),
    ("sglr", 0.5, "clients"),
    ("sglr", 0.5, "clients-and-samples"),
    ("sglr", 1.0, "clients"),
    ("fedavg", 0.5, "clients"),
]
WAYS = ("stream", "grid")


def run_dir(root: Path, case: tuple[str, float, str], exchange: str) -> Path:
    return root / "-".join(str(part) for part in (*case, exchange))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All cases over both exchanges in one simulation; two clients on each of two nodes."""
    root = tmp_path_factory.mktemp("counted")

    def body(grid):
        for case in CASES:
            for exchange in WAYS:
                serve(grid, counted_run(run_dir(root, case, exchange), *case, exchange=exchange).values())

    simulate(body, NODES, workers=NODES)
    return root


@pytest.mark.parametrize("exchange", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_payload_is_what_the_formula_says(trained: Path, case: tuple[str, float, str], exchange: str) -> None:
    folder = run_dir(trained, case, exchange)
    summary = json.loads((folder / "summary.json").read_text())
    assert counted(summary) == by_formula(RunDirectory(folder).read_config(), NODES)
    # The rest of the frames is there, and little: names, shapes and numbers; of segments, headers of NumPy and names.
    for way in ("up", "down"):
        payload = summary[f"bytes_{way}"] - summary[f"bytes_framing_{way}"]
        assert 0 < summary[f"bytes_framing_{way}"] < 0.05 * payload


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rounds_add_up_to_the_run_and_parts_to_the_totals(trained: Path, case: tuple[str, float, str]) -> None:
    folder = run_dir(trained, case, "stream")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{column: int(row[column]) for column in BYTE_COLUMNS} for row in csv.DictReader(file)]
    assert len(rows) == ROUNDS
    summary = json.loads((folder / "summary.json").read_text())
    for column in BYTE_COLUMNS:
        assert summary[column] == sum(row[column] for row in rows)
    for row in rows:
        up = ("smashed", "labels", "segments_up", "framing_up")
        down = ("unicast", "broadcast", "segments_down", "framing_down")
        assert row["bytes_up"] == sum(row[f"bytes_{part}"] for part in up)
        assert row["bytes_down"] == sum(row[f"bytes_{part}"] for part in down)
