"""A simulation as its users start it, `sglr run`, in a process tree of its own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from benchmarks.machine import ROOT
from sglr_flower.run.rundir import read_json

MARK = "SGLR_BENCHMARK"
"""Environment variable by which a run's processes are known, whoever their parent is."""
SECONDS_BETWEEN_SAMPLES = 0.5
SHARE_OF_SAMPLES = 0.03
"""Of a run's time at most is spent on looking: the kernel walks through all pages of a process for it."""
KINDS = {
    "ray::ClientAppActor": "node",
    "flower-simulation": "server",
    "flwr-simulation": "server",
    "sglr_flower.federation.preflight": "check",
    "sglr_flower.federation.processes": "keeper",
    "sglr": "command",
    "flower-superlink": "SuperLink",
    "raylet": "Ray",
    "gcs_server": "Ray",
}
"""Part of a command line -> what the process is; anything else is Ray's, or Flower's own."""


@dataclass
class Memory:
    """What a run's processes held at its peak, in bytes of proportional set size: shared pages are shared out.

    Attributes
    ----------
    total : int
        Largest sum over all processes at one moment.
    of : dict[str, list[int]]
        Kind of process -> the peaks of each process of it.
    """

    total: int = 0
    of: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes
    ----------
    rows : list[dict[str, str]]
        Of ``metrics.csv``.
    seconds_to_first_step : float
        From the command's start until the server had made its first step, which is seen 0.25 s late at most.
    seconds : float
        Until the command ended.
    memory : Memory
        Empty if it was not watched.
    """

    rows: list[dict[str, str]]
    seconds_to_first_step: float
    seconds: float
    memory: Memory


def simulate(
    settings: Mapping[str, Any],
    *,
    nodes: int = 2,
    watch_memory: bool = False,
    timeout: float = 3600,
    checkout: Path = ROOT,
) -> Outcome:
    """Run the `sglr run` of a checkout to its end.

    Raises
    ------
    RuntimeError
        If it failed, with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="sglr-bench-", dir="/tmp") as home:
        folder, mark = Path(home), Path(home).name
        config, run_dir = folder / "run.toml", folder / "run"
        config.write_text(tomli_w.dumps({**settings, "run-dir": str(run_dir)}), encoding="utf-8")
        env = environment(checkout) | {MARK: mark}
        command = [sys.executable, "-m", "sglr_flower.cli", "run", str(config), "--nodes", str(nodes)]
        memory, ended = Memory(), threading.Event()
        watcher = threading.Thread(target=_watch, args=(mark, memory, ended))
        started = time.monotonic()
        if watch_memory:
            watcher.start()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=checkout, env=env, stdout=log, stderr=log)
            try:
                first = _first_step(process, run_dir, started)
                process.wait(timeout)
            finally:
                ended.set()
                process.terminate()  # it ends its simulation; of no effect where it has ended by itself
                process.wait()
        seconds = time.monotonic() - started
        if process.returncode != 0 or first is None:
            raise RuntimeError(f"the run failed:\n{(folder / 'log').read_text()[-3000:]}")
        if watch_memory:
            watcher.join()
        with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return Outcome(list(csv.DictReader(file)), first, seconds, memory)


def _first_step(process: subprocess.Popen[bytes], run_dir: Path, started: float) -> float | None:
    """Seconds until the run has made its first step; None if it ended before."""
    while process.poll() is None:
        if read_json(run_dir / "status.json").get("step"):
            return time.monotonic() - started
        time.sleep(0.05)
    return None


def environment(checkout: Path = ROOT) -> dict[str, str]:
    """The environment of this process, without what would set Flower's or torch's ways, for a checkout's code."""
    ours = ("FLWR_", "OMP_", "MKL_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return kept | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": path}


def _watch(mark: str, memory: Memory, ended: threading.Event) -> None:
    peaks: dict[str, dict[int, int]] = defaultdict(dict)
    known: dict[int, str | None] = {}
    pause = SECONDS_BETWEEN_SAMPLES
    while not ended.wait(pause):
        total, began = 0, time.monotonic()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid not in known:
                    known[process.pid] = _kind(process) if process.environ().get(MARK) == mark else None
                if known[process.pid] is None:
                    continue
                kind = known[process.pid] = _kind(process)  # Ray renames an actor's process when it has its work
                size = process.memory_full_info().pss
                peaks[kind][process.pid] = max(size, peaks[kind].get(process.pid, 0))
                total += size
        memory.total = max(memory.total, total)
        pause = max(SECONDS_BETWEEN_SAMPLES, (time.monotonic() - began) / SHARE_OF_SAMPLES)
    memory.of = {kind: sorted(of.values()) for kind, of in peaks.items()}


def _kind(process: psutil.Process) -> str:
    line = " ".join(process.cmdline()[:4])
    return next((kind for part, kind in KINDS.items() if part in line), "other")
