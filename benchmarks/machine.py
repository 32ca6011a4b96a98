"""The machine a measurement was made on, and how its figures are summarised and kept."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import psutil
import typer

from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic
from sglr_flower.run.machine import available_cpus

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, cores, memory, load, and the versions that matter; when it was measured, and of which commit."""
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": available_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("flwr", "torch", "grpcio", "protobuf", "safetensors")},
    }


def run(main: Callable[..., None]) -> None:
    """A benchmark's command; ended by SIGTERM too it ends what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(typer.main.get_command(command(main))(standalone_mode=False))
    except UserError as error:
        sys.exit(f"sglr bench: {error}")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C
        sys.exit(130)


def command(main: Callable[..., None]) -> typer.Typer:
    """What `run` runs: ``main`` with its options."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    return app


def choose(only: Sequence[str], cases: Collection[str]) -> None:
    """Refuse a case that there is not.

    Raises
    ------
    UserError
        If so.
    """
    for name in only:
        if name not in cases:
            raise UserError(f"--only {name!r}: it must be one of {', '.join(cases)}")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median of repetitions, with the repetitions themselves."""
    return {"median": statistics.median(values), "repetitions": list(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of repetitions that took turns, one by one: what slowed the machine down is in both of a pair.

    A pair of which one is still to come has none.
    """
    return [own / other for own, other in zip(ours, theirs, strict=False)]


def told(seconds: float) -> str:
    """One repetition, as `milliseconds`."""
    return f"{milliseconds(spread([seconds]))} ms"


def milliseconds(times: Mapping[str, Any]) -> str:
    """Median and range of repetitions in seconds (`spread`), as a table shows them."""
    return _with_range(times, 1000.0)


def ratio(values: Mapping[str, Any]) -> str:
    """Median and range of the repetitions' ratios."""
    return _with_range(values, 1.0)


def _with_range(values: Mapping[str, Any], factor: float) -> str:
    repetitions = values["repetitions"]
    figures = [factor * value for value in (values["median"], min(repetitions), max(repetitions))]
    median, low, high = (f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}" for figure in figures)
    return f"{median} ({low}-{high})" if len(repetitions) > 1 else median


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, making its folder; it is whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(result, indent=2) + "\n").encode())


def _commit() -> str:
    """Of this checkout; of a copy without git what the environment variable SGLR_COMMIT says."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    found = subprocess.run(git, capture_output=True, text=True, check=False).stdout if shutil.which("git") else ""
    return found.strip() or os.environ.get("SGLR_COMMIT", "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a machine with a GPU need not have Flower
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
