"""A federation of real processes on loopback, started as its users do: `sglr federation`, `sglr run --federation`."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.machine import ROOT
from sglr_flower.federation.processes import free_port

NAME = "benchmark"
SECONDS_TO_START = 120.0
SECONDS_TO_END = 30.0


@dataclass(frozen=True)
class Federation:
    """A running federation.

    Attributes
    ----------
    folder : Path
        Holds its files and logs, and the runs; gone with the federation.
    env : Mapping[str, str]
        Environment of everything that belongs to it.
    pids : Mapping[str, int]
        Process ids of the server's and the nodes' commands.
    """

    folder: Path
    env: Mapping[str, str]
    pids: Mapping[str, int]

    @contextmanager
    def running(self, settings: Mapping[str, Any]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Start a run with these run-config keys; its process, and its run directory. It ends with the block."""
        run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder)) / "run"
        config = run_dir.with_suffix(".toml")
        config.write_text(tomli_w.dumps({**settings, "run-dir": str(run_dir)}), encoding="utf-8")
        command = [_sglr(), "run", str(config), "--federation", NAME]
        with run_dir.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=log)
            try:
                yield process, run_dir
            finally:
                _end(process)

    def run(self, settings: Mapping[str, Any]) -> list[dict[str, str]]:
        """Train to the end; the rows of ``metrics.csv``.

        Raises
        ------
        RuntimeError
            If the run failed, with what it said.
        """
        with self.running(settings) as (process, run_dir):
            if process.wait() != 0:
                raise RuntimeError(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-3000:]}")
        with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


@contextmanager
def federation(*, tls: bool, nodes: int = 2) -> Iterator[Federation]:
    """A SuperLink and SuperNodes on loopback, with TLS and node authentication or without either."""
    with tempfile.TemporaryDirectory(prefix="sglr-bench-", dir="/tmp") as home, ExitStack() as stack:
        folder = Path(home)
        env = _environment(folder)
        members = folder / "federation"
        init = [str(members), "--name", NAME, "--host", "127.0.0.1", "--nodes", str(nodes)]
        init += ["--port", str(free_port()), "--stream-port", str(free_port()), *([] if tls else ["--insecure"])]
        subprocess.run([_sglr(), "federation", "init", *init], env=env, check=True, stdout=subprocess.DEVNULL)
        pids = {"server": stack.enter_context(_process(folder, env, "server", [str(members)], "is up"))}
        for path in sorted((members / "nodes").iterdir()):
            arguments = [str(path), "--state-dir", str(folder / "states" / path.name)]
            pids[path.name] = stack.enter_context(_process(folder, env, "node", arguments, "is connected"))
        yield Federation(folder, env, pids)


@contextmanager
def _process(folder: Path, env: Mapping[str, str], command: str, arguments: Sequence[str], up: str) -> Iterator[int]:
    """A `sglr federation` command, from when its output says that it is up until the block ends."""
    output = folder / f"{command}-{Path(arguments[0]).name}.log"
    with output.open("wb") as log:
        process = subprocess.Popen([_sglr(), "federation", command, *arguments], env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while up not in (said := output.read_text()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"`sglr federation {command}` did not start:\n{said[-3000:]}")
                time.sleep(0.2)
            yield process.pid
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    return kept | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",  # three processes that compute on few cores
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def _sglr() -> str:
    return str(Path(sys.executable).parent / "sglr")
