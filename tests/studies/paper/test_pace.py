"""Accuracy by time: when cells reach the accuracy with which plain training of the same seed ends."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from studies.paper.finished import COLUMNS, finish

from sglr_flower.studies.paper import pace, progress
from sglr_flower.studies.paper.cells import select
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.progress import Point
from sglr_flower.studies.paper.results import Result
from sglr_flower.studies.paper.scales import SCALES


def results(experiment: str, scale: str, curves: dict[tuple[str, int], tuple[Point, ...]]) -> list[Result]:
    """Cells by method and seed, with these curves."""
    cells = EXPERIMENTS[experiment].cells(SCALES[scale], [0, 1])
    found = {(cell.config.method, cell.config.seed): cell for cell in cells if cell.config.num_clients == 4}
    return [Result(found[key], {}, curve, {"machine": "a CPU"}) for key, curve in curves.items()]


def points(*accuracies: float) -> tuple[Point, ...]:
    """An evaluation in every round; a round takes 10 s and 2 MB."""
    return tuple(Point(n, accuracy, 10.0 * n, 2_000_000 * n) for n, accuracy in enumerate(accuracies, start=1))


def test_the_target_is_what_the_plain_cell_of_the_same_seed_ends_with() -> None:
    """Seed 0: 60 %, which sglr has in round 2. Seed 1: 80 %, which it has in round 3; sfl in none."""
    curves = {
        ("psl", 0): points(0.5, 0.62, 0.6),
        ("psl", 1): points(0.5, 0.7, 0.8),
        ("sglr", 0): points(0.5, 0.6, 0.5),
        ("sglr", 1): points(0.5, 0.79, 0.8),
        ("sfl", 0): points(0.7, 0.8, 0.8),
        ("sfl", 1): points(0.7, 0.7, 0.7),
        ("slr", 0): points(0.1, 0.1, 0.1),
    }
    table = pace.table(EXPERIMENTS["methods"], results("methods", "smoke", curves))
    assert table is not None
    assert table.header == ["method", "clients", "target (%)", "reached", "round", "seconds", "MB"]
    assert table.rows == [
        ["psl", "4", "70.00", "2 of 2", "2.5", "25", "5"],
        ["sglr", "4", "70.00", "2 of 2", "2.5", "25", "5"],
        ["sfl", "4", "70.00", "1 of 2", "1", "10", "2"],
        ["slr", "4", "60.00", "0 of 1", "-", "-", "-"],
    ]


@pytest.mark.parametrize("curves", [{("sglr", 0): points(0.5, 0.6)}, {("psl", 0): points(0.5)}])
def test_without_a_plain_cell_or_a_second_evaluation_there_is_no_table(
    curves: dict[tuple[str, int], tuple[Point, ...]],
) -> None:
    assert pace.table(EXPERIMENTS["methods"], results("methods", "smoke", curves)) is None


def test_every_plain_cell_is_one_of_the_experiments() -> None:
    for experiment in EXPERIMENTS.values():
        for scale in SCALES.values():
            cells = experiment.cells(scale, [0])
            if experiment.plain:
                only = ",".join(f"{key}={value}" for key, value in experiment.plain.items())
                assert {cell.labels["clients"] for cell in select(cells, only)} == {c.labels["clients"] for c in cells}


def test_seconds_are_of_training_alone_and_survive_being_written(tmp_path: Path) -> None:
    """Rounds of 5 steps of 2 s whose wall time is 100 s; the second and the third are evaluated."""
    (cell, *_) = EXPERIMENTS["table1"].cells(SCALES["smoke"], [0])
    finish(tmp_path, cell, 80.0)
    run = tmp_path / "cells" / cell.name
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, accuracy in enumerate(("", 0.25, 0.5), start=1):
            row = {"steps": 5, "seconds": 100, "step_seconds_median": 2.0, "bytes_up": 3, "bytes_down": 4}
            there = {"round": number, "test_accuracy_mean": accuracy}
            writer.writerow(dict.fromkeys(COLUMNS, "") | row | there)
    expected = (Point(2, 0.25, 20.0, 14), Point(3, 0.5, 30.0, 21))
    assert progress.read(run) == expected
    assert progress.from_text(progress.to_text(expected)) == expected
    assert progress.first(expected, 0.3) == expected[1]
    assert progress.first(expected, 0.6) is None
