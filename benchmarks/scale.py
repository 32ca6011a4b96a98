"""Time per client and step, memory and start-up, from ten clients to ten thousand; ResNet16, two nodes, batches of 8.

``sglr bench scale`` or ``python -m benchmarks.scale``; half an hour on two cores, with ``--quick`` a few minutes. It
needs Fashion-MNIST (``SGLR_DATA_DIR``), as the bundled digits are too few. Up to 1,000 clients all are in every step;
of 10,000 a hundred are in a round, and as there are not enough images for batches of eight they have four each.
Repetitions are interleaved. Memory is the proportional set size (pages that processes share are shared out) of all
processes of the run, looked at every half second, or less often where looking takes long.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, picture
from benchmarks.progress import Progress
from benchmarks.simulation import Memory, Outcome, simulate
from sglr_flower.data.datasets import ensure_present

NODES = 2
GIB = 2**30
REFERENCE = 20
"""Clients whose time per client and step the others are compared with."""
RUN: dict[str, Any] = {
    "dataset": "fashion-mnist",
    "samples-per-client": 48,
    "num-server-rounds": 1,
    "evaluate-every": 0,
    "evaluate-samples": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "10": {"num-clients": 10, "local-epochs": 4},
    "20": {"num-clients": 20, "local-epochs": 4},
    "100": {"num-clients": 100},
    "300": {"num-clients": 300},
    "1,000": {"num-clients": 1000},
    "1,000, recompute": {"num-clients": 1000, "recompute": True},
    "10,000, 100 a round": {
        "num-clients": 10_000,
        "fraction-train": 0.01,
        "samples-per-client": 4,
        "batch-size": 4,
        "num-server-rounds": 4,
        "local-epochs": 4,
        "checkpoint-every": 4,
    },
}
QUICK = ("20", "100", "300")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="20, 100 and 300 clients, once.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="One of the cases; may be given again.")] = None,
    repetitions: Annotated[int, typer.Option(help="Of each case.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = machine.RESULTS / "scale.json",
) -> None:
    """Measure what a client costs as clients become more."""
    machine.choose(only or (), CASES)
    ensure_present("fashion-mnist", "")
    described = machine.describe()
    cases = {name: CASES[name] for name in only or (QUICK if quick else CASES)}
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    turns = [name for _ in range(1 if quick else repetitions) for name in cases]
    with Progress([f"{name} clients" for name in turns], out) as progress:
        for number, name in enumerate(turns, 1):
            take = partial(simulate, {**RUN, **cases[name]}, nodes=NODES, watch_memory=True)
            outcomes[name].append(progress.measure(f"{name} clients", take, _told))
            cells = [cell(case, cases[case], found) for case, found in outcomes.items()]
            finished = number == len(turns)
            machine.save(out, {"machine": described, "finished": finished, "nodes": NODES, "run": RUN, "cases": cells})
    console = Console()
    console.print(table(cells))
    console.print(f"written: {out}, {draw(cells, out)}", soft_wrap=True)


def _told(outcome: Outcome) -> str:
    steps = statistics.median(float(row["step_seconds_median"]) for row in outcome.rows)
    return f"a step {machine.told(steps)}, peak {outcome.memory.total / GIB:.2f} GiB"


def cell(name: str, settings: dict[str, Any], outcomes: list[Outcome]) -> dict[str, Any]:
    """What the repetitions of a case gave."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    in_step = int(rows[0]["clients"])
    per_client = [
        statistics.median(float(row["step_seconds_median"]) for row in outcome.rows) / in_step for outcome in outcomes
    ]
    return {
        "case": name,
        "settings": settings,
        "clients_in_a_step": in_step,
        "client_step_seconds": machine.spread(per_client),
        "round_seconds": machine.spread([float(outcome.rows[-1]["seconds"]) for outcome in outcomes]),
        "steps_of_a_round": int(rows[0]["steps"]),
        "first_step_seconds": machine.spread([outcome.seconds_to_first_step for outcome in outcomes]),
        "peak_bytes": machine.spread([outcome.memory.total for outcome in outcomes]),
        "peak_bytes_of_a_node": machine.spread([max(_nodes(outcome.memory)) for outcome in outcomes]),
        "peak_bytes_of": [outcome.memory.of for outcome in outcomes],
    }


def _nodes(memory: Memory) -> list[int]:
    return memory.of.get("node", [0])


def table(cells: list[dict[str, Any]]) -> Table:
    """A line for each case."""
    found = Table("clients", title=f"What a client costs, {NODES} nodes")
    headings = (
        "client-step (ms)",
        f"/ of {REFERENCE}",
        "peak, all (GiB)",
        "peak, a node (GiB)",
        "to the first step (s)",
    )
    for heading in headings:
        found.add_column(heading, justify="right")
    per = {one["case"]: one["client_step_seconds"]["median"] for one in cells}
    for one in cells:
        reference = per.get(str(REFERENCE))
        found.add_row(
            one["case"],
            machine.milliseconds(one["client_step_seconds"]),
            f"{per[one['case']] / reference:.2f}" if reference else "",
            f"{one['peak_bytes']['median'] / GIB:.2f}",
            f"{one['peak_bytes_of_a_node']['median'] / GIB:.2f}",
            f"{one['first_step_seconds']['median']:.1f}",
        )
    return found


def draw(cells: list[dict[str, Any]], out: Path) -> Path:
    """Time per client and step, of the cases in which all clients are in every step."""
    points = [
        (one["clients_in_a_step"], 1000 * one["client_step_seconds"]["median"])
        for one in cells
        if one["case"].replace(",", "").isdecimal()
    ]
    lines = {"all clients in every step": points}
    return picture.lines(out.with_suffix(".png"), lines, "clients", "milliseconds per client and step")


if __name__ == "__main__":
    machine.run(main)
