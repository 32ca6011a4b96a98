"""What a person sees of a run on the terminal: live progress, and the closing table. Reads the run directory only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sglr_flower.rundir import read_json


class ProgressView:
    """Live progress of a run: a bar on a terminal, a line per round where the output is a file or a pipe.

    Parameters
    ----------
    run_dir : Path
        Its ``status.json`` is read at every `update`.
    rounds : int
        Rounds of the whole run.
    console : Console
        Where to draw.
    """

    def __init__(self, run_dir: Path, rounds: int, console: Console) -> None:
        self._status_file = run_dir / "status.json"
        self._rounds, self._console = rounds, console
        self._first_round: int | None = None
        self._started = time.monotonic()
        self._shown = -1
        self._announced = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting Flower and Ray", total=rounds, figures="")

    def __enter__(self) -> ProgressView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Show how far the run is now."""
        status = read_json(self._status_file)
        if not status:
            return
        if "exchange" in status and not self._announced:
            self._announced = f"{status['nodes']} node(s), exchange: {status['exchange']}"
            self._console.print(f"training on {self._announced}")
        done = int(status.get("rounds_done", status.get("round", 1) - 1))
        steps = int(status.get("steps", 0))
        part = int(status.get("step", 0)) / steps if steps and status.get("round", 0) > done else 0.0
        if self._first_round is None and "round" in status:
            self._first_round, self._started = int(status["round"]), time.monotonic()
        figures = self._figures(status, done + part)
        description = f"round {status.get('round', 1)}/{self._rounds}" if "round" in status else "starting the nodes"
        self._progress.update(self._task, completed=done + part, description=description, figures=figures)
        if not self._console.is_terminal and done != self._shown and done > 0:
            self._console.print(f"round {done}/{self._rounds}: {figures}", highlight=False, soft_wrap=True)
        self._shown = done

    def _figures(self, status: dict[str, Any], done: float) -> str:
        figures = []
        loss = status.get("train_loss", status.get("loss"))
        if loss is not None:
            figures.append(f"loss {loss:.4f}")
        if "accuracy" in status:
            evaluated = status["evaluated_round"]
            of = "" if evaluated == status["rounds_done"] else f" (round {evaluated})"
            figures.append(f"accuracy {100 * status['accuracy']:.2f} %{of}")
        elapsed = time.monotonic() - self._started
        fresh = done - (self._first_round - 1) if self._first_round is not None else 0.0
        if fresh > 0 and elapsed > 0:
            figures.append(f"{fresh * int(status.get('steps', 0)) / elapsed:.1f} steps/s")
            figures.append(f"{_duration((self._rounds - done) * elapsed / fresh)} left")
        return ", ".join(figures)


def closing_table(summary: dict[str, Any], run_dir: Path) -> Table:
    """The table at the end of a run, from its ``summary.json``."""
    table = Table(title=f"{summary['method']} with {summary['model']} on {summary['dataset']}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    loss = "not a number: it diverged" if summary["train_loss"] is None else f"{summary['train_loss']:.4f}"
    one = summary.get("one_network", False)
    of = "the network of all clients, at its" if one else "mean ± std over clients, each at its"
    rows = {
        "test accuracy": f"{_accuracy(summary, 'test_accuracy', one)} on {summary['evaluated_images']:,} images ({of} "
        "best validation round)",
        "last round": f"{_accuracy(summary, 'last_round_test_accuracy', one)}, training loss {loss}",
        "clients, nodes": f"{summary['clients']} on {summary['nodes']}, exchange: {summary['exchange']}",
        "rounds, steps": f"{summary['rounds']}, {summary['steps']}",
        "time": f"{_duration(summary['seconds'])}, median step {1000 * summary['step_seconds_median']:.0f} ms",
        "exchanged": f"{_bytes(summary['bytes_up'])} up, {_bytes(summary['bytes_down'])} down",
        "run directory": str(run_dir),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _accuracy(summary: dict[str, Any], figure: str, one: bool) -> str:
    spread = "" if one else f" ± {100 * summary[f'{figure}_std']:.2f}"
    return f"{100 * summary[f'{figure}_mean']:.2f}{spread} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
