"""What other arithmetic would gain, whether it is still exact, and how many clients fit into memory.

A variant is a form of the step with settings. It is exact if its gradients are no further from those of a plain loop in
float64 than rounding in float32 explains. ``python -m benchmarks.device.variants`` writes ``variants.json``.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import typer

from benchmarks import gpu, machine
from benchmarks.apart import Apart
from benchmarks.device import exact, memory, part
from benchmarks.device.products import ByProducts
from benchmarks.gpu import FORMS, PLAIN
from sglr_flower.run.config import RunConfig

CLIENTS = (20, 100)
FEW: dict[str, Any] = {"num-clients": 3, "samples-per-client": 8}
MEMORY_SHARE = 0.45
"""Of the part's time, for how many clients fit."""


@dataclass(frozen=True)
class Variant:
    """A form of the step with settings.

    Attributes
    ----------
    form : str
        Of `benchmarks.gpu.FORMS`, the plain loop left out.
    tf32 : part.TF32
        Where TensorFloat-32 is allowed.
    settings : Mapping[str, Any]
        Run-config keys.
    memory_format : torch.memory_format | None
        Of images and smashed data; None: the run's own. No run-config key says so.
    products : bool
        Convolutions are computed as matrix products (`products`). No run-config key says so.
    """

    form: str
    tf32: part.TF32 = "nowhere"
    settings: Mapping[str, Any] = field(default_factory=dict)
    memory_format: torch.memory_format | None = None
    products: bool = False

    @property
    def name(self) -> str:
        """For people, unique."""
        settings = [f"{key} = {value}" for key, value in self.settings.items()]
        tf32 = [] if self.tf32 == "nowhere" else [f"TensorFloat-32 {self.tf32}"]
        layout = [] if self.memory_format is None else ["channels last"]
        products = ["convolutions as products"] if self.products else []
        return ", ".join([self.form, *tf32, *settings, *layout, *products])

    @property
    def by_run_config(self) -> bool:
        """Whether a run can be had like this."""
        return self.memory_format is None and not self.products


def variants() -> list[Variant]:
    """All of them, those first that a run may be chosen by."""
    forms = [form for form in FORMS if form != PLAIN]
    mixed = {"autocast": "bfloat16"}
    return [
        *(Variant(form) for form in forms),
        *(Variant(form, "convolutions") for form in forms[1:]),
        *(Variant(form, "everywhere") for form in forms[1:]),
        *(Variant(form, settings=mixed) for form in forms[1:]),
        *(Variant(form, products=True) for form in forms[1:]),
        *(Variant(form, "everywhere", products=True) for form in forms[-1:]),
        Variant("loop", memory_format=torch.channels_last),
    ]


def main(out: part.Out, seconds: part.Seconds = 90, rehearse: part.Rehearse = False) -> None:
    """Measure the variants, then the memory."""
    clock, place = part.Clock(seconds), part.place(rehearse)
    if rehearse:
        gpu.RUN["image-size"] = 8
    counts = (2,) if rehearse else CLIENTS
    result: dict[str, Any] = {"machine": {**machine.describe(), "device": gpu.described_device(place)}}
    result |= {"exact_if_within": exact.ROUNDING, "variants": [], "memory": {}}
    save = partial(machine.save, out / "variants.json", result)
    truth, plain_distance = _plain(place)
    result["plain_loop_float32_from_float64"] = plain_distance
    apart = Apart()
    for clients, variant in [(clients, variant) for clients in counts for variant in variants()]:
        if clock.left() < MEMORY_SHARE * seconds:
            typer.echo("the rest of the time is for the memory")
            break
        one = {
            "name": variant.name,
            "form": variant.form,
            "by_run_config": variant.by_run_config,
            "settings": dict(variant.settings),
            "clients": clients,
        }
        named = (known for known in result["variants"] if known["name"] == variant.name)
        earlier = [known["from_float64"] for known in named if "from_float64" in known]
        try:
            # Its arithmetic is the same for any number of clients.
            call, few = gpu.where(variant.form, apart), _run(**FEW, **variant.settings)
            from_float64 = earlier[0] if earlier else call(_distance, variant, few, place, truth)
            one |= {"from_float64": from_float64, "exact": from_float64 <= exact.ROUNDING * plain_distance}
            many = _run(**{"num-clients": clients, "local-epochs": 4 if rehearse else 10, **variant.settings})
            one["seconds"], one["peak_bytes"] = call(_measured, variant, many, place)
            said = f"{1000 * one['seconds']:.3g} ms, {'exact' if one['exact'] else 'not exact'} ({from_float64:.2g})"
        except Exception as error:  # what this torch or GPU cannot: the others go on
            traceback.print_exc()
            one["error"] = said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        result["variants"].append(one)
        typer.echo(f"{clients} clients, {variant.name}: {said}")
        save()
    apart.end()
    memory.measure(result["memory"], place, clock, save, most=4 if rehearse else memory.MOST)


def _run(**settings: Any) -> RunConfig:
    return RunConfig.parse({**gpu.RUN, **{key.replace("_", "-"): value for key, value in settings.items()}})


def _plain(place: torch.device) -> tuple[exact.Tensors, float]:
    """The plain loop's gradients in float64 on this device, and how far from them it is in float32."""
    config = _run(**FEW)
    truth = exact.plain_gradients(config.replace(dtype="float64"), place)
    with part.tensor_float_32("nowhere"):
        return truth, exact.distance(exact.plain_gradients(config, place), truth)


def _distance(variant: Variant, config: RunConfig, place: torch.device, truth: exact.Tensors) -> float:
    with part.tensor_float_32(variant.tf32), _convolutions(variant):
        return exact.distance(exact.engine_gradients(variant.form, config, place, variant.memory_format), truth)


def _convolutions(variant: Variant) -> AbstractContextManager[object]:
    return ByProducts() if variant.products else nullcontext()


def _measured(variant: Variant, config: RunConfig, place: torch.device) -> tuple[float, float]:
    """Seconds of a step and peak memory."""
    with part.tensor_float_32(variant.tf32), _convolutions(variant):
        return gpu.measure(variant.form, config, place, variant.memory_format)


if __name__ == "__main__":
    machine.run(main)
