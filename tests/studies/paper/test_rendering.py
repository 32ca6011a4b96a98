"""Tables, CSV and pictures from hand-made results, with intervals computed by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from studies.paper.finished import finish

from sglr_flower.studies.paper.caption import subtitle
from sglr_flower.studies.paper.cells import select
from sglr_flower.studies.paper.command import Book
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.results import SUMMARY_COLUMNS, estimate
from sglr_flower.studies.paper.scales import SCALES
from sglr_flower.studies.paper.sweep import run_dir


def book(folder: Path, name: str, scale: str, seeds: int, only: str = "") -> Book:
    experiment = EXPERIMENTS[name]
    return Book(
        experiment, SCALES[scale], folder, tuple(select(experiment.cells(SCALES[scale], range(seeds)), only)), ""
    )


def test_the_interval_is_students_t_over_seeds() -> None:
    """Values 80, 82, 84: s = 2, t(0.975; 2) = 4.302653, half width 4.302653 * 2 / sqrt(3) = 4.968276."""
    found = estimate([80.0, 82.0, 84.0])
    assert (found.mean, found.seeds) == (82.0, 3)
    assert found.half_width == pytest.approx(4.968276, abs=1e-6)


def test_one_seed_has_no_interval() -> None:
    assert estimate([80.0]).half_width is None


def test_a_field_is_ours_with_its_interval_then_the_papers_then_the_difference(tmp_path: Path) -> None:
    made = book(tmp_path, "table1", "small", 3, "clients=2|20")
    for cell in made.selected:
        if cell.labels["clients"] == 2 and cell.labels["alpha"] == 0:
            finish(tmp_path, cell, {0: 80.0, 1: 82.0, 2: 84.0}[int(cell.labels["seed"])])
        if cell.labels["clients"] == 20 and cell.labels["alpha"] == 1.5 and cell.labels["seed"] == 0:
            finish(tmp_path, cell, 50.0)
    table = made.write()
    assert table.header == ["clients", "alpha 0", "alpha 0.5", "alpha 1", "alpha 1.5", "alpha 2"]
    assert table.rows[0][:2] == ["2", "82.00 ± 4.97\n82.04\n-0.04"]
    assert table.rows[0][2] == "-\n81.76\n-"  # not finished
    assert table.rows[1][4] == "50.00"  # the paper reports none
    markdown = (tmp_path / "table.md").read_text()
    assert "| 2 | 82.00 ± 4.97<br>82.04<br>-0.04 |" in markdown
    assert "over the seeds 0, 1, 2, of which a place has 1 to 3" in markdown
    assert "4 of 30 cells are finished" in markdown


def test_a_single_columns_figures_stand_side_by_side(tmp_path: Path) -> None:
    made = book(tmp_path, "methods", "small", 1)
    for cell, percent in zip(made.selected, range(70, 80), strict=True):
        finish(tmp_path, cell, float(percent))
    table = made.write()
    assert table.header == ["method", "accuracy (%) clients 10", "paper", "difference", "over psl"]
    assert table.rows[0] == ["sglr", "70.00", "85.22", "-15.22", "-3.00"]
    assert table.rows[4] == ["sfl", "74.00", "-", "-", "+1.00"]
    assert "One seed (0), so there is no interval." in (tmp_path / "table.md").read_text()


def test_a_table_of_which_the_paper_reports_nothing_has_no_column_of_the_papers(tmp_path: Path) -> None:
    made = book(tmp_path, "privacy", "tiny", 1, "privacy=none|dp-noise=1")
    assert [name for name in made.write().header if name in ("paper", "difference")] == []


def test_methods_are_compared_with_psl_seed_by_seed(tmp_path: Path) -> None:
    """SGLR 82, 85 against PSL 80, 82: differences 2 and 3, s = 0.7071, t(0.975; 1) = 12.7062, half width 6.3531."""
    made = book(tmp_path, "methods", "small", 2, "method=psl|sglr|sfl")
    for cell in made.selected:
        percent = {("psl", 0): 80.0, ("psl", 1): 82.0, ("sglr", 0): 82.0, ("sglr", 1): 85.0, ("sfl", 1): 81.0}
        if (key := (cell.labels["method"], cell.labels["seed"])) in percent:
            finish(tmp_path, cell, percent[key])

    table = made.write()

    assert table.header[-1] == "over psl"
    assert {row[0]: row[-1] for row in table.rows} == {"sglr": "+2.50 ± 6.35", "psl": "-", "sfl": "-1.00"}


def test_table_4_counts_the_computation_of_a_client(tmp_path: Path) -> None:
    """FedAvg trains the whole network on the client's samples, centralised training on those of all five."""
    made = book(tmp_path, "table4", "small", 1)
    for cell in made.selected:
        finish(tmp_path, cell, 85.0)
    rows = {row[0]: row for row in made.write().rows}
    ours = {method: float(row[4]) for method, row in rows.items()}
    assert ours["centralized"] == pytest.approx(5 * ours["fedavg"], rel=0.01)
    assert ours["sglr"] == ours["sfl"] == ours["psl"] < 0.1 * ours["fedavg"]
    assert [rows["fedavg"][5], rows["psl"][5]] == ["0.588", "0.031"]


