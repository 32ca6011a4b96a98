"""Finished cells for tests that look at what is made of them."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import summaries

from sglr_flower.run.metrics import columns
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split.score import ACCURACY
from sglr_flower.studies.paper.cells import Cell
from sglr_flower.studies.paper.sweep import run_dir

COLUMNS = columns(ACCURACY)


def finish(folder: Path, cell: Cell, percent: float, curve: tuple[float, ...] = ()) -> None:
    """Write what a finished run of ``cell`` leaves, as far as tables and pictures read it."""
    directory = run_dir(folder, cell)
    directory.mkdir(parents=True)
    (directory / "run-id").write_text(hashlib.sha256(f"{directory}".encode()).hexdigest()[:32])
    RunDirectory(directory).finish(summaries.summary(test_score_mean=percent / 100, train_loss=float("nan")))
    rows = [
        dict.fromkeys(COLUMNS, "") | {"round": number, "test_accuracy_mean": value / 100}
        for number, value in enumerate(curve, start=1)
    ]
    with (directory / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
