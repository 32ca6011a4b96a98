"""What a step costs on this device in each of its forms, and what it cannot be cheaper than.

``python -m benchmarks.device.steps`` writes ``floors.json``, then ``steps.json`` by `benchmarks.gpu`.
"""

from __future__ import annotations

import traceback
from typing import Any

import typer

from benchmarks import floor, gpu, machine
from benchmarks.apart import Apart
from benchmarks.device import floors, part
from benchmarks.gpu import FORMS, PLAIN
from sglr_flower.run.config import RunConfig

PROFILED = (20, 100)
FLOORS_SHARE = 0.35
"""Of the part's time, for the floors."""


def main(out: part.Out, seconds: part.Seconds = 150, rehearse: part.Rehearse = False) -> None:
    """Measure the floors, then the steps until the time is over."""
    clock, place = part.Clock(seconds), part.place(rehearse)
    counts = (2,) if rehearse else PROFILED
    if rehearse:
        gpu.RUN["image-size"] = 8
    result: dict[str, Any] = {"machine": {**machine.describe(), "device": gpu.described_device(place)}}
    result["launch_seconds"] = floors.launch_seconds(place)
    result["operations_per_second"] = floors.speeds(place)
    result["steps"], result["profiles"] = [], []
    machine.save(out / "floors.json", result)
    profiling = part.Clock(FLOORS_SHARE * seconds)
    # A plain loop's and a loop's kernels are as many times more as there are clients: small counts tell them.
    apart = Apart()
    for clients, form in [(clients, form) for clients in counts for form in FORMS]:
        if profiling.left() < 0 or (clients > counts[0] and form in (PLAIN, "loop")):
            continue
        config = RunConfig.parse({**gpu.RUN, "num-clients": clients, "local-epochs": 1})
        try:
            figures, table = gpu.where(form, apart)(floors.profiled, form, config, place)
        except Exception:  # a profiler that does not work must not cost the measurements
            traceback.print_exc()
            continue
        operations = floor.step_operations(config)
        figures["launch_floor_seconds"] = figures["kernels"] * result["launch_seconds"]
        figures["operations"] = operations
        figures["arithmetic_floor_seconds"] = {
            name: operations / speed for name, speed in result["operations_per_second"].items()
        }
        result["steps"].append(figures)
        result["profiles"].append(table)
        machine.save(out / "floors.json", result)
        typer.echo(
            f"{clients} clients, {form}: {figures['kernels']:,.0f} kernels, {1000 * figures['kernel_seconds']:.3g} ms "
            f"of them; floors: launches {1000 * figures['launch_floor_seconds']:.3g} ms, arithmetic "
            f"{1000 * figures['arithmetic_floor_seconds']['float32']:.3g} ms"
        )
    apart.end()
    if result["profiles"]:
        typer.echo(result["profiles"][-1])
    gpu.main(
        quick=rehearse,
        only=list(counts) if rehearse else None,
        device=place.type,
        out=out / "steps.json",
        minutes=max(clock.left(), 1.0) / 60,
        picture=False,
    )


if __name__ == "__main__":
    machine.run(main)
