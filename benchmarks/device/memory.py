"""How many clients fit into a GPU's memory: by growth in proportion, and then by trying it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
import typer

from benchmarks import gpu
from benchmarks.apart import Apart
from benchmarks.device import part
from benchmarks.gpu import FORMS, PLAIN
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig

PROBES = (50, 150)
"""Numbers of clients whose peaks tell what one more takes."""
MOST = 50_000
FIRST = 0.5
"""Of the time that is left: what the first try may take, by what the larger probe took."""
FITS, OUT_OF_MEMORY, UNFINISHED = "fit", "out of memory", "not finished"
NEAR = 0.05
"""Of the number of clients: how close the largest that fits and the smallest that does not are brought."""


def measure(
    result: dict[str, Any], place: torch.device, clock: part.Clock, save: Callable[[], None], most: int = MOST
) -> None:
    """Fill ``result`` with, for each form, what a client takes, and how many fit: predicted, and tried as time allows.

    Parameters
    ----------
    result : dict[str, Any]
        Form -> its figures.
    place, clock : torch.device, part.Clock
        Where, and how long.
    save : Callable[[], None]
        Called after every figure.
    most : int
        No more clients than these.
    """
    forms = [form for form in FORMS if form != PLAIN]
    kinds: dict[str, tuple[str, dict[str, Any]]] = {form: (form, {}) for form in forms}
    kinds["loop, recompute"] = ("loop", {"recompute": True})
    memory = memory_bytes(place)
    with Apart() as apart:
        for name, (form, settings) in kinds.items():
            if clock.left() < 0:
                break
            probes: dict[int, float] = {}
            seconds = 0.0  # of the last of them: the first may have begun a process
            try:
                for clients in (min(number, most) for number in PROBES):
                    started = time.monotonic()
                    probes[clients] = peak(form, settings, clients, place, apart)
                    seconds = time.monotonic() - started
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                result[name] = {"peak_bytes": probes, "error": why(error)}
                typer.echo(f"memory, {name}: {result[name]['error']}")
            else:
                fit = min(most, predicted(probes, memory) or most)
                result[name] = {"peak_bytes": probes, "seconds": seconds, "memory_bytes": memory, "predicted": fit}
                typer.echo(f"memory, {name}: {fit:,} clients predicted to fit")
            save()
        # The last of the forms, as the fastest: to try them all would take minutes.
        if found := [form for form in forms if "predicted" in result.get(form, {})]:
            _approach(result[found[-1]], found[-1], place, apart, clock, save, most)


def _approach(
    one: dict[str, Any],
    form: str,
    place: torch.device,
    apart: Apart,
    clock: part.Clock,
    save: Callable[[], None],
    most: int,
) -> None:
    """Try how many clients fit, from what the probes of a form say."""
    tried = one["tried"] = {}

    def fits(clients: int) -> bool:
        tried[clients] = UNFINISHED  # what stays if the time is over first
        save()
        try:
            peak(form, {}, clients, place, apart)
            tried[clients] = FITS
        except (RuntimeError, MemoryError) as error:
            tried[clients] = why(error)
        typer.echo(f"memory, {form}: {clients:,} clients: {tried[clients]}")
        save()
        return bool(tried[clients] == FITS)

    guess = min(one["predicted"], affordable(max(one["peak_bytes"]), one["seconds"], clock.left()))
    approach(fits, guess, most, clock)


def affordable(clients: int, seconds: float, left: float) -> int:
    """How many clients the first try may have where ``clients`` of them took so long; no fewer than those."""
    return max(clients, int(clients * FIRST * left / seconds))


def why(error: BaseException) -> str:
    """Why so many clients cannot be had; what else than memory stopped them is said as it is."""
    return OUT_OF_MEMORY if is_out_of_memory(error) else str(error).strip().partition("\n")[0]


def approach(fits: Callable[[int], bool], guess: int, most: int, clock: part.Clock) -> tuple[int, int]:
    """Bring the largest number that fits and the smallest that does not together, from a guess.

    Ends as soon as another try would take longer than is left: a try is taken to last as long as the longest so far.
    Returns the two; 0 and ``most`` + 1 where there is none.
    """
    low, high, clients, longest = 0, most + 1, guess, 0.0
    while low < clients < high and clock.left() > longest:
        started = time.monotonic()
        if fits(clients):
            low = clients
        else:
            high = clients
        longest = max(longest, time.monotonic() - started)
        if high - low <= max(1, NEAR * low):
            break
        clients = int(low * (1 + NEAR)) + 1 if high > most else (low + high) // 2 if low else int(high * (1 - NEAR))
        clients = min(clients, most)
    return low, high


def predicted(peaks: dict[int, float], memory: float) -> int:
    """How many clients fit if each takes as much more; 0 where the peaks do not tell."""
    (few, low), (many, high) = min(peaks.items()), max(peaks.items())
    if many == few or high <= low:
        return 0
    return int(few + (memory - low) / ((high - low) / (many - few)))


def memory_bytes(place: torch.device) -> float:
    """What torch can have of the device's memory, with what it has; of a CPU's nothing is counted."""
    if place.type == "cpu":
        return 0
    clear(place)
    free, _ = torch.cuda.mem_get_info(place)
    return free + torch.cuda.memory_reserved(place)


def peak(form: str, settings: dict[str, Any], clients: int, place: torch.device, apart: Apart) -> float:
    """`peak_bytes` of so many clients by a form with settings, in the process that is for it."""
    config = RunConfig.parse({**gpu.RUN, "cohort": FORMS[form], **settings, "num-clients": clients, "local-epochs": 1})
    clear(place)  # of this process, too: the other one has what is left
    return float(gpu.where(form, apart)(peak_bytes, config, place))


def peak_bytes(config: RunConfig, place: torch.device) -> float:
    """The peak of two steps; raises what torch raises where they do not fit."""
    clear(place)
    sides = gpu.sides(config, gpu.shares(config), place, copies=True)
    sides.step_seconds(assembly.plan(config, 1))
    return torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0


def clear(place: torch.device) -> None:
    """Free what is no longer used."""
    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory was not enough, on a GPU or on a CPU."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in words)
