"""Resident memory of a long round: 5,000 steps over the TLS stream of a deployed run, watched from outside.

``python -m benchmarks.soak`` from the checkout, a few minutes on an idle machine; with ``--quick`` 300 steps. It writes
``benchmarks/results/soak.json`` and ``soak.png``, and prints how fast each process grew over the second half.
"""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.deployment import Federation, federation
from benchmarks.models import NARROW
from benchmarks.progress import duration
from sglr_flower.run import drawing
from sglr_flower.run.rundir import RunDirectory, read_json

SECONDS_BETWEEN_SAMPLES = 2.0
SAMPLES_BETWEEN_LINES = 15
STEPS_PER_EPOCH = 3
RUN = {
    "model": NARROW,  # what may grow is what belongs to a frame, so the steps may be short
    "dataset": "digits",
    "num-clients": 8,
    "samples-per-client": 24,  # three steps of a batch of 8
    "num-server-rounds": 1,
    "evaluate-samples": 10,
    "exchange": "stream",
}


@dataclass(frozen=True)
class Sample:
    """What a process held at a moment of the round.

    Attributes
    ----------
    process : str
        Which: ``ServerApp``, ``ClientApp node-1``, ...
    step : int
        Steps of the round done.
    seconds : float
        Since the run was submitted.
    resident_mb : float
        Resident memory, 10^6 bytes.
    """

    process: str
    step: int
    seconds: float
    resident_mb: float


def main(
    quick: Annotated[bool, typer.Option("--quick", help="300 steps.")] = False,
    out: Annotated[Path, typer.Option(help="The JSON file to write; the picture lies beside it.")] = machine.RESULTS
    / "soak.json",
) -> None:
    """Watch the memory of a long round."""
    epochs = (300 if quick else 5_000 + STEPS_PER_EPOCH - 1) // STEPS_PER_EPOCH
    steps = epochs * STEPS_PER_EPOCH
    described = machine.describe()
    with federation(tls=True) as running:
        settings = {**RUN, "local-epochs": epochs}
        with running.running(settings) as (process, run_dir):
            samples = list(watch(running, process, run_dir))
            if process.wait() != 0:
                raise RuntimeError(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-3000:]}")
            totals = RunDirectory(run_dir).summary().totals
    assert totals.steps == steps
    growth = {name: slope(of) for name, of in by_process(samples).items()}
    result = {
        "machine": described,
        "run": settings,
        "steps": steps,
        "step_seconds_median": totals.step_seconds_median,
        "growth_mb_per_1000_steps_second_half": growth,
        "samples": [asdict(sample) for sample in samples],
    }
    machine.save(out, result)
    draw(samples, steps, out.with_suffix(".png"))
    Console().print(growth_table(samples, growth))
    Console().print(f"written: {out} and {out.with_suffix('.png')}", soft_wrap=True)


def watch(running: Federation, process: subprocess.Popen[bytes], run_dir: Path) -> Iterator[Sample]:
    """Sample all processes of the run every few seconds while its round is under way."""
    started, taken = time.monotonic(), 0
    first: tuple[float, int] | None = None
    while process.poll() is None:
        status = read_json(run_dir / "status.json")
        # Flower gives every message a process of its own: before and after the steps it is another one.
        if 0 < (step := status.get("step", 0)) < (steps := status.get("steps", 0)):
            seconds = round(time.monotonic() - started, 1)
            since, before = first = first or (seconds, step)
            if taken % SAMPLES_BETWEEN_LINES == 0:
                left = (seconds - since) / (step - before) * (steps - step) if step > before else None
                tail = f"; about {duration(left)} left" if left is not None else ""
                print(f"step {step:,} of {steps:,}{tail}", flush=True)
            taken += 1
            for name, held in resident(running).items():
                yield Sample(name, int(status["step"]), seconds, round(held / 1e6, 2))
        time.sleep(SECONDS_BETWEEN_SAMPLES)


def resident(running: Federation) -> dict[str, int]:
    """Bytes of resident memory of the apps' processes and of Flower's own, by name."""
    held: dict[str, int] = defaultdict(int)
    for member, pid in running.pids.items():
        for process in psutil.Process(pid).children(recursive=True):
            try:
                command, memory = " ".join(process.cmdline()), process.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
            names = {
                "flwr-serverapp": "ServerApp",
                "flwr-clientapp": f"ClientApp {member}",
                "federation.superlink": "SuperLink",
                "flower-supernode": f"SuperNode {member}",
            }
            for word, name in names.items():
                if word in command:
                    held[name] += memory
    return dict(held)


def by_process(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each process, in order."""
    grouped: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        grouped[sample.process].append(sample)
    return dict(sorted(grouped.items()))


def slope(samples: Sequence[Sample]) -> float:
    """Least-squares growth over the second half of the steps, MB per 1,000 steps."""
    half = max(sample.step for sample in samples) / 2
    late = [sample for sample in samples if sample.step >= half]
    steps, held = [sample.step / 1000 for sample in late], [sample.resident_mb for sample in late]
    return round(float(np.polyfit(steps, held, 1)[0]), 3)


def growth_table(samples: Sequence[Sample], growth: Mapping[str, float]) -> Table:
    """Per process: resident memory at half time and at the end, and its growth in between."""
    table = Table("process", title="Resident memory over the second half of the round")
    for heading in ("at half time", "at the end", "growth per 1,000 steps"):
        table.add_column(heading, justify="right")
    for name, of in by_process(samples).items():
        half = min(of, key=lambda sample: abs(sample.step - of[-1].step / 2))
        figures = (f"{half.resident_mb:.1f} MB", f"{of[-1].resident_mb:.1f} MB", f"{growth[name]:+.3f} MB")
        table.add_row(name, *figures)
    return table


def draw(samples: Sequence[Sample], steps: int, picture: Path) -> None:
    """Draw each process's resident memory over the steps."""
    figure = drawing.new_figure(9, 4)
    axes: Any = figure.subplots()
    for name, of in by_process(samples).items():
        axes.plot([sample.step for sample in of], [sample.resident_mb for sample in of], label=name)
    axes.set(xlabel="step", ylabel="resident memory (MB)", ylim=(0, None), xlim=(0, steps))
    axes.set_title(f"One round of {steps:,} steps over the TLS stream")
    drawing.plain(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    picture.write_bytes(drawing.png(figure))


if __name__ == "__main__":
    machine.run(main)
