"""Whether in-process runs on this device end with the weights of a plain loop on it, and that loop with the CPU's.

In float64 after some rounds, to 1e-9; in float32 after one step, where the difference is rounding and is reported.
``python -m benchmarks.device.keel`` writes ``keel.json``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import typer

from benchmarks import gpu, machine
from benchmarks.device import exact, part
from benchmarks.gpu import FORMS, PLAIN
from sglr_flower.run.config import RunConfig

TOLERANCE = 1e-9
"""Of weights in float64."""
RUN: dict[str, Any] = {
    "method": "sglr",
    "splitlr-alpha": 0.5,
    "splitavg-phi": 0.5,
    "num-clients": 4,
    "samples-per-client": 32,
    "num-server-rounds": 2,
    "evaluate-every": 0,
    "evaluate-samples": 10,
}
TINY: dict[str, Any] = {"image-size": 8, "num-clients": 3, "samples-per-client": 16}
ONE_STEP: dict[str, Any] = {"samples_per_client": 8, "num_server_rounds": 1}


def main(out: part.Out, seconds: part.Seconds = 90, rehearse: part.Rehearse = False) -> None:
    """Compare weights; exit status 1 if float64's differ."""
    clock, place = part.Clock(seconds), part.place(rehearse)
    config = RunConfig.parse({**RUN, "dataset": part.dataset(), **(TINY if rehearse else {})})
    described = {**machine.describe(), "device": gpu.described_device(place)}
    found: list[dict[str, Any]] = []
    with part.tensor_float_32("nowhere"):
        for name, compare in comparisons(config, place):
            if clock.left() < 0:
                typer.echo("its time is over")
                break
            try:
                found.append({"what": name, **compare()})
                typer.echo(f"{name}: {told(found[-1])}")
            except Exception as error:  # the others are compared all the same
                traceback.print_exc()
                found.append({"what": name, "error": f"{type(error).__name__}: {error}"})
            result = {"machine": described, "run": config.values(), "tolerance": TOLERANCE, "comparisons": found}
            machine.save(out / "keel.json", result)
    wrong = [one["what"] for one in found if not holds(one)]
    if wrong:
        typer.echo(f"not as they should be: {'; '.join(wrong)}")
        raise typer.Exit(1)


def told(one: dict[str, Any]) -> str:
    """A comparison in words."""
    gradients = one.get("relative_distance_of_gradients")
    more = "" if gradients is None else f", gradients by {gradients:.2g} of their norm"
    return f"weights differ by {one['largest_difference']:.3g}{more}"


def holds(one: dict[str, Any]) -> bool:
    """Whether a comparison ends as it should; of float32 it is only reported how far it is off."""
    if "error" in one:
        return False
    return one["dtype"] != "float64" or bool(one["largest_difference"] <= TOLERANCE)


def comparisons(config: RunConfig, place: torch.device) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is compared, by name, the most important first."""
    many = config.replace(dtype="float64")
    one = config.replace(dtype="float32", **ONE_STEP)
    theirs = exact.plain_weights(many, place)
    for form in FORMS:
        if form != PLAIN:
            yield f"{form}, float64", partial(_compare, form, many, theirs)
    yield (
        "this device's plain loop and the CPU's, float64",
        lambda: {
            "dtype": "float64",
            "largest_difference": exact.largest_difference(theirs, exact.plain_weights(many, torch.device("cpu"))),
        },
    )
    theirs_of_one = exact.plain_weights(one, place)
    for form in FORMS:
        if form != PLAIN:
            yield f"{form}, float32, one step", partial(_compare_one, form, one, theirs_of_one, place)


def _compare(form: str, config: RunConfig, theirs: exact.Tensors) -> dict[str, Any]:
    ours = exact.run_weights(config.replace(cohort=FORMS[form]))
    return {"form": form, "dtype": config.dtype, "largest_difference": exact.largest_difference(ours, theirs)}


def _compare_one(form: str, config: RunConfig, theirs: exact.Tensors, place: torch.device) -> dict[str, Any]:
    """The same, and the gradients: Adam's first step moves a weight by its whole rate, however small the gradient."""
    gradients = exact.engine_gradients(form, config, place), exact.plain_gradients(config, place)
    return {**_compare(form, config, theirs), "relative_distance_of_gradients": exact.distance(*gradients)}


if __name__ == "__main__":
    machine.run(main)
