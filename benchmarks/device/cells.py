"""Full-length cells of the paper's Table 2 with 20 clients and seed 0, as runs in one process each, several at once.

They are those of ``sglr paper methods --scale full``, and that command's sweep runs them
(`sglr_flower.studies.paper.sweep`): what is finished stays, and what was cut off goes on from its last checkpoint.
``python -m benchmarks.device.cells`` writes ``cells.json`` with the curves, the run directories of finished cells
without their checkpoints into ``cells.tar.xz``, and of unfinished ones those with the last checkpoint into
``cell-METHOD.tar.xz``.
"""

from __future__ import annotations

import csv
import math
import os
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import gpu, machine
from benchmarks.device import part, together
from benchmarks.gpu import FORMS
from sglr_flower.files import write_atomic
from sglr_flower.run import checkpoint
from sglr_flower.run.machine import available_cpus
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.studies.paper import sweep, workers
from sglr_flower.studies.paper.cells import Cell
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.scales import SCALES
from sglr_flower.studies.paper.sweep import Failure, Running

METHODS = ("psl", "sglr", "slr", "sgl", "sfl")
"""In the order in which they are begun."""
CLIENTS = 20
AT_ONCE = (1, 2, 4)
FINISHED = "cells.tar.xz"
"""The archive of the finished cells' run directories."""
ARCHIVES = 2
"""How many are brought back: that of what is finished, if anything is, and of the first methods that are not, each with
a checkpoint, some 12 MB."""
EVERY = 45.0
"""Seconds between two writings of what there is."""
CHECKPOINT_EVERY = 10
"""Rounds; on a GPU the 5 of ``full`` would cost a tenth of the time."""
START = 20.0
"""Seconds from a run's command to its first step, about."""
KEPT = (
    *("config.toml", "launch.toml", "run-id", "metrics.csv", "nodes.csv", "partition.json"),
    *("origin.json", "summary.json"),
)
"""Files of a run directory that are brought back, beside checkpoints."""
CLOSING = 25.0
"""Seconds before the end at which the runs are stopped, which takes a few, and the last is written."""
TINY: dict[str, Any] = {
    "num_clients": 2,
    "image_size": 8,
    "samples_per_client": 16,
    "num_server_rounds": 2,
    "evaluate_every": 1,
    "evaluate_samples": 20,
    "checkpoint_every": 1,
}
"""Changes in a rehearsal."""
FIGURES = ("train_loss", "validation_accuracy_mean", "test_accuracy_mean", "test_accuracy_std", "step_seconds_median")


class TimeIsUp(Exception):
    """The runs have to be stopped."""


class Watcher:
    """Told by the sweep how it goes: writes what there is now and then, and stops it in time.

    Parameters
    ----------
    book : Book
        What is written.
    clock : part.Clock
        How long the sweep may go on.
    """

    def __init__(self, book: Book, clock: part.Clock) -> None:
        self._book, self._clock, self._due = book, clock, time.monotonic() + EVERY

    def update(self, running: Sequence[Running]) -> None:
        """Called several times a second."""
        if self._clock.left() < CLOSING:
            raise TimeIsUp
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            self._book.write()
            typer.echo(self._book.line())

    def finished(self, running: Running) -> None:
        """A cell has its result."""
        typer.echo(f"finished: {running.cell.name}")
        self._book.write()

    def failed(self, failure: Failure) -> None:
        """A cell has ended without one."""
        typer.echo(f"failed: {failure.cell.name}: {failure.reason}")
        self._book.failures[str(failure.cell.labels["method"])] = failure.reason


class Book:
    """What is brought back of the cells.

    Parameters
    ----------
    folder : Path
        The sweep's.
    cells : Sequence[Cell]
        In the order in which they are begun.
    out : Path
        Where it is brought to.
    about : dict[str, Any]
        What stands above the cells.
    earlier : Mapping[str, Any]
        Method -> what a call before this one has brought back of it.
    """

    def __init__(
        self, folder: Path, cells: Sequence[Cell], out: Path, about: dict[str, Any], earlier: Mapping[str, Any]
    ) -> None:
        self._folder, self._cells, self._out, self._about, self._earlier = folder, cells, out, about, dict(earlier)
        self._packed: dict[Path, object] = {}  # archive -> what makes it another
        self.failures: dict[str, str] = {}

    def entries(self) -> list[dict[str, Any]]:
        """A cell's labels, the paper's accuracy in percent, and its curve so far."""
        return [self._entry(cell) for cell in self._cells]

    def line(self) -> str:
        """How far all are, in a line."""
        told = [f"{one['labels']['method']} {len(one['curve'])}/{one['rounds']}" for one in self.entries()]
        return f"rounds: {', '.join(told)}"

    def write(self) -> None:
        """Bring back all there is now."""
        machine.save(self._out / "cells.json", {**self._about, "cells": self.entries()})
        kept = int(self._pack_finished())
        for cell in self._cells:
            if kept < ARCHIVES and not self._finished(cell) and self._pack(cell):
                kept += 1
            else:
                archive(self._out, cell).unlink(missing_ok=True)

    def _entry(self, cell: Cell) -> dict[str, Any]:
        directory, method = sweep.run_dir(self._folder, cell), str(cell.labels["method"])
        curve = _curve(directory / "metrics.csv")
        if not curve and method in self._earlier:
            return dict(self._earlier[method])
        return {
            "labels": dict(cell.labels),
            "paper": EXPERIMENTS["methods"].paper(cell.labels),
            "rounds": cell.config.num_server_rounds,
            "finished": self._finished(cell),
            "failure": self.failures.get(method),
            "summary": read_json(directory / "summary.json"),
            "curve": curve,
        }

    def _finished(self, cell: Cell) -> bool:
        known = self._earlier.get(str(cell.labels["method"]), {}).get("finished", False)
        return bool(known) or sweep.is_finished(self._folder, cell)

    def _pack(self, cell: Cell) -> bool:
        """Bring back a run directory with its last checkpoint only; whether it has one."""
        directory = sweep.run_dir(self._folder, cell)
        rounds = checkpoint.rounds(directory / "checkpoints")
        if not rounds:
            return False
        last = directory / "checkpoints" / f"round-{rounds[0]:04d}"
        self._bring(archive(self._out, cell), rounds[0], [*(directory / name for name in KEPT), last])
        return True

    def _pack_finished(self) -> bool:
        """Bring back all finished run directories without their checkpoints; whether there are any."""
        done = [cell for cell in self._cells if sweep.is_finished(self._folder, cell)]
        if done:
            directories = [sweep.run_dir(self._folder, cell) for cell in done]
            self._bring(self._out / FINISHED, len(done), [one / name for one in directories for name in KEPT])
        return bool(done)

    def _bring(self, target: Path, state: object, files: Sequence[Path]) -> None:
        """Pack those of the files that there are into an archive, unless it was made in the same state before."""
        if self._packed.get(target) == state:
            return
        partial = target.with_suffix(".partial")
        with tarfile.open(partial, "w:xz", preset=1) as file:
            for path in files:
                if path.exists():
                    file.add(path, path.relative_to(self._folder / "cells"))
        partial.replace(target)
        self._packed[target] = state


def archive(folder: Path, cell: Cell) -> Path:
    """The file with a cell's last checkpoint."""
    return folder / f"cell-{cell.labels['method']}.tar.xz"


def main(
    out: part.Out,
    seconds: part.Seconds = 240,
    rehearse: part.Rehearse = False,
    resume: Annotated[Path | None, typer.Option(help="A folder that an earlier call has written.")] = None,
) -> None:
    """Find out how many at once are fastest, and train until the time is over."""
    clock, place = part.Clock(seconds), part.place(rehearse)
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # for the processes that are started here: float32 as it is on a CPU
    form = fastest(out, resume)
    chosen = cells(form, rehearse)
    values = {**gpu.RUN, **({"image-size": 8} if rehearse else {})}
    values |= {"num-clients": chosen[0].config.num_clients, "local-epochs": 10, "cohort": FORMS[form]}
    levels = [level for level in AT_ONCE if level <= (2 if rehearse else available_cpus())]
    device = gpu.described_device(place)
    rates = known_rates(resume, form, device) if resume else {}
    rates = rates or together.rates(values, place, levels, 1.0 if rehearse else 3.0, patience=0.2 * seconds)
    left = clock.left() - CLOSING
    jobs = most_done(rates, left, rounds_steps(chosen[0]), len(chosen))
    typer.echo(f"by {form}; steps per second of each of so many at once: {rates}; so {jobs} at once")
    about = {
        "machine": {**machine.describe(), "device": device},
        "form": form,
        "steps_per_second_of_each_of_so_many": rates,
        "at_once": jobs,
    }
    with tempfile.TemporaryDirectory(prefix="sglr-cells-") as made:
        folder = Path(made)
        earlier = restore(resume, folder, chosen) if resume else {}
        todo = [cell for cell in chosen if not earlier.get(str(cell.labels["method"]), {}).get("finished")]
        (folder / "cells").mkdir(exist_ok=True)
        book = Book(folder, chosen, out, about, earlier)
        book.write()
        try:
            with sweep.locked(folder) as lock:
                sweep.run(todo, folder, lock, workers.find(jobs, in_process=True), Watcher(book, clock))
        except TimeIsUp:
            typer.echo("its time is over; the runs were stopped")
        finally:
            book.write()
        for one in book.entries():
            typer.echo(told(one))


def cells(form: str, rehearse: bool) -> list[Cell]:
    """The cells, by this form of the step."""
    changes = {**TINY, "dataset": part.dataset()} if rehearse else {"checkpoint_every": CHECKPOINT_EVERY}
    all_of = EXPERIMENTS["methods"].cells(SCALES["full"], [0])
    chosen = {cell.labels["method"]: cell for cell in all_of if cell.labels["clients"] == CLIENTS}
    methods = METHODS[:2] if rehearse else METHODS
    return [
        replace(chosen[name], config=chosen[name].config.replace(cohort=FORMS[form], **changes)) for name in methods
    ]


def rounds_steps(cell: Cell) -> int:
    """Steps of a cell."""
    config = cell.config
    return config.num_server_rounds * config.local_epochs * math.ceil(config.samples_per_client / config.batch_size)


def fastest(*folders: Path | None) -> str:
    """The form of the fastest exact variant that a run can be had by, of what was measured; else stacked."""
    for folder in folders:
        measured = read_json(folder / "variants.json").get("variants", []) if folder else []
        plain = [one for one in measured if one.get("exact") and one.get("seconds") and one["form"] in FORMS]
        plain = [one for one in plain if one["name"] == one["form"]]  # float32 without anything else
        if plain:
            fewest = min(one["clients"] for one in plain)
            return str(min((one for one in plain if one["clients"] == fewest), key=lambda one: one["seconds"])["form"])
    return "stacked"


def known_rates(resume: Path, form: str, device: Mapping[str, Any]) -> dict[int, float]:
    """What an earlier call has measured of so many at once; empty if by another form or on another device."""
    before = read_json(resume / "cells.json")
    same = (before.get("form"), before.get("machine", {}).get("device")) == (form, device)
    return {int(level): rate for level, rate in before["steps_per_second_of_each_of_so_many"].items()} if same else {}


def most_done(rates: Mapping[int, float], seconds: float, steps: int, count: int) -> int:
    """How many at once finish most cells in the time that is left; where it is the same, make most steps."""
    if not rates:
        return 2

    def done(level: int) -> tuple[int, float]:
        whole = level * int(max(0.0, seconds - START) * rates[level] / steps)
        return min(whole, count), level * rates[level]

    return max(rates, key=done)


def restore(resume: Path, folder: Path, chosen: Sequence[Cell]) -> dict[str, Any]:
    """Unpack the run directories of an earlier call; method -> what it has brought back of the cell."""
    if (resume / FINISHED).exists():
        with tarfile.open(resume / FINISHED) as file:
            file.extractall(folder / "cells", filter="data")
    for cell in chosen:
        if archive(resume, cell).exists():
            with tarfile.open(archive(resume, cell)) as file:
                file.extractall(folder / "cells", filter="data")
            # They lie elsewhere now, and may be computed in another form: to the same weights.
            directory = sweep.run_dir(folder, cell)
            places = {"data_dir": os.environ.get("SGLR_DATA_DIR", ""), "cohort": cell.config.cohort}
            saved = RunDirectory(directory).read_config().replace(**places)
            write_atomic(directory / "config.toml", saved.to_toml().encode())
    return {str(one["labels"]["method"]): one for one in read_json(resume / "cells.json").get("cells", [])}


def told(entry: Mapping[str, Any]) -> str:
    """A cell in a line."""
    scored = [row for row in entry["curve"] if row["test_accuracy_mean"] is not None]
    accuracy = f"{100 * scored[-1]['test_accuracy_mean']:.2f} % after {scored[-1]['round']}" if scored else "not scored"
    state = "finished" if entry["finished"] else entry["failure"] or "not finished"
    rounds = f"{len(entry['curve'])}/{entry['rounds']} rounds"
    return f"{entry['labels']['method']}: {state}, {rounds}, test accuracy {accuracy} (the paper: {entry['paper']})"


def _curve(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {"round": int(row["round"])} | {name: float(row[name]) if row[name] else None for name in FIGURES}
        for row in rows
    ]


if __name__ == "__main__":
    machine.run(main)
