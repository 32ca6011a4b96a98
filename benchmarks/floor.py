"""A step's multiplications and additions at the speed of this machine's matrix product.

Convolutions and linear layers are counted (`analysis.compute`) and nothing else: batch norm, activation functions,
optimizers and whatever moves data come on top. Only an algorithm with fewer operations, such as Winograd's convolution,
could be faster. ``python -m benchmarks.floor CONFIG.toml OUT.json`` writes the seconds of a step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from sglr_flower.models.compute import training_flops
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.settings import read_config

_SIDES = {"cpu": 1024, "cuda": 8192}
"""Type of device -> side of a matrix that is large enough to show its speed."""
_PRODUCTS = {"cpu": 60, "cuda": 10}


def step_operations(config: RunConfig) -> int:
    """Floating-point operations of a step of all clients, forward and backward, both segments."""
    model = assembly.model(config)
    return (
        config.num_clients
        * config.batch_size
        * training_flops(model.whole(), len(model.client_segment(0)), model.inputs).whole
    )


def operations_per_second(place: torch.device | None = None) -> float:
    """Of the fastest of some float32 matrix products, with torch's default threads; on the CPU or another device."""
    place = place or torch.device("cpu")
    side = _SIDES[place.type]
    left, right = torch.randn(side, side, device=place), torch.randn(side, side, device=place)
    seconds = []
    for _ in range(_PRODUCTS[place.type]):
        synchronize(place)
        started = time.perf_counter()
        left @ right
        synchronize(place)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def synchronize(place: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def main() -> None:
    """Write the seconds that a step's operations take at that speed."""
    operations = step_operations(RunConfig.parse(read_config(Path(sys.argv[1]))))
    Path(sys.argv[2]).write_text(json.dumps([operations / operations_per_second()]), encoding="utf-8")


if __name__ == "__main__":
    main()
