"""A step of this checkout beside that of an older revision: what was built since may cost nothing where it is off.

``python -m benchmarks.revision REVISION``; some six minutes on two cores. The revision is checked out in a folder of
its own for as long. Both take turns, each in fresh processes, with the same settings of the allocator and of idle
threads, which older revisions did not make.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.simulation import simulate
from benchmarks.step import NODES, settings
from sglr_flower.machine import steady_memory

CLIENTS = 20
REPETITIONS = 5


def main(
    revision: Annotated[str, typer.Argument(help="A commit, tag or branch.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = machine.RESULTS / "revision.json",
) -> None:
    """Compare the step of this checkout with an older one's."""
    os.environ.update(steady_memory())
    described = machine.describe()
    with checked_out(revision) as older:
        seconds: dict[Path, list[float]] = {machine.ROOT: [], older: []}
        for _ in range(REPETITIONS):
            for checkout, found in seconds.items():
                (row,) = simulate(settings(CLIENTS), nodes=NODES, checkout=checkout).rows
                found.append(float(row["step_seconds_median"]))
        now, before = seconds.values()
    figures = {
        "now_seconds": machine.spread(now),
        "before_seconds": machine.spread(before),
        "ratio": machine.spread(machine.ratios(now, before)),
    }
    run = settings(CLIENTS) | {"num-clients": CLIENTS}
    machine.save(out, {"machine": described, "revision": revision, "nodes": NODES, "run": run, **figures})
    table = Table("", title=f"A step of {CLIENTS} clients on {NODES} nodes, now and at {revision}")
    for heading in ("now (ms)", "before (ms)", "now / before"):
        table.add_column(heading, justify="right")
    times = [machine.milliseconds(figures[name]) for name in ("now_seconds", "before_seconds")]
    table.add_row("step", *times, machine.ratio(figures["ratio"]))
    Console().print(table)


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the files of a revision, for as long as it is needed."""
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
