"""An SGLR step on one GPU, in one process: clients stacked, clients in a loop, and a plain PyTorch loop; ResNet16.

``sglr bench gpu`` or ``python -m benchmarks.gpu``. Without a GPU it refuses; ``--device cpu`` runs the same on a CPU.
The three take turns, each from fresh weights; a repetition is the median of its steps, the device synchronised after
each. Peak memory is what torch had allocated on the GPU at most. The images are the bundled digits at 32 x 32, 16 for
each client, drawn anew for each, so that they never run out; a step's cost does not depend on them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, picture
from benchmarks.plain import PlainLoop
from benchmarks.progress import Progress
from sglr_flower import assembly
from sglr_flower.config import RunConfig
from sglr_flower.data.datasets import Share
from sglr_flower.errors import UserError
from sglr_flower.machine import available_gpus
from sglr_flower.seeds import generator
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import LocalLink, TrainSession
from sglr_flower.split.server import ServerSegment

CLIENTS = (20, 100, 500)
FORMS = ("plain loop", "loop", "stacked")
WARM_UP = 3
"""Steps before those that count: kernels are loaded and memory is taken."""
GIB = 2**30
RUN: dict[str, Any] = {"dataset": "digits", "image-size": 32, "samples-per-client": 16, "evaluate-every": 0}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="20 clients only, fewer steps, three repetitions.")] = False,
    only: Annotated[list[int] | None, typer.Option(help="A number of clients; may be given again.")] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu.")] = "cuda",
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = machine.RESULTS / "gpu.json",
) -> None:
    """Compare a step of stacked clients with loops over them."""
    place = _place(device)
    counts, epochs, repetitions = (only or ((20,) if quick else CLIENTS)), (4 if quick else 10), (3 if quick else 5)
    described = {**machine.describe(), "device": _described(place)}
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    peaks: dict[tuple[int, str], list[float]] = defaultdict(list)
    turns = [(clients, form) for _ in range(repetitions) for clients in counts for form in FORMS]
    with Progress([_part(*turn) for turn in turns], out) as progress:
        for clients, form in turns:
            config = RunConfig.parse({**RUN, "num-clients": clients, "local-epochs": epochs})
            take = partial(measure, form, config, place)
            taken, peak = progress.measure(_part(clients, form), take, lambda found: machine.told(found[0]))
            seconds[clients, form].append(taken)
            peaks[clients, form].append(peak)
            cells = [cell(count, seconds, peaks) for count in counts]
            finished = all(len(seconds[turn]) == repetitions for turn in turns)
            result = {"machine": described, "finished": finished, "run": RUN, "local_epochs": epochs, "steps": cells}
            machine.save(out, result)
    console = Console()
    console.print(table(cells, described["device"]["name"]))
    console.print(f"written: {out}, {draw(cells, out)}", soft_wrap=True)


def _part(clients: int, form: str) -> str:
    return f"{clients:,} clients, {form}"


def cell(
    clients: int, seconds: Mapping[tuple[int, str], list[float]], peaks: Mapping[tuple[int, str], list[float]]
) -> dict[str, Any]:
    """What was measured with so many clients, as far as it is."""
    there = [form for form in FORMS if seconds.get((clients, form))]
    stacked = seconds.get((clients, "stacked"), [])
    return {
        "clients": clients,
        "seconds": {form: machine.spread(seconds[clients, form]) for form in there},
        "peak_bytes": {form: machine.spread(peaks[clients, form]) for form in there},
        "ratio": {
            form: machine.spread(machine.ratios(stacked, seconds[clients, form])) for form in FORMS[:-1] if stacked
        },
    }


def measure(form: str, config: RunConfig, place: torch.device) -> tuple[float, float]:
    """Median seconds of a step, and the peak of torch's memory on the GPU in bytes; 0 on a CPU."""
    gc.collect()  # what the measurement before has left
    if place.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)
    data = shares(config)
    if form == "plain loop":
        loop = PlainLoop(config, place, data)
        loop.round(1)
        steps = loop.step_seconds
    else:
        cohort, server = sides(config, data, place, stacked=form == "stacked")
        steps = step_seconds(cohort, server, assembly.plan(config, 1))
        assert cohort.stacked == (form == "stacked")  # else it would be a loop's time by a wrong name
    peak = torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0
    return statistics.median(steps[WARM_UP:-1]), peak  # the last one has no further forward


def sides(
    config: RunConfig, data: Mapping[int, Share], place: torch.device, *, stacked: bool
) -> tuple[Cohort, ServerSegment]:
    """All clients and the server on one device."""
    model = assembly.model(config)
    memory_format = model.memory_format() if place.type == "cpu" else torch.contiguous_format
    server = ServerSegment(model.server_segment(), config.optimizer, place, memory_format)
    cohort = Cohort(
        data,
        model.client_segment,
        config.optimizer,
        assembly.dtype(config),
        place,
        memory_format=memory_format,
        stacked=stacked,
    )
    return cohort, server


def step_seconds(cohort: Cohort, server: ServerSegment, plan: RoundPlan) -> list[float]:
    """Wall time of every step of a round: the server's, and the clients' backward and next forward."""
    link = LocalLink({0: TrainSession(cohort, plan)})
    server.begin(plan)
    seconds, started = [], time.perf_counter()
    while uploads := link.receive():
        downloads, _ = server.step(plan, uploads)
        link.send(downloads)
        if cohort.device.type == "cuda":
            torch.cuda.synchronize(cohort.device)
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return seconds


def table(cells: list[dict[str, Any]], device: str) -> Table:
    """Milliseconds per step by clients, ratios, and peak memory."""
    found = Table("clients", title=f"A step in one process on {device}")
    for heading in (*(f"{form} (ms)" for form in FORMS), *(f"stacked / {form}" for form in FORMS[:-1])):
        found.add_column(heading, justify="right")
    peaks = any(peak["median"] for cell in cells for peak in cell["peak_bytes"].values())  # a CPU's are not counted
    if peaks:
        found.add_column(f"peak: {', '.join(FORMS)} (GiB)", justify="right")
    for cell in cells:
        found.add_row(
            f"{cell['clients']:,}",
            *(machine.milliseconds(cell["seconds"][form]) for form in FORMS),
            *(machine.ratio(cell["ratio"][form]) for form in FORMS[:-1]),
            *([", ".join(f"{cell['peak_bytes'][form]['median'] / GIB:.2f}" for form in FORMS)] if peaks else []),
        )
    return found


def draw(cells: list[dict[str, Any]], out: Path) -> Path:
    """The times over the number of clients."""
    names = {"plain loop": "plain PyTorch loop", "loop": "clients in a loop", "stacked": "clients stacked"}
    lines = {
        names[form]: [(cell["clients"], 1000 * cell["seconds"][form]["median"]) for cell in cells] for form in FORMS
    }
    return picture.lines(out.with_suffix(".png"), lines, "clients", "milliseconds per step", log_up=True)


def _place(device: str) -> torch.device:
    if device != "cpu" and not device.startswith("cuda"):
        raise UserError(f"--device {device!r}: it must be cpu, cuda or cuda:N")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device!r}: it must be cpu, cuda or cuda:N") from None
    if place.type == "cuda" and (place.index or 0) >= (count := available_gpus()):
        raise UserError(f"benchmark gpu: it needs the GPU {device!r}, and torch sees {count} GPU(s) on this machine")
    return place


def _described(place: torch.device) -> dict[str, Any]:
    """The device that was measured."""
    if place.type == "cpu":
        return {"name": "the CPU", "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(place)
    return {
        "name": found.name,
        "memory_gb": round(found.total_memory / 1e9, 1),
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }


def shares(config: RunConfig) -> dict[int, Share]:
    """Images for any number of clients, who may have the same ones."""
    train, count = assembly.splits(config).train, config.samples_per_client
    return {
        client: Share(train, torch.randint(len(train), (count,), generator=generator(config.seed, "images", client)))
        for client in range(config.num_clients)
    }


if __name__ == "__main__":
    machine.run(main)
