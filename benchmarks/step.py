"""A training step through `sglr run` beside the same step of a plain PyTorch loop, ResNet16, batches of eight.

``sglr bench step`` or ``python -m benchmarks.step``; half an hour on two cores, with ``--quick`` four minutes.
The two take turns, each in fresh processes, so that a machine that gets slower or faster meanwhile does so for both; so
does a third, which measures how fast the machine multiplies matrices, and with that what the step's operations take at
least (`benchmarks.floor`), and where the CPU has instructions for it a run with ``autocast``, whose results are others.
The images are the bundled digits at 32 x 32, so that nothing has to be there; a step's cost does not depend on them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, picture
from benchmarks.progress import Progress
from benchmarks.simulation import environment, simulate
from sglr_flower.run.machine import has_bfloat16

CLIENTS = (2, 10, 20, 50)
NODES = 2
AUTOCAST = "run in bfloat16"
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
    kinds = dict(KINDS)
    if not has_bfloat16():
        del kinds[AUTOCAST]
        print("autocast is passed over: this CPU has no instructions for bfloat16 and would take ten times as long")
    described = machine.describe()
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    turns = [(clients, kind) for _ in range(repetitions) for clients in counts for kind in kinds]
    with Progress([_part(*turn) for turn in turns], out) as progress:
        for clients, kind in turns:
            take = partial(kinds[kind], clients)
            seconds[clients, kind].append(progress.measure(_part(clients, kind), take, machine.told))
            cells = [cell(count, {name: seconds[count, name] for name in kinds}) for count in counts]
            finished = all(len(seconds[turn]) == repetitions for turn in turns)
            result = {"machine": described, "finished": finished, "nodes": NODES, "run": RUN, "steps": cells}
            machine.save(out, result)
    console = Console()
    console.print(table(cells))
    console.print(f"written: {out}, {draw(cells, out)}", soft_wrap=True)


def _part(clients: int, kind: str) -> str:
    return f"{clients} clients, {kind}"


def cell(clients: int, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """What was measured with so many clients, as far as it is; ``seconds``: of each of `KINDS`."""
    names = {"run": "run", AUTOCAST: "mixed_precision_run", "plain loop": "plain_loop", "operations alone": "floor"}
    times = {f"{names[kind]}_seconds": machine.spread(found) for kind, found in seconds.items() if found}
    ratios = machine.ratios(seconds["run"], seconds["plain loop"])
    return {"clients": clients, **times, **({"ratio": machine.spread(ratios)} if ratios else {})}


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
        done = subprocess.run(command, cwd=machine.ROOT, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{module} failed:\n{done.stderr[-3000:]}")
        seconds: list[float] = json.loads(out.read_text(encoding="utf-8"))
    return statistics.median(seconds[1:] or seconds)  # the first step is slower


KINDS: dict[str, Callable[[int], float]] = {
    "run": run_step_seconds,
    AUTOCAST: partial(run_step_seconds, autocast="bfloat16"),
    "plain loop": partial(measured, "benchmarks.plain"),
    "operations alone": partial(measured, "benchmarks.floor"),
}
"""What takes turns -> the seconds of a step of so many clients."""


def table(cells: list[dict[str, Any]]) -> Table:
    """Milliseconds per step by clients, and the ratio."""
    mixed = any("mixed_precision_run_seconds" in one for one in cells)
    found = Table("clients", title=f"A step of a run on {NODES} nodes beside the plain loop's")
    headings = ["plain loop (ms)", "run (ms)", "run / plain loop", "operations alone (ms)"]
    for heading in headings + ["run in bfloat16 (ms)"] * mixed:
        found.add_column(heading, justify="right")
    for one in cells:
        times = [machine.milliseconds(one[name]) for name in ("plain_loop_seconds", "run_seconds")]
        others = [machine.milliseconds(one["floor_seconds"])]
        if mixed:
            others.append(machine.milliseconds(one["mixed_precision_run_seconds"]))
        found.add_row(str(one["clients"]), *times, machine.ratio(one["ratio"]), *others)
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
