"""Step time over the stream, plain and with TLS, beside the same steps over Flower messages.

``sglr bench exchange`` or ``python -m benchmarks.exchange``, 40 minutes on two cores; with ``--quick`` a few. It
prints four tables (the stream by itself, the parts of a step, a simulation, a deployment) and writes
``benchmarks/results/exchange.json`` and a picture. All repetitions are interleaved, so that a machine that gets slower
or faster meanwhile does so for all.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, picture
from benchmarks.deployment import Federation, federation
from benchmarks.models import NARROW
from benchmarks.parts import step_parts
from benchmarks.progress import Progress
from benchmarks.simulation import simulate
from benchmarks.wire import NODES, wire
from sglr_flower.run.rundir import read_json

PAYLOADS = {"16 KiB": 2**14, "256 KiB": 2**18, "2.5 MiB": 5 * 2**19, "16 MiB": 2**24}
"""Bytes of a node's frame; 256 KiB: four clients' batches of 8 of ResNet16, 2.5 MiB: forty such."""

RUN = {
    "dataset": "digits",
    "num-clients": 8,  # four on each of two nodes: 256 KiB of smashed data per node and step
    "samples-per-client": 24,  # three steps of a batch of 8 in an epoch
    "num-server-rounds": 1,
    "evaluate-samples": 10,
}
STEPS_PER_EPOCH = 3
MODELS = {"narrow": NARROW, "resnet16": "resnet16"}
TRANSPORTS = ("memory", "plain", "tls")
"""How the stream's tensors go: in shared memory as between a simulation's processes, or over the wire."""
WAYS = (("stream", "plain"), ("stream", "tls"), ("grid", "tls"))
"""Exchange and transport; Flower messages go over a federation with TLS, as they would between machines."""


Figures = Iterator[tuple[bool, Any]]
"""After every measurement whether it was the last one, and the figures as they are then."""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer payloads, steps and repetitions.")] = False,
    only: Annotated[str, typer.Option(help="One part: wire, parts, simulation or deployment.")] = "",
    out: Annotated[Path, typer.Option(help="The JSON file to write; a part replaces itself in it.")] = machine.RESULTS
    / "exchange.json",
) -> None:
    """Measure what a step's exchange costs."""
    parts: dict[str, tuple[Callable[[bool, Path], Figures], Callable[[Any], Table]]] = {
        "wire": (measure_wire, wire_table),
        "parts": (measure_parts, parts_table),
        "simulation": (measure_simulation, simulation_table),
        "deployment": (measure_deployment, deployment_table),
    }
    machine.choose([only] if only else [], parts)
    result: dict[str, Any] = read_json(out) if only else {}
    console = Console()
    for name in (only,) if only else parts:
        measure, show = parts[name]
        described = machine.describe()
        console.print(f"{name}:")
        for finished, figures in measure(quick, out):
            result[name] = {"machine": described, "finished": finished, "nodes": NODES, "run": RUN, "figures": figures}
            machine.save(out, result)
        console.print(show(result[name]["figures"]))
    if "wire" in result:
        draw(result["wire"]["figures"], out)
    console.print(f"written: {out} and its picture", soft_wrap=True)


