"""The command ``sglr bench``: the checkout's benchmarks, one after the other."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import typer

from sglr_flower.choices import BENCHMARKS
from sglr_flower.errors import UserError
from sglr_flower.run.machine import available_gpus

CHECKOUT = Path(__file__).resolve().parents[2]


def command(name: str, quick: bool, out: Path | None) -> None:
    """Run one benchmark, or all of them one after the other."""
    if name and name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r}: it must be one of {', '.join(BENCHMARKS)}")
    if not (CHECKOUT / "benchmarks").is_dir():
        raise UserError(f"sglr bench needs a checkout of the project: there is no {CHECKOUT / 'benchmarks'}")
    folder = (out or CHECKOUT / "benchmarks" / "results").expanduser().absolute()
    for chosen in (name,) if name else BENCHMARKS:
        if chosen == "gpu" and not name and not available_gpus():
            typer.echo("benchmark gpu is passed over: torch sees no GPU on this machine")
            continue
        command = [sys.executable, "-m", f"benchmarks.{chosen}", "--out", str(folder / f"{chosen}.json")]
        typer.echo(f"benchmark {chosen}")
        if status := _run([*command, *(["--quick"] if quick else [])]):
            raise typer.Exit(status)


def _run(command: list[str]) -> int:
    """The exit status of a benchmark; a terminal's Ctrl-C reaches it too, and it keeps what it has measured."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # unlike SIG_IGN a child does not inherit a function
    try:
        process = subprocess.Popen(command, cwd=CHECKOUT)
        try:
            status = process.wait()
        finally:
            process.terminate()  # of no effect where it has ended
            process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status
