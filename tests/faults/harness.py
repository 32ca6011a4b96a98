"""A federation of real Flower processes to break, kept up over many rounds of a run.

What is where
-------------
``faulty.py``      loaded by all processes of a run: the tests' network, and the faults a process does to itself
``proxy.py``       the network between the nodes and the stream's port, which can be cut or go silent for one node
``harness.py``     this file: SuperLink and SuperNodes as processes (`Federation`), a run on them (`Run`)
``campaign.py``    a run in which planned faults strike round after round
``verdict.py``     what must be true of the run afterwards
``table.py``       the table at the end: faults injected and survived, seconds to recover
``test_*.py``      the suite

How a fault gets in
-------------------
The run's config names ``model = "faults.faulty:network"``; the processes find it by PYTHONPATH. The harness writes a
plan into a folder that all processes know by `faulty.FOLDER`; the process that the plan names strikes at the planned
step and leaves a mark. Faults from outside (network, Ctrl-C, a SuperLink killed) are done by the harness while the
process at the planned step holds. The server's steps leave a trace, against which ``nodes.csv`` is checked.

Seeds
-----
``SGLR_FAULT_SEEDS`` (default 2): how often each fault is injected. ``SGLR_FAULT_REPORT``: where the table goes as JSON.
``SGLR_FAULT_KEEP``: a folder in which everything is left behind, to look at.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from faults import faulty
from faults.proxy import PUBLIC, SERVER, Network

from sglr_flower.federation.processes import free_port
from sglr_flower.split.plan import spread

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
Process = subprocess.Popen[bytes]


def wait(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.1) -> Any:
    """Until the condition gives something; the watchdog of the suite.

    Raises
    ------
    AssertionError
        If it gives nothing in that time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"nothing within {seconds:g} s: {what}"
        time.sleep(pause)
    return found


class Federation:
    """A federation of this machine with TLS and keys, as `sglr federation` makes and runs it.

    Nodes reach the server at `proxy.PUBLIC`, where the harness's network is in between.

    Parameters
    ----------
    home : Path
        Filled here: the federation's folder, the nodes' folders and states, logs, the faults' folder.
    nodes : int
        How many SuperNodes.
    """

    NAME = "faults"

    def __init__(self, home: Path, nodes: int) -> None:
        self.home, self.count = home, nodes
        self.faults = home / "faults"
        self._ports = free_port(), free_port()
        self._server: Process | None = None
        self._nodes: dict[int, Process] = {}
        for folder in (self.faults / "struck", self.faults / "released", home / "flwr"):
            folder.mkdir(parents=True)
        faulty.write_plan(self.faults, [])

    def __enter__(self) -> Federation:
        with ExitStack() as stack:
            stack.callback(self._end_all)
            link, streams = (str(port) for port in self._ports)
            where = ["--host", PUBLIC, "--san", SERVER, "--port", link, "--stream-port", streams, "--name", self.NAME]
            init = ["federation", "init", str(self._folder), *where, "--nodes", str(self.count)]
            said = self.command("sglr", *init)
            settings = self._folder / "federation.toml"
            assert settings.exists(), said
            values = tomllib.loads(settings.read_text())
            settings.write_text(tomli_w.dumps({**values, "bind": SERVER}))  # `PUBLIC` is the network's
            self.network = Network(self._ports, lambda process: process.environ().get(faulty.NODE, ""))
            stack.callback(self.network.close)
            self.start_server()
            for node in range(self.count):
                self.start_node(node)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _folder(self) -> Path:
        return self.home / "federation"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: where the faults' network is found, and their folder."""
        path = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "FLWR_HOME": str(self.home / "flwr"),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            faulty.FOLDER: str(self.faults),
        }

    def start_server(self) -> None:
        """Start the SuperLink; again after it was killed."""
        self._server = self.start(["sglr", "federation", "server", str(self._folder)], "server")
        wait(lambda: "SuperLink is up" in self.log("server"), 90, "the SuperLink is up")

    def start_node(self, node: int) -> None:
        """Start a SuperNode; again after it was killed, with whatever state it left behind."""
        command = ["sglr", "federation", "node", str(self._folder / "nodes" / f"node-{node}")]
        self._nodes[node] = self.start(command, f"node-{node}", {faulty.NODE: str(node)})

    def state(self, node: int) -> Path:
        """The folder in which a node keeps its clients' states."""
        return self._folder / "nodes" / f"node-{node}" / "state"

    def node_runs(self, node: int) -> bool:
        """Whether a SuperNode's process is there."""
        return self._nodes[node].poll() is None

    def forget_faults(self) -> None:
        """No fault is planned, has struck, or has left a trace."""
        faulty.write_plan(self.faults, [])
        (self.faults / "trace.jsonl").unlink(missing_ok=True)
        for mark in [*self.faults.glob("struck/*"), *self.faults.glob("released/*")]:
            mark.unlink()

    def kill_link(self) -> None:
        """SIGKILL for the SuperLink alone; returns when `sglr federation server` has found out and ended."""
        assert self._server is not None
        for process in self.processes("federation.superlink"):
            process.kill()
        wait(lambda: self._server is None or self._server.poll() is not None, 60, "the server's command ends")
        (self.home / "server.log").rename(self.home / f"server-{time.time():.0f}.log")

    def processes(self, name: str) -> list[psutil.Process]:
        """The federation's processes of a Flower command, such as ``flwr-clientapp``, wherever they hang by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get(faulty.FOLDER) == str(self.faults)
                if ours and process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline()[:3]):
                    found.append(process)
        return found

    def command(self, *command: str) -> str:
        """What a command of the virtual environment says."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    def start(self, command: Sequence[str], name: str, extra: Mapping[str, str] | None = None) -> Process:
        """Start a command of the virtual environment in a session of its own; what it says goes to its log."""
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env={**self.environment, **(extra or {})},
                cwd=ROOT / "tests",  # `sglr run` passes on that one's own modules are found here
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        """What a command that was started has said."""
        path = self.home / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _end_all(self) -> None:
        """Everything that carries our folder in its environment, whoever its parent is by now."""
        started = [process for process in (self._server, *self._nodes.values()) if process is not None]
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        for left in self.processes(""):
            with contextlib.suppress(psutil.Error):
                left.kill()


