"""A training step through `sglr run` beside the same step of a plain PyTorch loop, ResNet16, batches of eight.

``sglr bench step`` or ``python -m benchmarks.step``; half an hour on two cores, with ``--quick`` four minutes.
The two take turns, each in fresh processes, so that a machine that gets slower or faster meanwhile does so for both; so
does a third, which measures how fast the machine multiplies matrices, and with that what the step's operations take at
least (`benchmarks.floor`), and a run with ``autocast``, whose results are others.
The images are the bundled digits at 32 x 32, so that nothing has to be there; a step's cost does not depend on them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, picture
from benchmarks.simulation import environment, simulate

CLIENTS = (2, 10, 20, 50)
NODES = 2
STEPS_PER_EPOCH = 2
RUN = {
    "dataset": "digits",
    "image-size": 32,
    "samples-per-client": 8 * STEPS_PER_EPOCH,
    "num-server-rounds": 1,
    "evaluate-every": 0,
    "evaluate-samples": 10,
}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="20 clients only, three repetitions.")] = False,
    only: Annotated[list[int] | None, typer.Option(help="A number of clients; may be given again.")] = None,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = machine.RESULTS / "step.json",
) -> None:
    """Compare a run's step with a plain loop's."""
    counts, repetitions = ((20,), 3) if quick else (only or CLIENTS, 5)
    described = machine.describe()
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for clients in counts:
            seconds[clients, "run"].append(run_step_seconds(clients))
            seconds[clients, "mixed"].append(run_step_seconds(clients, autocast="bfloat16"))
            seconds[clients, "plain loop"].append(measured("benchmarks.plain", clients))
            seconds[clients, "floor"].append(measured("benchmarks.floor", clients))
    cells = [
        {
            "clients": clients,
            "run_seconds": machine.spread(seconds[clients, "run"]),
            "mixed_precision_run_seconds": machine.spread(seconds[clients, "mixed"]),
            "plain_loop_seconds": machine.spread(seconds[clients, "plain loop"]),
            "ratio": machine.spread(machine.ratios(seconds[clients, "run"], seconds[clients, "plain loop"])),
            "floor_seconds": machine.spread(seconds[clients, "floor"]),
        }
        for clients in counts
    ]
    machine.save(out, {"machine": described, "nodes": NODES, "run": RUN, "steps": cells})
    console = Console()
    console.print(table(cells))
    console.print(f"written: {out}, {draw(cells, out)}", soft_wrap=True)


def settings(clients: int) -> dict[str, Any]:
    """A run of about a quarter of a minute."""
    return {**RUN, "num-clients": clients, "local-epochs": max(10, 200 // clients)}


def run_step_seconds(clients: int, **changes: str) -> float:
    """Median time of a run's step, two nodes; ``changes`` to its settings."""
    (row,) = simulate(settings(clients) | changes, nodes=NODES).rows
    return float(row["step_seconds_median"])


def measured(module: str, clients: int) -> float:
    """Median seconds of a step as a module finds them, in a process of its own with torch's default threads."""
    with tempfile.TemporaryDirectory() as home:
        config, out = Path(home) / "run.toml", Path(home) / "seconds.json"
        config.write_text(tomli_w.dumps(settings(clients)), encoding="utf-8")
        command = [sys.executable, "-m", module, str(config), str(out)]
        subprocess.run(command, cwd=machine.ROOT, env=environment(), check=True)
        seconds = json.loads(out.read_text(encoding="utf-8"))
    return statistics.median(seconds[1:] or seconds)  # the first step is slower


def table(cells: list[dict[str, Any]]) -> Table:
    """Milliseconds per step by clients, and the ratio."""
    found = Table("clients", title=f"A step of a run on {NODES} nodes beside the plain loop's")
    headings = ("plain loop (ms)", "run (ms)", "run / plain loop", "operations alone (ms)", "run in bfloat16 (ms)")
    for heading in headings:
        found.add_column(heading, justify="right")
    for cell in cells:
        times = [machine.milliseconds(cell[name]) for name in ("plain_loop_seconds", "run_seconds")]
        others = [machine.milliseconds(cell[name]) for name in ("floor_seconds", "mixed_precision_run_seconds")]
        found.add_row(str(cell["clients"]), *times, machine.ratio(cell["ratio"]), *others)
    return found


def draw(cells: list[dict[str, Any]], out: Path) -> Path:
    """Both times over the number of clients."""
    lines = {
        label: [(cell["clients"], 1000 * cell[key]["median"]) for cell in cells]
        for label, key in (("plain PyTorch loop", "plain_loop_seconds"), ("sglr run, 2 nodes", "run_seconds"))
    }
    return picture.lines(out.with_suffix(".png"), lines, "clients", "milliseconds per step")


if __name__ == "__main__":
    machine.run(main)
