"""An SGLR step on one GPU, in one process: recorded, stacked, clients in a loop, and a plain PyTorch loop; ResNet16.

``sglr bench gpu`` or, with more options, ``python -m benchmarks.gpu``. Without a GPU it refuses; ``python -m
benchmarks.gpu --device cpu`` runs the same on a CPU.
They take turns, each from fresh weights; a repetition is the median of its steps, the device synchronised after each,
or of recorded ones, which do not wait for it, a round's time over its steps. Peak memory is what torch had allocated
on the GPU at most. The images are the bundled digits at 32 x 32, 16 for each client, drawn anew for each, so that they
never run out; a step's cost does not depend on them. With that module's ``--minutes`` no measurement is begun that
would not be done by then. Recorded steps are measured in a process of their own (`apart`).
"""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, picture
from benchmarks.apart import Apart
from benchmarks.floor import synchronize
from benchmarks.plain import PlainLoop
from benchmarks.progress import Progress
from sglr_flower.data.samples import Share
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import available_gpus
from sglr_flower.seeds import generator
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import LocalLink, TrainSession, train_round
from sglr_flower.split.server import ServerSegment
from sglr_flower.split.whole import WholeStep

CLIENTS = (20, 100, 500)
PLAIN = "plain loop"
FORMS = {PLAIN: "", "loop": "loop", "stacked": "stacked", "graph": "graph"}
"""Form of a step -> the run-config's ``cohort`` that makes it; the first is `benchmarks.plain`'s, which has none."""
MANY = 100
"""Clients from which on a step is so long that few are timed."""
WARM_UP = 3
"""Steps before those that count: kernels are loaded and memory is taken."""
GIB = 2**30
RUN: dict[str, Any] = {"dataset": "digits", "image-size": 32, "samples-per-client": 16, "evaluate-every": 0}


@dataclass
class Sides:
    """All clients and the server on one device, and where steps are recorded, what records them."""

    cohort: Cohort
    server: ServerSegment
    whole: WholeStep | None

    def step_seconds(self, plan: RoundPlan) -> list[float]:
        """Wall time of every step of a round: the server's, and the clients' backward and next forward.

        Raises
        ------
        RuntimeError
            If steps should be recorded and cannot be.
        """
        if self.whole is not None:
            refused = self.whole.refusal(plan)
            result = None if refused else self.whole.train_round(plan)[0]
            if result is None or self.whole.unfit:
                raise RuntimeError(f"steps are not recorded: {refused or self.whole.unfit}")
            return [result.step_seconds_median] * result.steps
        stamps = [time.perf_counter()]

        def stamp(step: int, loss: float) -> None:
            synchronize(self.cohort.device)
            stamps.append(time.perf_counter())

        train_round(self.server, plan, LocalLink({0: TrainSession(self.cohort, plan)}), stamp)
        return [after - before for before, after in itertools.pairwise(stamps)]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="20 clients only, fewer steps, three repetitions.")] = False,
    only: Annotated[list[int] | None, typer.Option(help="A number of clients; may be given again.")] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu.")] = "cuda",
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = machine.RESULTS / "gpu.json",
    minutes: Annotated[float, typer.Option(help="Begin nothing that takes longer than this; 0: no limit.", min=0)] = 0,
    picture: Annotated[bool, typer.Option(help="Draw a picture beside the JSON file.")] = True,
) -> None:
    """Compare a step of stacked clients with loops over them."""
    started = time.monotonic()
    place = place_of(device)
    counts, repetitions = (only or ((20,) if quick else CLIENTS)), (3 if quick else 5)
    epochs = {clients: 4 if quick or clients > MANY else 10 for clients in counts}
    described = {**machine.describe(), "device": described_device(place)}
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    peaks: dict[tuple[int, str], list[float]] = defaultdict(list)
    turns = [(clients, form) for _ in range(repetitions) for clients in counts for form in FORMS]
    failed: dict[tuple[int, str], str] = {}
    cells: list[dict[str, Any]] = []
    console = Console()
    with Progress([_part(*turn) for turn in turns], out) as progress, Apart() as apart:
        for clients, form in turns:
            if minutes and progress.next_seconds() > 60 * minutes - (time.monotonic() - started):
                console.print("the rest would take longer than --minutes allows")
                break
            config = RunConfig.parse({**RUN, "num-clients": clients, "local-epochs": epochs[clients]})
            if (clients, form) in failed:
                progress.pass_over(_part(clients, form))
                continue
            take = partial(attempt, form, config, place, apart)
            found = progress.measure(
                _part(clients, form), take, lambda found: found if isinstance(found, str) else machine.told(found[0])
            )
            if isinstance(found, str):
                failed[clients, form] = found
            else:
                seconds[clients, form].append(found[0])
                peaks[clients, form].append(found[1])
            cells = [cell(count, seconds, peaks) for count in counts if any(seconds[count, of] for of in FORMS)]
            finished = all(turn in failed or len(seconds[turn]) == repetitions for turn in turns)
            result = {"machine": described, "finished": finished, "run": RUN, "local_epochs": epochs, "steps": cells}
            result["failed"] = [{"clients": of, "form": form, "reason": why} for (of, form), why in failed.items()]
            machine.save(out, result)
    console.print(table(cells, described["device"]["name"]))
    console.print(f"written: {out}{f', {draw(cells, out)}' if picture else ''}", soft_wrap=True)


def _part(clients: int, form: str) -> str:
    return f"{clients:,} clients, {form}"


