"""The figures of finished cells: one row each as CSV, and over seeds as estimates."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglr_flower.run.metrics import BYTE_COLUMNS
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.studies.leakage.record import FOLDER, RESULT
from sglr_flower.studies.paper import progress
from sglr_flower.studies.paper.cells import Cell, Label
from sglr_flower.studies.paper.measures import Figures, Measure
from sglr_flower.studies.paper.progress import Point
from sglr_flower.studies.paper.sweep import is_finished, run_dir
from sglr_flower.studies.report.groups import half_width

SUMMARY_COLUMNS = (
    "test_accuracy_mean",
    "test_accuracy_std",
    "last_round_test_accuracy_mean",
    "last_round_test_accuracy_std",
    "evaluated_images",
    "train_loss",
    "rounds",
    "steps",
    "seconds",
    *BYTE_COLUMNS,
    "evaluation_bytes",
)
"""What ``results.csv`` takes of a cell's ``summary.json``; accuracies are fractions, over clients."""


MADE = ("version", "engine", "commit", "torch", "machine")
"""What is known of the code and the machine that made a cell (`sglr_flower.run.origin`)."""


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes
    ----------
    cell : Cell
        What was run.
    figures : Figures
        Of its summary, and of its attack.
    curve : tuple[Point, ...]
        Its rounds that were evaluated.
    made : Mapping[str, str]
        What made it, by the names in `MADE`; empty where a run of an earlier version has not recorded that.
    directory : Path | None
        Its run; None if only the ledger has it.
    run : str
        The run's id.
    """

    cell: Cell
    figures: Figures
    curve: tuple[Point, ...]
    made: Mapping[str, str]
    directory: Path | None = None
    run: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes
    ----------
    mean : float
        In the unit of the values.
    half_width : float | None
        Half the width of the 95 % interval of the mean (Student's t); None of one seed.
    seeds : int
        How many there are.
    """

    mean: float
    half_width: float | None
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of at least one value."""
    width = float(half_width(np.array(values, dtype=np.float64))) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), width, len(values))


def read(folder: Path, cells: Iterable[Cell]) -> list[Result]:
    """The results of those of the cells that are finished in a sweep's folder, in their order."""
    return [_read(run_dir(folder, cell), cell) for cell in cells if is_finished(folder, cell)]


def _read(directory: Path, cell: Cell) -> Result:
    run = RunDirectory(directory)
    origins = run.origins()
    made = {name: "+".join(dict.fromkeys(origin[name] for origin in origins)) for name in MADE if origins}
    return Result(cell, _figures(directory, cell.attack), progress.read(directory), made, directory, run.run_id)


def _figures(directory: Path, attacked: bool) -> dict[str, Any]:
    summary = RunDirectory(directory).summary().to_json()
    figures = {name: summary.get(name) for name in ("clients", "nodes", "epsilon", *SUMMARY_COLUMNS)}
    measures = read_json(directory / FOLDER / RESULT).get("measures", {}) if attacked else {}
    return figures | {name: figure["mean"] for name, figure in measures.items() if figure}


def seeds_there(folder: Path) -> set[int]:
    """The seeds of all cells that a sweep's folder has runs of."""
    found = (re.search(r"_seed-(\d+)$", path.name) for path in (folder / "cells").glob("*/"))
    return {int(match[1]) for match in found if match}


def by_place(results: Iterable[Result]) -> dict[tuple[tuple[str, Label], ...], list[Result]]:
    """The results of all seeds of each place in the table."""
    places: dict[tuple[tuple[str, Label], ...], list[Result]] = {}
    for result in results:
        places.setdefault(result.cell.place, []).append(result)
    return places


def to_csv(folder: Path, results: Sequence[Result], measures: Sequence[Measure]) -> bytes:
    """One row per finished cell: its labels, its figures, and its run directory relative to ``folder`` if it is there.

    ``measures``: those of the experiment; of them the ones that are in no summary have columns too.
    """
    added = [measure for measure in measures if measure.column]
    labels = list(results[0].cell.labels) if results else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*labels, *SUMMARY_COLUMNS, *(measure.column for measure in added), "run_dir"])
    for result in results:
        figures = [result.figures.get(column) for column in SUMMARY_COLUMNS]
        figures += [measure.value(result.figures) for measure in added]
        place = result.directory.relative_to(folder) if result.directory else ""
        writer.writerow([*result.cell.labels.values(), *figures, place])
    return text.getvalue().encode()
