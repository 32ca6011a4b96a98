"""The command ``sglr bench``: the checkout's benchmarks, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sglr_flower.errors import UserError
from sglr_flower.machine import available_gpus

NAMES = ("step", "exchange", "scale", "start", "gpu")
"""Modules of ``benchmarks`` that measure ratios, in the order in which all are run."""
CHECKOUT = Path(__file__).resolve().parents[1]


def bench_command(
    name: Annotated[str, typer.Argument(help=f"{', '.join(NAMES)}; left out: all of them.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases and repetitions: minutes, not hours.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for JSON and pictures; default: benchmarks/results in the checkout.")
    ] = None,
) -> None:
    """Measure performance, side by side with what it is compared with; nothing else should run meanwhile."""
    if name and name not in NAMES:
        raise UserError(f"benchmark {name!r}: it must be one of {', '.join(NAMES)}")
    if not (CHECKOUT / "benchmarks").is_dir():
        raise UserError(f"sglr bench needs a checkout of the project: there is no {CHECKOUT / 'benchmarks'}")
    folder = (out or CHECKOUT / "benchmarks" / "results").expanduser().absolute()
    for chosen in (name,) if name else NAMES:
        if chosen == "gpu" and not name and not available_gpus():
            typer.echo("benchmark gpu is passed over: torch sees no GPU on this machine")
            continue
        command = [sys.executable, "-m", f"benchmarks.{chosen}", "--out", str(folder / f"{chosen}.json")]
        done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=CHECKOUT, check=False)
        if done.returncode:
            raise typer.Exit(done.returncode)
