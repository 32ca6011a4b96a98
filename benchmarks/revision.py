"""A run of this checkout beside that of an older revision: what was built since may cost nothing where it is off.

Two times are compared: that of a step, and from ``sglr run`` to the first step.
``python -m benchmarks.revision REVISION``; some six minutes on two cores. The revision is checked out in a folder of
its own for as long. Both take turns, each in fresh processes, with the same settings of the allocator and of idle
threads, which older revisions did not make.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.progress import Progress
from benchmarks.simulation import Outcome, simulate
from benchmarks.step import NODES, settings
from sglr_flower.errors import UserError
from sglr_flower.run.machine import steady_memory

CLIENTS = 20
REPETITIONS = 5


def main(
    revision: Annotated[str, typer.Argument(help="A commit, tag or branch.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = machine.RESULTS / "revision.json",
) -> None:
    """Compare the step and the start of this checkout with an older one's."""
    os.environ.update(steady_memory())
    described = machine.describe()
    with checked_out(revision) as older:
        found: dict[Path, list[Outcome]] = {machine.ROOT: [], older: []}
        turns = [checkout for _ in range(REPETITIONS) for checkout in found]
        names = {machine.ROOT: "this checkout", older: revision}
        with Progress([names[checkout] for checkout in turns], out) as progress:
            for number, checkout in enumerate(turns, 1):
                take = partial(simulate, settings(CLIENTS), nodes=NODES, checkout=checkout)
                found[checkout].append(progress.measure(names[checkout], take, _told))
                figures = {
                    name: compared(*([of(one) for one in outcomes] for outcomes in found.values()))
                    for name, of in TIMES
                }
                result = {"machine": described, "finished": number == len(turns), "revision": revision}
                machine.save(out, result | {"nodes": NODES, "run": settings(CLIENTS), "times": figures})
    console = Console()
    console.print(table(revision, figures))
    console.print(f"written: {out}", soft_wrap=True)


def _told(outcome: Outcome) -> str:
    return f"a step {machine.told(_step_seconds(outcome))}, to the first {outcome.seconds_to_first_step:.1f} s"


def _step_seconds(outcome: Outcome) -> float:
    (row,) = outcome.rows
    return float(row["step_seconds_median"])


TIMES: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
    ("step", _step_seconds),
    ("to the first step", lambda outcome: outcome.seconds_to_first_step),
)


def compared(now: list[float], before: list[float]) -> dict[str, Any]:
    """Seconds of repetitions that took turns, and their ratios, as far as they are measured."""
    ratios = machine.ratios(now, before)
    return {name: machine.spread(of) for name, of in (("now", now), ("before", before), ("ratio", ratios)) if of}


def table(revision: str, figures: Mapping[str, Any]) -> Table:
    """A line for each of the times."""
    shown = Table("", title=f"{CLIENTS} clients on {NODES} nodes, now and at {revision}")
    for heading in ("now (ms)", "before (ms)", "now / before"):
        shown.add_column(heading, justify="right")
    for name, of in figures.items():
        shown.add_row(name, *(machine.milliseconds(of[when]) for when in ("now", "before")), machine.ratio(of["ratio"]))
    return shown


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the files of a revision, for as long as it is needed.

    Raises
    ------
    UserError
        If there is no such revision.
    """
    known = ["git", "-C", str(machine.ROOT), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    if subprocess.run(known, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise UserError(f"revision {revision!r}: it must be a commit, tag or branch of {machine.ROOT}")
    git = ["git", "-C", str(machine.ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="sglr-revision-") as home:
        folder = Path(home) / "checkout"
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


if __name__ == "__main__":
    machine.run(main)