def cell(
    clients: int, seconds: Mapping[tuple[int, str], list[float]], peaks: Mapping[tuple[int, str], list[float]]
) -> dict[str, Any]:
    """What was measured with so many clients, as far as it is."""
    there = [form for form in FORMS if seconds.get((clients, form))]
    plain = seconds.get((clients, PLAIN), [])
    return {
        "clients": clients,
        "seconds": {form: machine.spread(seconds[clients, form]) for form in there},
        "peak_bytes": {form: machine.spread(peaks[clients, form]) for form in there},
        "ratio_to_plain_loop": {
            form: machine.spread(machine.ratios(seconds[clients, form], plain))
            for form in there
            if plain and form != PLAIN
        },
    }


def attempt(form: str, config: RunConfig, place: torch.device, apart: Apart) -> tuple[float, float] | str:
    """What `measure` gives, or why it cannot be had: so many clients may not fit into the GPU's memory, say."""
    try:
        found: tuple[float, float] = where(form, apart)(measure, form, config, place)
        return found
    except (RuntimeError, AssertionError) as error:
        return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def where(form: str, apart: Apart) -> Callable[..., Any]:
    """What calls a function for a form of the step: ``apart`` if it records steps, else this process."""
    return apart if FORMS[form] == "graph" else _here


def _here(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def measure(
    form: str, config: RunConfig, place: torch.device, memory_format: torch.memory_format | None = None
) -> tuple[float, float]:
    """Median seconds of a step, and the peak of torch's memory on the GPU in bytes; 0 on a CPU."""
    gc.collect()  # what the measurement before has left
    if place.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)
    data = shares(config)
    if form == PLAIN:
        loop = PlainLoop(config, place, data)
        loop.round(1)
        steps = loop.step_seconds
    else:
        config = config.replace(cohort=FORMS[form])
        both = sides(config, data, place, memory_format)
        if both.whole is not None:
            both.step_seconds(assembly.plan(config, 1))  # recorded here
        steps = both.step_seconds(assembly.plan(config, 2))
        # Else it would be a loop's time by a wrong name.
        assert (both.cohort.stack is None) == (config.cohort == "loop"), f"its clients are not computed as {form} says"
    peak = torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0
    return statistics.median(steps[WARM_UP:-1]), peak  # the last one has no further forward


def sides(
    config: RunConfig,
    data: Mapping[int, Share],
    place: torch.device,
    memory_format: torch.memory_format | None = None,
    *,
    copies: bool = False,
) -> Sides:
    """All clients and the server on one device, as a run has them.

    Not as a run: another memory format, and with ``copies`` clients that are copies of the first, made faster.
    """
    model = assembly.model(config)
    first = model.client_segment(0)
    if memory_format is None:
        memory_format = model.memory_format() if place.type == "cpu" else torch.contiguous_format
    server = ServerSegment(model.server_segment(), assembly.server_optimizer(config), place, memory_format)
    cohort = Cohort(
        data,
        (lambda client: copy.deepcopy(first)) if copies else model.client_segment,
        assembly.optimizer(config),
        assembly.dtype(config),
        place,
        memory_format=memory_format,
        recompute=config.recompute,
        stacked=config.cohort != "loop",
    )
    return Sides(cohort, server, WholeStep(cohort, server) if config.cohort == "graph" else None)


def table(cells: list[dict[str, Any]], device: str) -> Table:
    """Milliseconds per step by clients, ratios, and peak memory."""
    found = Table("clients", title=f"A step in one process on {device}")
    ours = [form for form in FORMS if form != PLAIN]
    for heading in (*(f"{form} (ms)" for form in FORMS), *(f"{form} / {PLAIN}" for form in ours)):
        found.add_column(heading, justify="right")
    peaks = any(peak["median"] for cell in cells for peak in cell["peak_bytes"].values())  # a CPU's are not counted
    if peaks:
        found.add_column(f"peak: {', '.join(FORMS)} (GiB)", justify="right")
    for cell in cells:
        seconds, ratios, peak = cell["seconds"], cell["ratio_to_plain_loop"], cell["peak_bytes"]
        found.add_row(
            f"{cell['clients']:,}",
            *(machine.milliseconds(seconds[form]) if form in seconds else "" for form in FORMS),
            *(machine.ratio(ratios[form]) if form in ratios else "" for form in ours),
            *([", ".join(f"{one['median'] / GIB:.2f}" for one in peak.values())] if peaks else []),
        )
    return found


def draw(cells: list[dict[str, Any]], out: Path) -> Path:
    """The times over the number of clients."""
    lines = {
        form: [(cell["clients"], 1000 * cell["seconds"][form]["median"]) for cell in cells if form in cell["seconds"]]
        for form in FORMS
    }
    return picture.lines(out.with_suffix(".png"), lines, "clients", "milliseconds per step", log_up=True)


def place_of(device: str) -> torch.device:
    """The device that ``--device`` names.

    Raises
    ------
    UserError
        If it is not one of the forms, or not there.
    """
    if device != "cpu" and not device.startswith("cuda"):
        raise UserError(f"--device {device!r}: it must be cpu, cuda or cuda:N")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device!r}: it must be cpu, cuda or cuda:N") from None
    if place.type == "cuda" and (place.index or 0) >= (count := available_gpus()):
        raise UserError(f"benchmark gpu: it needs the GPU {device!r}, and torch sees {count} GPU(s) on this machine")
    return torch.device("cuda", place.index or 0) if place.type == "cuda" else place


def described_device(place: torch.device) -> dict[str, Any]:
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