def measure_wire(quick: bool, out: Path) -> Figures:
    """Step times without Flower: per payload and transport the repetitions' medians, in seconds."""
    payloads = dict(itertools.islice(PAYLOADS.items(), 2)) if quick else PAYLOADS
    repetitions, steps = (3, 100) if quick else (7, 300)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    turns = list(itertools.product(range(repetitions), payloads.items(), TRANSPORTS))
    with wire() as pair, Progress([f"{name}, {transport}" for _, (name, _), transport in turns], out) as progress:
        for transport in TRANSPORTS:
            pair.step_seconds(transport, PAYLOADS["16 KiB"], 20)  # imports, first connections
        for number, (_, (name, size), transport) in enumerate(turns, 1):
            # The largest get fewer steps, as they are as long as many small ones.
            count = max(30, min(steps, steps * 2**20 // size))
            take = partial(pair.step_seconds, transport, size, count)
            seconds[name, transport].append(progress.measure(f"{name}, {transport}", take, machine.told))
            yield (
                number == len(turns),
                [
                    {"payload": name, "bytes": payloads[name], "transport": transport, "step_seconds": spread}
                    for (name, transport), times in seconds.items()
                    for spread in [machine.spread(times)]
                ],
            )


def measure_simulation(quick: bool, out: Path) -> Figures:
    """Step times of a simulation by exchange, in seconds, and their ratio; a network of almost no work."""
    seconds: dict[str, list[float]] = defaultdict(list)
    turns = list(itertools.product(range(1 if quick else 5), (("stream", 60), ("grid", 4))))
    with Progress([f"simulation, {exchange}" for _, (exchange, _) in turns], out) as progress:
        for number, (_, (exchange, epochs)) in enumerate(turns, 1):
            settings = {**RUN, "model": NARROW, "exchange": exchange, "local-epochs": epochs}
            take = partial(_simulated, settings)
            seconds[exchange].append(progress.measure(f"simulation, {exchange}", take, machine.told))
            ratios = machine.ratios(seconds["stream"], seconds["grid"])
            times = [*seconds.items(), ("ratio", ratios)]
            yield number == len(turns), {name: machine.spread(of) for name, of in times if of}


def _simulated(settings: dict[str, Any]) -> float:
    (row,) = simulate(settings, nodes=NODES).rows
    return float(row["step_seconds_median"])


def measure_parts(quick: bool, out: Path) -> Figures:
    """The parts of a step of 20 clients, in seconds, and the share of it that is neither a node's nor the server's."""
    clients, repetitions = 20, 1 if quick else 5
    found: list[dict[str, float]] = []
    with Progress([part := f"{clients} clients"] * repetitions, out) as progress:
        for number in range(1, repetitions + 1):
            take = partial(step_parts, clients, 10 if quick else 20)
            found.append(progress.measure(part, take, lambda parts: machine.told(parts["step"])))
            names = ("nodes", "server", "step", "share")
            cell = {name: machine.spread([parts[name] for parts in found]) for name in names}
            yield number == repetitions, {"clients": clients, **cell}


def measure_deployment(quick: bool, out: Path) -> Figures:
    """Step times of deployed runs: per model and way the repetitions' medians, in seconds."""
    models = {"narrow": NARROW} if quick else MODELS
    epochs = {"stream": 20 if quick else 60, "grid": 2}  # a step over Flower messages takes seconds
    found: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    federations = [transport for _ in range(1 if quick else 5) for transport in ("plain", "tls")]
    within = {
        transport: [
            (model, exchange) for (exchange, over), model in itertools.product(WAYS, models) if over == transport
        ]
        for transport in federations
    }
    turns = [(*turn, transport) for transport in federations for turn in within[transport]]
    done = 0
    with Progress([", ".join(turn) for turn in turns], out) as progress:
        for transport in federations:
            with federation(tls=transport == "tls") as running:
                for model, exchange in within[transport]:
                    take = partial(_round, running, models[model], exchange, epochs[exchange])
                    row = progress.measure(f"{model}, {exchange}, {transport}", take, _told)
                    found[model, exchange, transport].append(row)
                    done += 1
                    yield done == len(turns), deployment_cells(found)


def _told(row: dict[str, str]) -> str:
    return machine.told(float(row["step_seconds_median"]))


def deployment_cells(found: Mapping[tuple[str, str, str], list[dict[str, str]]]) -> list[dict[str, Any]]:
    """The repetitions' medians by model, exchange and transport, as far as they are measured."""
    return [
        {
            "model": model,
            "exchange": exchange,
            "transport": transport,
            "steps": int(rows[0]["steps"]),
            "bytes_up_per_node_and_step": int(rows[0]["bytes_up"]) // int(rows[0]["steps"]) // NODES,
            "bytes_down_per_node_and_step": int(rows[0]["bytes_down"]) // int(rows[0]["steps"]) // NODES,
            "step_seconds": machine.spread([float(row["step_seconds_median"]) for row in rows]),
        }
        for (model, exchange, transport), rows in sorted(found.items())
    ]


def _round(running: Federation, model: str, exchange: str, epochs: int) -> dict[str, str]:
    (row,) = running.run({**RUN, "model": model, "exchange": exchange, "local-epochs": epochs})
    assert int(row["steps"]) == epochs * STEPS_PER_EPOCH
    return row


def wire_table(cells: list[dict[str, Any]]) -> Table:
    """Milliseconds per step by payload: in shared memory, plain, TLS, and ratios to plain."""
    table = Table("payload", title=f"The stream by itself, {NODES} nodes on loopback, payload per node and way")
    for heading in ("shared memory (ms)", "plain (ms)", "TLS (ms)", "memory / plain", "TLS / plain"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(cell["payload"] for cell in cells):
        times = {cell["transport"]: cell["step_seconds"] for cell in cells if cell["payload"] == name}
        ratios = [times[transport]["median"] / times["plain"]["median"] for transport in ("memory", "tls")]
        shown = [machine.milliseconds(times[transport]) for transport in TRANSPORTS]
        table.add_row(name, *shown, *(f"{ratio:.2f}" for ratio in ratios))
    return table


def parts_table(parts: dict[str, Any]) -> Table:
    """Milliseconds of a step's parts, and the exchange's share."""
    table = Table(title=f"The parts of a step, {parts['clients']} clients of ResNet16, {NODES} nodes, without Flower")
    for heading in ("nodes (ms)", "server (ms)", "whole step (ms)", "exchange's share"):
        table.add_column(heading, justify="right")
    shown = [machine.milliseconds(parts[name]) for name in ("nodes", "server", "step")]
    table.add_row(*shown, f"{100 * parts['share']['median']:.1f} %")
    return table


def simulation_table(times: dict[str, Any]) -> Table:
    """Milliseconds per step of a simulation: the stream, Flower messages, and their ratio."""
    table = Table(title=f"Steps of a simulation, {NODES} nodes, 256 KiB per node and way")
    for heading in ("stream (ms)", "Flower messages (ms)", "stream / messages"):
        table.add_column(heading, justify="right")
    table.add_row(
        machine.milliseconds(times["stream"]), machine.milliseconds(times["grid"]), f"{times['ratio']['median']:.4f}"
    )
    return table


def draw(cells: list[dict[str, Any]], out: Path) -> Path:
    """The stream by itself over the payload."""
    lines = {
        label: [
            (cell["bytes"] / 1024, 1000 * cell["step_seconds"]["median"]) for cell in cells if cell["transport"] == key
        ]
        for key, label in (("memory", "shared memory"), ("plain", "plain"), ("tls", "TLS"))
    }
    return picture.lines(out.with_suffix(".png"), lines, "KiB per node and way", "milliseconds per step", log_up=True)


def deployment_table(cells: list[dict[str, Any]]) -> Table:
    """Milliseconds per step of deployed runs by model and way, and the ratio to the stream without TLS."""
    table = Table("model", "exchange", "transport", title="Steps of a deployed run")
    for heading in ("steps", "up (KiB)", "median step (ms)", "/ plain stream"):
        table.add_column(heading, justify="right")
    for model in dict.fromkeys(cell["model"] for cell in cells):
        of_model = {(cell["exchange"], cell["transport"]): cell for cell in cells if cell["model"] == model}
        for exchange, transport in WAYS:
            cell = of_model[exchange, transport]
            ratio = cell["step_seconds"]["median"] / of_model["stream", "plain"]["step_seconds"]["median"]
            size = f"{cell['bytes_up_per_node_and_step'] / 1024:.0f}"
            way = [model, exchange, "TLS" if transport == "tls" else "plain", str(cell["steps"]), size]
            table.add_row(*way, machine.milliseconds(cell["step_seconds"]), f"{ratio:.3g}")
    return table


if __name__ == "__main__":
    machine.run(main)
