"""What a person sees of a sweep: live progress on a terminal, a line per finished cell in a file or pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.studies.paper.sweep import Failure, Running

_REDRAW_SECONDS = 0.5


class SweepView:
    """Live progress of a sweep, a `sweep.Watcher`.

    Parameters
    ----------
    console : Console
        Where to draw.
    total, done : int
        Cells that were chosen, and how many of them are finished already.
    rebuild : Callable[[], object]
        Writes table and picture anew; called after each finished cell.
    """

    def __init__(self, console: Console, total: int, done: int, rebuild: Callable[[], object]) -> None:
        self._console, self._total, self._done, self._rebuild = console, total, done, rebuild
        self._due = 0.0
        self._rows: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._progress.add_task("cells", total=total, completed=done, figures="")

    def __enter__(self) -> SweepView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, running: Sequence[Running]) -> None:
        """Show how far the cells under way are."""
        now = time.monotonic()
        if not self._console.is_terminal or now < self._due:
            return
        self._due = now + _REDRAW_SECONDS
        for cell in running:
            status = read_json(cell.run_dir / "status.json")
            name = cell.cell.name
            if name not in self._rows:
                rounds = cell.cell.config.num_server_rounds
                self._rows[name] = self._progress.add_task(f"  {name}", total=rounds, figures="")
            loss = status.get("train_loss")
            figures = f"loss {loss:.4f}" if isinstance(loss, float) else "starting"
            self._progress.update(self._rows[name], completed=int(status.get("rounds_done", 0)), figures=figures)

    def finished(self, running: Running) -> None:
        """Say what a cell's result is, and rebuild what is made of it."""
        self._close(running.cell.name)
        totals = RunDirectory(running.run_dir).summary().totals
        seconds = time.monotonic() - running.started
        self._say(f"{running.cell.name}: {totals.score.text(totals.test_score_mean)} in {seconds:.0f} s")
        self._rebuild()

    def failed(self, failure: Failure) -> None:
        """Say why a cell has no result."""
        self._close(failure.cell.name)
        self._say(f"{failure.cell.name}: failed: {failure.reason}")

    def _close(self, name: str) -> None:
        self._done += 1
        self._progress.update(self._all, completed=self._done)
        if name in self._rows:
            self._progress.remove_task(self._rows.pop(name))

    def _say(self, line: str) -> None:
        self._console.print(f"[{self._done}/{self._total}] {line}", highlight=False, soft_wrap=True, markup=False)
