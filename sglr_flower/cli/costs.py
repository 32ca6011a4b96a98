"""The commands that tell what training costs, by formulas and by measuring: what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sglr_flower.choices import BENCHMARKS
from sglr_flower.cli import completion
from sglr_flower.cli.run import Config, Settings


def estimate(
    config: Config = None,
    settings: Settings = None,
    up: Annotated[float, typer.Option(help="Mbit/s that a client sends.", min=1e-6)] = 20.0,
    down: Annotated[float, typer.Option(help="Mbit/s that a client receives.", min=1e-6)] = 100.0,
    gflops: Annotated[
        float, typer.Option(help="10^9 floating-point operations per second that a client computes.", min=1e-6)
    ] = 10.0,
) -> None:
    """Estimate what an epoch of a run costs each client: every method, and every cut; nothing is trained."""
    from sglr_flower.studies.costs import estimate as room

    room.command(config, settings, up=up, down=down, gflops=gflops)


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(BENCHMARKS)}; left out: all of them.", autocompletion=completion.of(BENCHMARKS)
        ),
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases and repetitions: minutes, not hours.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for JSON and pictures; default: benchmarks/results in the checkout.")
    ] = None,
) -> None:
    """Measure performance, side by side with what it is compared with; nothing else should run meanwhile."""
    from sglr_flower.cli import bench as room

    room.command(name, quick=quick, out=out)
