"""What a step cannot be cheaper than: the launches of its kernels, and its arithmetic; and where its time goes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import floor, gpu
from benchmarks.device import part
from benchmarks.floor import synchronize
from benchmarks.gpu import FORMS, PLAIN
from benchmarks.plain import PlainLoop
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig

LAUNCHES = (
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"),
    *("cudaMemcpyAsync", "cudaMemsetAsync"),
)
"""Calls by which the CPU gives the GPU something to do, as torch's profiler names them."""
_ROWS = 20


def launch_seconds(place: torch.device, launches: int = 2000) -> float:
    """What one kernel that does next to nothing takes when many follow each other; the least of five tries."""
    number, seconds = torch.zeros(1, device=place), []
    for _ in range(5):
        synchronize(place)
        started = time.perf_counter()
        for _ in range(launches):
            number.add_(1)
        synchronize(place)
        seconds.append((time.perf_counter() - started) / launches)
    return min(seconds)


def speeds(place: torch.device) -> dict[str, float]:
    """Operations per second of a large matrix product, without and with TensorFloat-32."""
    found = {}
    for name, where in (("float32", "nowhere"), ("TensorFloat-32", "everywhere")):
        with part.tensor_float_32(where):
            found[name] = floor.operations_per_second(place)
    return found


def profiled(form: str, config: RunConfig, place: torch.device) -> tuple[dict[str, Any], str]:
    """A step of a form in torch's profiler: how many kernels it has, how long they take; and a table of the largest.

    On a CPU its operators stand for the kernels, those that others are made of among them.
    """
    if form == PLAIN:
        loop = PlainLoop(config, place, gpu.shares(config))
        loop.round(1)
        with _profile(place) as seen:
            loop.round(2)
            synchronize(place)
        steps = len(loop.step_seconds) // 2
    else:
        config = config.replace(cohort=FORMS[form])
        sides = gpu.sides(config, gpu.shares(config), place)
        sides.step_seconds(assembly.plan(config, 1))
        with _profile(place) as seen:
            steps = len(sides.step_seconds(assembly.plan(config, 2)))
    on_device = DeviceType.CUDA if place.type == "cuda" else DeviceType.CPU
    own_time = f"self_{'device' if place.type == 'cuda' else 'cpu'}_time_total"  # in microseconds
    events = seen.events() or []
    # A named part of the program is an event on the GPU too.
    kernels = [event for event in events if event.device_type == on_device and not event.is_user_annotation]
    figures = {
        "form": form,
        "clients": config.num_clients,
        "kernels": len(kernels) / steps,
        "launches": sum(event.name in LAUNCHES for event in events) / steps,
        "kernel_seconds": 1e-6 * sum(getattr(event, own_time) for event in kernels) / steps,
    }
    table = seen.key_averages().table(sort_by=own_time, row_limit=_ROWS, max_name_column_width=60)
    return figures, f"{form}, {config.num_clients} clients, {steps} steps\n{table}\n"


def _profile(place: torch.device) -> profile:
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.type == "cuda" else [])])