def test_the_caption_says_what_a_scale_reduces(tmp_path: Path) -> None:
    for scale in ("full", "small", "smoke"):
        made = book(tmp_path / scale, "table1", scale, 1)
        finish(made.folder, made.selected[0], 85.0)
        made.write()
    full, small, smoke = ((tmp_path / scale / "table.md").read_text() for scale in ("full", "small", "smoke"))
    assert "the paper's setting at full length" in full
    assert "reduced" not in full
    assert "Left out" not in full
    samples = SCALES["small"].values["samples-per-client"]
    assert f"samples-per-client {samples} instead of 1,000, num-server-rounds 15 instead of 250" in small
    assert "Left out: clients 1, 4, 6, 8, 15." in small
    assert "in the last round" in small
    assert "dataset digits instead of fashion-mnist" in smoke
    assert "alpha 0.5, 1.5, 2" in smoke


def test_codecs_are_compared_by_what_a_client_sends(tmp_path: Path) -> None:
    made = book(tmp_path, "codecs", "smoke", 1)
    for cell, megabytes in zip(made.selected, (8.0, 2.0), strict=False):
        finish(tmp_path, cell, 80.0 - megabytes)
        path = run_dir(tmp_path, cell) / "summary.json"
        sent = {"bytes_smashed": 3e6 * megabytes, "bytes_unicast": 1e6 * megabytes, "bytes_broadcast": 0}
        path.write_text(json.dumps(json.loads(path.read_text()) | sent))  # of all 4 clients
    table = made.write()
    assert table.header[-2:] == ["client MB", "over none"]
    assert [row[0] for row in table.rows] == ["none", "int8", "randtopk:0.1:0.1+topk:0.1"]
    assert [row[-2:] for row in table.rows] == [["8.00", "-"], ["2.00", "+6.00"], ["-", "-"]]


def test_the_csv_has_one_whole_row_per_finished_cell(tmp_path: Path) -> None:
    made = book(tmp_path, "table1", "smoke", 2)
    for cell in made.selected[:5]:
        finish(tmp_path, cell, 81.5)
    made.write()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(rows) == 5
    assert list(rows[0]) == ["method", "clients", "alpha", "seed", *SUMMARY_COLUMNS, "run_dir"]
    assert (rows[4]["clients"], rows[4]["seed"], rows[4]["test_accuracy_mean"]) == ("2", "1", "0.815")
    assert (rows[4]["train_loss"], rows[4]["run_dir"]) == ("", "cells/psl_clients-2_alpha-0_seed-1")


def test_cells_of_earlier_calls_stay_in_the_table(tmp_path: Path) -> None:
    """Another filter, or fewer seeds, adds to what there is."""
    for cell in book(tmp_path, "table1", "smoke", 2, "clients=2").selected:
        finish(tmp_path, cell, 79.0 + 2 * int(cell.labels["seed"]))
    later = book(tmp_path, "table1", "smoke", 1, "clients=4,alpha=1")
    finish(tmp_path, later.selected[0], 90.0)
    table = later.write()
    assert [row[0] for row in table.rows] == ["2", "4"]
    assert table.rows[0][1] == "80.00 ± 12.71\n82.04\n-2.04"
    assert table.rows[1] == ["4", "-", "90.00\n82.93\n+7.07"]
    assert "# and earlier calls, for the cells that this one leaves out" in (tmp_path / "table.md").read_text()


# Feature maps and attacks are of a run's network: tests/studies/paper/test_rows.py makes some.
@pytest.mark.parametrize(
    "name",
    [name for name, one in EXPERIMENTS.items() if not one.attack and "feature maps" not in one.pictures.values()],
)
def test_every_experiment_draws_its_picture(tmp_path: Path, name: str) -> None:
    """Of two seeds, with one cell missing; that a picture shows what it should is for eyes."""
    made = book(tmp_path, name, "smoke", 2)
    for index, cell in enumerate(made.selected[:-1]):
        finish(tmp_path, cell, 70.0 + index, (50.0 + index, 70.0 + index))
    made.write()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_names_its_scale(tmp_path: Path) -> None:
    made = book(tmp_path, "fig2", "full", 3)
    assert subtitle("feature maps", made.scale, made.selected).endswith("1,000 samples per client, 250 rounds")
    assert subtitle("curves", made.scale, made.selected) == (
        "scale full: resnet16 on fashion-mnist, 1,000 samples per client, 250 rounds; mean of 3 seeds, 95 % intervals"
    )


def test_a_picture_says_how_many_seeds_its_places_have(tmp_path: Path) -> None:
    made = book(tmp_path, "fig2", "smoke", 2)
    assert subtitle("curves", made.scale, made.selected[:1]).endswith("; one seed")
    assert subtitle("curves", made.scale, made.selected[:-1]).endswith("; mean of 1 to 2 seeds, 95 % intervals")


def test_a_caption_names_a_schedule_only_if_all_cells_have_it(tmp_path: Path) -> None:
    for name, named in (("table1", True), ("cycles", False)):
        (tmp_path / name).mkdir()
        book(tmp_path / name, name, "smoke", 1).write()
        assert ("at 0.001 (step schedule)," in (tmp_path / name / "table.md").read_text()) == named