class Run:
    """A run submitted to a federation.

    Parameters
    ----------
    federation : Federation
        Where it runs.
    directory : Path
        The run directory, not there yet unless it is resumed.
    settings : Mapping[str, Any]
        Its run-config.
    """

    def __init__(self, federation: Federation, directory: Path, settings: Mapping[str, Any]) -> None:
        self.federation, self.directory = federation, directory
        self.settings = {**settings, "run-dir": str(directory)}
        self._client: Process | None = None
        self._submitted = 0

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever went wrong, the next run has the federation for itself."""
        if self._client is not None and not self.ended():
            self.interrupt()
            try:
                self._client.wait(60)
            except subprocess.TimeoutExpired:
                self._client.kill()

    def submit(self) -> None:
        """`sglr run` in a terminal of its own; the faults of an earlier run are forgotten."""
        self.federation.forget_faults()
        file = self.federation.home / f"{self.directory.name}.toml"
        file.write_text(tomli_w.dumps(self.settings))
        self._start(["sglr", "run", str(file), "--federation", Federation.NAME])

    def resume(self) -> None:
        """`sglr resume`."""
        self._start(["sglr", "resume", str(self.directory)])

    def _start(self, command: Sequence[str]) -> None:
        self._submitted += 1
        self._client = self.federation.start(command, self._log)

    def interrupt(self) -> None:
        """Ctrl-C in the terminal of the submitting command."""
        assert self._client is not None
        self._client.send_signal(signal.SIGINT)

    def ended(self) -> bool:
        """Whether the submitting command has ended."""
        return self.exit_code is not None

    @property
    def exit_code(self) -> int | None:
        """Of the last submitting command; None while it lasts."""
        assert self._client is not None
        return self._client.poll()

    @property
    def said(self) -> str:
        """What the last submitting command said."""
        return self.federation.log(self._log)

    def client_states(self) -> dict[int, dict[int, Path]]:
        """Client -> round -> its state after that round, on its node's disk."""
        run_id = (self.directory / "run-id").read_text()
        found: dict[int, dict[int, Path]] = {}
        for node in range(self.federation.count):
            for file in self.federation.state(node).glob(f"{run_id}/client-*/round-*.safetensors"):
                versions = found.setdefault(int(file.parent.name.removeprefix("client-")), {})
                versions[int(file.stem.removeprefix("round-"))] = file
        return found

    @property
    def _log(self) -> str:
        return f"{self.directory.name}-{self._submitted}"

    def status(self) -> dict[str, Any]:
        """``status.json``; empty before there is one."""
        try:
            values: dict[str, Any] = json.loads((self.directory / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return values

    def node_rows(self) -> list[dict[str, str]]:
        """``nodes.csv``; empty before there is one."""
        try:
            with (self.directory / "nodes.csv").open(newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    def rounds_done(self) -> int:
        """Rows of ``metrics.csv``."""
        try:
            return max(0, len((self.directory / "metrics.csv").read_text().splitlines()) - 1)
        except FileNotFoundError:
            return 0


def last_attempts(rows: Iterable[Mapping[str, str]]) -> dict[int, list[Mapping[str, str]]]:
    """Round -> the rows of its last attempt, which is what counts: in a resumed run, of its last training."""
    blocks: dict[int, list[Mapping[str, str]]] = {}
    for row in rows:
        block = blocks.setdefault(int(row["round"]), [])
        if block and (block[0]["attempt"] != row["attempt"] or row["clients"] in {r["clients"] for r in block}):
            block.clear()
        block.append(row)
    return blocks


def node_of(row: Mapping[str, str], federation: Federation, run: Run) -> int:
    """Which SuperNode a row is of, by its clients."""
    hosted = spread(run.settings["num-clients"], federation.count)
    return next(n for n, clients in enumerate(hosted) if int(row["clients"].split()[0]) in clients)


def release(folder: Path, fault: faulty.Fault) -> None:
    """Let a held process go on."""
    (folder / "released" / fault.id).touch()


def struck(folder: Path, fault: faulty.Fault) -> float | None:
    """When a fault last struck, seconds since the epoch; None: it has not."""
    try:
        time_: float = json.loads((folder / "struck" / fault.id).read_text())["time"]
    except (OSError, ValueError):
        return None
    return time_


def trace(folder: Path) -> list[dict[str, Any]]:
    """The server's steps in the order in which it made them."""
    try:
        return [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []
