"""The command ``sglr paper``: runs an experiment of the paper, or goes on with it, and shows its table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import typer
from click.core import ParameterSource
from rich.console import Console

from sglr_flower.data import datasets
from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic
from sglr_flower.studies.paper import ledger, pace, sweep, workers
from sglr_flower.studies.paper.caption import caption, subtitle
from sglr_flower.studies.paper.cells import Cell, select
from sglr_flower.studies.paper.computation import client_petaflops
from sglr_flower.studies.paper.experiment import OF_RUNS, Experiment
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.figure5 import FIGURE_5
from sglr_flower.studies.paper.layout import Grid
from sglr_flower.studies.paper.picture import draw
from sglr_flower.studies.paper.results import Result, read, seeds_there, to_csv
from sglr_flower.studies.paper.scales import SCALES, Scale
from sglr_flower.studies.paper.sweep import Failure
from sglr_flower.studies.paper.table import entries, grid, to_markdown, to_terminal
from sglr_flower.studies.paper.table6 import TABLE_6
from sglr_flower.studies.paper.view import SweepView

CALCULATIONS = {"table6": TABLE_6, "fig5": FIGURE_5}
_FILE_WIDTH = 240


def command(
    experiment: str,
    scale: str,
    seeds: int,
    only: str,
    out: Path | None,
    jobs: int | None,
    in_process: bool,
    records: Path | None,
) -> None:
    """Make a table or figure of the paper, or go on with it."""
    if experiment in CALCULATIONS:
        _refuse_sweep_options(experiment)
        _calculate(experiment, (out or Path("results") / experiment).expanduser().absolute(), out)
        return
    chosen, size = EXPERIMENTS[experiment], SCALES[scale]
    folder = (out or Path("results") / f"{experiment}-{scale}").expanduser().absolute()
    options = [f"--seeds {seeds}"] if seeds > 1 else []
    options += [f"--only {shlex.quote(only)}"] if only else []
    options += [f"--out {shlex.quote(str(out))}"] if out else []
    options += [f"--ledger {shlex.quote(str(records))}"] if records else []
    options += ["--in-process"] if in_process else []
    line = " ".join(["sglr paper", experiment, f"--scale {scale}", *options])
    selected = tuple(select(chosen.cells(size, range(seeds)), only))
    book = Book(chosen, size, folder, selected, line, _ledger(scale, records))
    _close(book, *_sweep(book, jobs, in_process))


def _ledger(scale: str, named: Path | None) -> Path | None:
    """The ledger's file for a scale; None: there is none."""
    folder = named.expanduser().absolute() if named else ledger.default_folder(scale, Path.cwd())
    return ledger.file_of(folder, scale) if folder else None


@dataclass(frozen=True)
class Book:
    """The results in a sweep's folder, written from its finished cells and from the ledger's alone.

    Attributes
    ----------
    experiment, scale : Experiment, Scale
        What is run.
    folder : Path
        Absolute.
    selected : tuple[Cell, ...]
        The cells that this call runs; the folder may hold others, of an earlier call.
    line : str
        The command line.
    ledger : Path | None
        The ledger's file, in which finished cells are recorded and of whose rows tables are made; None: there is none,
        and the folder alone counts.
    """

    experiment: Experiment
    scale: Scale
    folder: Path
    selected: tuple[Cell, ...]
    line: str
    ledger: Path | None = None

    def known(self) -> list[Cell]:
        """All cells that may be there: of this call's seeds, and of those that the folder or the ledger has."""
        seeds = {int(cell.labels["seed"]) for cell in self.selected} | seeds_there(self.folder)
        if self.ledger:
            seeds |= ledger.seeds(ledger.read(self.ledger))
        return self.experiment.cells(self.scale, sorted(seeds))

    def recorded(self) -> set[str]:
        """Names of the cells that need not be run, as the ledger has all of them that is shown."""
        if self.ledger is None or self.experiment.shows_runs:
            return set()
        return {result.cell.name for result in ledger.results(ledger.read(self.ledger), self.selected)}

    def unfinished(self) -> list[Cell]:
        """The selected cells that are to be run."""
        recorded = self.recorded()
        return [
            cell for cell in self.selected if cell.name not in recorded and not sweep.is_finished(self.folder, cell)
        ]

    def results(self, known: Sequence[Cell]) -> list[Result]:
        """What is finished of these cells; it is recorded first, so that with a ledger all figures are its rows'.

        An experiment that shows runs has the folder's figures where the ledger's are another run's.
        """
        here = read(self.folder, known)
        if self.ledger is None:
            return here
        ledger.add(self.ledger, here)
        runs = {result.cell.name: result for result in here}
        rows = ledger.results(ledger.read(self.ledger), known)
        return [self._counting(row, runs.get(row.cell.name)) for row in rows]

    def _counting(self, row: Result, here: Result | None) -> Result:
        """Of a cell in the ledger and in the folder what counts: figures and run directory are of the same run."""
        if here and here.run == row.run:
            return replace(row, directory=here.directory)
        return here if here and self.experiment.shows_runs else row

    def write(self) -> Grid:
        """Record what is finished, write ``results.csv``, ``table.md`` and the pictures anew; returns the table."""
        known = self.known()
        results = self.results(known)
        shown = {cell.name for cell in self.selected} | {result.cell.name for result in results}
        cells = [cell for cell in known if cell.name in shown]
        places = entries(self.experiment, cells, results)
        petaflops = self._petaflops(cells)
        table = grid(self.experiment, places, petaflops)
        sentences = caption(self.experiment, self.scale, places, cells, results)
        write_atomic(self.folder / "results.csv", to_csv(self.folder, results, self.experiment.measures))
        earlier = len(cells) > len(self.selected)
        line = f"{self.line}    # and earlier calls, for the cells that this one leaves out" if earlier else self.line
        markdown = to_markdown(self.experiment.title, sentences, table, line, self._pace(results))
        write_atomic(self.folder / "table.md", markdown.encode())
        for name, kind in self.experiment.pictures.items():
            drawn = [result for result in results if result.directory or kind not in OF_RUNS]
            if drawn:
                words = subtitle(kind, self.scale, [result.cell for result in drawn])
                write_atomic(self.folder / name, draw(self.experiment, kind, places, drawn, petaflops, words))
        return table

    def _pace(self, results: Sequence[Result]) -> list[str]:
        timed = pace.table(self.experiment, results)
        if timed is None:
            return []
        return [f"## {pace.title(self.experiment)}", pace.caption(self.experiment, results), timed.to_markdown()]

    def _petaflops(self, cells: Sequence[Cell]) -> dict[str, float]:
        if not self.experiment.compute:
            return {}
        configs = {str(cell.labels["method"]): cell.config for cell in cells}
        return {method: client_petaflops(config) for method, config in configs.items()}


def _sweep(book: Book, jobs: int | None, in_process: bool) -> tuple[Grid, list[Failure]]:
    """Run what is not finished; the table as it is then, and what failed."""
    console = Console()
    try:
        (book.folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {book.folder} cannot be written: {error.strerror or error}") from None
    if jobs == 0:  # nothing to lock: it may be looked at while another sweep works in the folder
        sweep.check_same(book.folder, book.known())
        _announce(console, book, "none is run")
        return book.write(), []
    found = workers.find(jobs, in_process)
    with sweep.locked(book.folder) as lock:
        sweep.check_same(book.folder, book.known())
        cells = book.unfinished()
        _announce(console, book, f"{found.jobs} at once")
        for dataset, data_dir in {(cell.config.dataset, cell.config.data_dir) for cell in cells}:
            datasets.ensure_present(dataset, data_dir)  # once, and not by each cell
        try:
            with SweepView(console, len(book.selected), len(book.selected) - len(cells), book.write) as view:
                failures = sweep.run(cells, book.folder, lock, found, view)
            return book.write(), failures
        except (KeyboardInterrupt, SystemExit) as stop:
            console.print(f"stopped; go on with: {book.line}", highlight=False, soft_wrap=True, markup=False)
            raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)) from None


def _announce(console: Console, book: Book, how: str) -> None:
    """Say how many cells there are to do, and where."""
    done, recorded = len(book.selected) - len(book.unfinished()), len(book.recorded())
    noted = f" ({recorded} in the ledger {book.ledger})" if recorded else ""
    line = f"{len(book.selected)} cells, {done} of them finished{noted}, {how}: {book.folder}"
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _refuse_sweep_options(name: str) -> None:
    """Refuse what says how cells are trained where there are none.

    Raises
    ------
    UserError
        If such an option was given.
    """
    context = click.get_current_context()
    for option in ("scale", "seeds", "only", "jobs", "in_process", "ledger"):
        if context.get_parameter_source(option) not in (ParameterSource.DEFAULT, None):
            given = option.replace("_", "-")
            raise UserError(
                f"--{given} is for experiments that train; {name} follows from formulas and takes only --out"
            )


def _calculate(name: str, folder: Path, out: Path | None) -> None:
    """Write the tables and the picture of a calculation, and show the tables."""
    calculation = CALCULATIONS[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from None
    parts = calculation.parts()
    line = f"sglr paper {name}" + (f" --out {shlex.quote(str(out))}" if out else "")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    texts = []
    for part in parts:
        write_atomic(folder / f"{part.name}.csv", part.to_csv())
        texts.append(to_markdown(part.title, part.caption, part.table, line))
        console.print(to_terminal(part.title, part.table))
    write_atomic(folder / "table.md", "\n".join(texts).encode())
    write_atomic(folder / "picture.png", calculation.draw(parts))
    for path in ("table.md", *(f"{part.name}.csv" for part in parts), "picture.png"):
        console.print(str(folder / path), highlight=False, soft_wrap=True, markup=False)


def _close(book: Book, table: Grid, failures: Sequence[Failure]) -> None:
    """Show the table, where the files lie, and what failed.

    Raises
    ------
    typer.Exit
        With status 1, if a cell failed.
    """
    console = Console()
    if not console.is_terminal:  # a file has no width at which a table must break
        console = Console(width=_FILE_WIDTH)
    console.print(to_terminal(book.experiment.title, table))
    for name in ("table.md", "results.csv", *book.experiment.pictures):
        if (book.folder / name).exists():
            console.print(str(book.folder / name), highlight=False, soft_wrap=True, markup=False)
    for failure in failures:
        console.print(
            f"failed: {failure.cell.name}: {failure.reason} (log: {failure.log})",
            style="red",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    if failures:
        console.print(f"the other cells are kept; go on with: {book.line}", highlight=False, soft_wrap=True)
        raise typer.Exit(1)
