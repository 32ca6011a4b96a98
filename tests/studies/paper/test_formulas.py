"""`sglr paper table6` and `fig5`: the paper's figures, the counters of real runs, and hand-computed seconds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sglr_flower.cli import paper
from sglr_flower.errors import UserError
from sglr_flower.studies.paper.figure5 import FIGURE_5, seconds, training_time
from sglr_flower.studies.paper.table6 import example, measured

APP = typer.Typer()
APP.command()(paper.paper)


def test_the_worked_example_has_the_papers_percentages() -> None:
    rows = {row.labels["method"]: row.figures for row in example().rows}
    sglr = rows["sglr, as Table 6 counts"]
    assert round(sglr["less_than_sfl_percent"], 1) == 88.6
    assert round(sglr["less_than_fedavg_percent"], 1) == 95.5
    assert sglr["total"] == 1_800_024_000
    # 63 steps (62 and a half) of 8 samples for 50 active clients.
    assert rows["sglr, that to each active client"]["broadcast"] == 63 * 8 * 50 * 24_000
    assert rows["sglr, that to each active client"]["total"] > rows["psl"]["total"]


def test_no_bar_of_a_formula_opens_a_column() -> None:
    table = example().table
    assert not any("|" in field for row in [table.header, *table.rows] for field in row)


def test_real_runs_move_what_the_formulas_say() -> None:
    rows = measured().rows
    assert len(rows) == 10
    for row in rows:
        assert row.figures["total"] == row.figures["formula"] > 0, row.labels
        assert row.figures["labels"] == (0 if row.labels["method"] == "fedavg" else 4 * 32 * 8)
    by = {(row.labels["method"], row.labels["nodes"]): row.figures for row in rows}
    for method in ("fedavg", "psl", "sfl"):  # a node for each client is what Table 6 counts
        assert by[method, 4]["total"] == by[method, 4]["table6"]
    assert by["sglr over clients", 4]["total"] == by["psl", 4]["total"]
    assert by["sglr over clients", 1]["total"] < by["psl", 1]["total"]


def test_seconds_are_a_clients_bytes_over_the_rate() -> None:
    # 2 |D| S(L) / |C| / R = 2 x 50,000 x 0.024 MB / 20 / 12.5 MB/s
    assert seconds("psl", 50_000, 20, 100e6) == pytest.approx(9.6)
    assert seconds("fedavg", 50_000, 20, 100e6) == pytest.approx(16.0)
    assert seconds("sfl", 50_000, 20, 100e6) == pytest.approx(9.6 + 2 * 33.5 / 12.5)
    assert seconds("sglr", 50_000, 20, 100e6) == pytest.approx(0.75 * 9.6 + 0.024 / 20 / 12.5)
    assert len(training_time().rows) == 12


def test_the_command_writes_tables_figures_and_a_picture(tmp_path: Path) -> None:
    result = CliRunner().invoke(APP, ["fig5", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "2,000,000" in result.output
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.startswith(f"# {FIGURE_5.title}")
    assert "sglr paper fig5 --out" in text
    with (tmp_path / "out" / "seconds.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    with Image.open(tmp_path / "out" / "picture.png") as picture:
        assert picture.size[0] > 500


@pytest.mark.parametrize("options", [["--scale", "smoke"], ["--seeds", "2"], ["--in-process"]])
def test_options_of_a_sweep_are_refused_with_a_sentence(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(APP, ["table6", *options, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"{options[0]} is for experiments that train; table6 follows from formulas")
    assert not (tmp_path / "out").exists()
