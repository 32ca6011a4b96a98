"""`sglr paper` as it is by default: its cells through Flower, several at once, with the results of one process."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from integration.test_cli import finished, sglr

pytestmark = pytest.mark.flower


def test_a_sweep_through_flower_has_the_results_of_one_process(tmp_path: Path) -> None:
    line = ("paper", "methods", "--scale", "smoke", "--only", "method=sglr|fedavg")
    figures = {}
    for way in ((), ("--in-process",)):
        folder = tmp_path / "-".join(["results", *way])
        code, out, err = finished(sglr(*line, *way, "--out", str(folder), cwd=tmp_path))
        assert code == 0, out + err
        rows = list(csv.DictReader((folder / "results.csv").open()))
        figures[way] = {row["method"]: (row["test_accuracy_mean"], row["steps"]) for row in rows}

    assert figures[()].keys() == {"sglr", "fedavg"}
    assert figures[()] == figures["--in-process",]
