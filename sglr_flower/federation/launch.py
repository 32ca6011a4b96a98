"""Runs a Flower app on a private simulation SuperLink and says how it ended.

``flwr run`` alone leaves a SuperLink behind that others may share, and exits 0 when the ServerApp raised. Here
SuperLink, SuperExec, simulation, its nodes and the ``flwr`` command form one process group that belongs to one call,
forked from one interpreter that has imported what they need (`warm`).
"""

import contextlib
import http.client
import json
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sglr_flower.errors import UserError
from sglr_flower.federation import internals as flower
from sglr_flower.federation.processes import complaint, environment, free_port, said_since
from sglr_flower.federation.warm import Forked, Interpreter, interpreter
from sglr_flower.run.machine import available_cpus, gpu_places, steady_memory

START_SECONDS = 60.0  # a SuperLink takes 2 s on an idle machine; a busy one gets its time

_RAISED = re.compile(r"^(?:\w+\.)*(\w+): (.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Resources:
    """Size of a simulation.

    Attributes
    ----------
    nodes : int
        Number of simulated SuperNodes.
    cpus_per_node : float
        CPUs that Ray sets aside for a node while it handles a message.
    gpus_per_node : float
        GPUs, or the share of one, that Ray sets aside for a node while it handles a message.
    """

    nodes: int
    cpus_per_node: float
    gpus_per_node: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    succeeded : bool
        Whether the SuperLink recorded the run as completed.
    reason : str
        Empty on success, otherwise one sentence saying why the run failed.
    """

    succeeded: bool
    reason: str


def ray_was_late(reason: str) -> bool:
    """Whether a simulation ended before it began, since Ray did not start within the 30 s that it gives itself.

    They are too short for its first start from a slow disk and for a machine that is busy; a second start is not.
    """
    return any(text in reason for text in flower.RAY_LATE)


class Simulation:
    """A private simulation SuperLink, from the beginning of a ``with`` block to its end, and runs on it.

    The block is entered as soon as the SuperLink is being started, so that something else can be done meanwhile.

    Parameters
    ----------
    code_dir : Path or None
        Folder with the user's own modules, which the run's processes import from.
    """

    def __init__(self, code_dir: Path | None = None) -> None:
        self._code_dir = code_dir
        self._started = contextlib.ExitStack()
        self._at_rest = True

    def __enter__(self) -> Self:
        self._link = self._started.enter_context(_superlink(self._code_dir))
        return self

    def __exit__(self, *_: object) -> None:
        if self._at_rest:
            self._link.interpreter.process.kill()  # there is nothing to end in good order, which takes seconds
        self._started.close()

    def restart(self) -> None:
        """End all that belongs to it and begin anew."""
        self._started.close()
        self._at_rest = True
        self.__enter__()

    @property
    def interpreter(self) -> Interpreter:
        """What else can be forked from while a run is prepared, and ends with the simulation."""
        return self._link.interpreter

    def run(
        self,
        app_dir: Path,
        run_config: Path,
        resources: Resources,
        log_file: Path,
        watch: Callable[[], None],
        interval: float = 0.25,
    ) -> Outcome:
        """Run a Flower app and wait for its end; only once, as a SuperLink that has had a run knows several.

        Parameters
        ----------
        app_dir : Path
            Directory of the app's ``pyproject.toml``.
        run_config : Path
            TOML file with the run-config.
        resources : Resources
            Size of the simulation.
        log_file : Path
            File to which everything the run logs is appended.
        watch : Callable[[], None]
            Called every `interval` seconds while the run lasts.
        interval : float
            Seconds between two calls of `watch`.

        Returns
        -------
        Outcome
            What the SuperLink recorded about the run, not what the exit code of ``flwr run`` says.
        """
        link, self._at_rest = self._link, False
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            before = log_file.stat().st_size
            if not link.wait_until_up():
                log.write(link.log.read_bytes())
                log.flush()
                return Outcome(False, f"Flower's SuperLink did not start: {complaint(log_file, before)}")
            command = ["run", str(app_dir), "--stream", "--run-config", str(run_config)]
            command += ["--federation-config", _federation_config(resources)]
            with link.flwr(command, log.fileno(), log.fileno()) as client:
                while client.poll() is None and not link.has_ended:
                    watch()
                    time.sleep(interval)
            watch()
            if link.has_ended:
                log.write(link.log.read_bytes())
                log.flush()
                return Outcome(False, f"Flower's SuperLink ended during the run: {complaint(log_file, before)}")
            run = link.recorded_run()
            self._at_rest = bool(run)
            return outcome_of(run, log_file, before)


@dataclass(frozen=True)
class _SuperLink:
    """A private SuperLink: its port, its log, and the warm interpreter that everything belongs to."""

    port: int
    log: Path
    interpreter: Interpreter

    @property
    def has_ended(self) -> bool:
        return self.interpreter.process.poll() is not None

    def wait_until_up(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while not self.has_ended and time.monotonic() < deadline:
            # http.client and not urllib: it uses no proxy, whatever the environment says.
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", flower.HEALTH)
                if connection.getresponse().status == 200:
                    return True
            time.sleep(0.05)
        return False

    def flwr(self, arguments: Sequence[str], output: int, errors: int) -> contextlib.closing[Forked]:
        """Start ``flwr`` with some arguments; it ends with the block at the latest."""
        return contextlib.closing(self.interpreter.start(["flwr", *arguments], subprocess.DEVNULL, output, errors))

    def recorded_run(self) -> dict[str, str]:
        """Return what the SuperLink knows of its run, or nothing where it never got one."""
        # The SuperLink is private: the run it lists is ours, so no run id has to be fished out of the log.
        with (
            (self.interpreter.home / "runs.json").open("w+b") as listing,
            self.flwr(["ls", "--format", "json"], listing.fileno(), subprocess.DEVNULL) as client,
            contextlib.suppress(ValueError, LookupError, subprocess.TimeoutExpired),
        ):
            client.wait(START_SECONDS)
            listing.seek(0)
            run: dict[str, str] = json.load(listing)["runs"][0]
            return run
        return {}


@contextlib.contextmanager
def _superlink(code_dir: Path | None) -> Iterator[_SuperLink]:
    """Start a warm interpreter with a SuperLink in a directory of its own, and end them, with all they started."""
    # Ray puts sockets here whose whole path may have 107 bytes (103 on macOS): a long TMPDIR would break them.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sglr-", dir=short, ignore_cleanup_errors=True) as home:
        port = free_port()
        env = environment(home, code_dir) | steady_memory()
        (Path(home) / "config.toml").write_text(
            f'[superlink]\ndefault = "private"\n\n[superlink.private]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        # Under --isolation subprocess the SuperLink starts its SuperExec in another session, out of reach of a signal
        # to our group, and a simulation has been seen to outlive both. Under --isolation process we start it.
        link = ["flower-superlink", "--insecure", "--simulation", "--isolation", "process"]
        link += ["--host", "127.0.0.1", "--port", str(port)]
        executor = ["flower-superexec", "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]
        log = Path(home) / "superlink.log"
        with interpreter(Path(home), [link, executor], log, env) as warm:
            yield _SuperLink(port, log, warm)


def _federation_config(resources: Resources) -> str:
    # Flower takes whole CPUs only. A share of one becomes a whole one of a machine said to have that many more.
    share = math.ceil(resources.cpus_per_node)
    values: dict[str, float] = {
        "num-supernodes": resources.nodes,
        "client-resources-num-cpus": share,
        "client-resources-num-gpus": resources.gpus_per_node,
    }
    if not os.environ.get("RAY_ADDRESS"):
        # Flower fills all the CPUs of Ray with actors; more of them than nodes would only cost time and memory.
        at_once = min(resources.nodes, int(available_cpus() / resources.cpus_per_node + 1e-9))
        values["init-args-num-cpus"] = share * at_once
    return " ".join(f"{key}={value}" for key, value in values.items())


def check_fits(resources: Resources, gpus: int) -> None:
    """Find out whether this machine, with so many GPUs, has what a node asks for.

    Raises
    ------
    UserError
        If not.
    """
    # With RAY_ADDRESS the user points at a cluster of their own (`ray start` on several machines). It is left
    # alone on purpose, and what fits is then not for this machine to say.
    if os.environ.get("RAY_ADDRESS"):
        return
    cpus = available_cpus()
    if not 0 < resources.cpus_per_node <= cpus:
        raise UserError(
            f"A node asks for {resources.cpus_per_node:g} CPUs, but this machine has {cpus}: "
            f"ask for more than 0 and at most {cpus}."
        )
    share = resources.gpus_per_node
    if share > 0 and share > gpus:
        raise UserError(f"A node asks for {share:g} GPUs, but this machine has {gpus}: ask for at most {gpus}.")
    # Flower starts as many nodes as the sum of the GPUs allows, and would wait for ever for one that fits on none.
    if share > 0 and (share != int(share) if share > 1 else int(gpus / share) > gpu_places(gpus, share)):
        raise UserError(
            f"A node asks for {share:g} GPUs, which does not go into {gpus} GPU(s) without a rest: ask for whole GPUs, "
            f"or for an equal share of one, such as {1 / math.ceil(1 / min(share, 1)):.4g}."
        )


def outcome_of(run: dict[str, str], log_file: Path, before: int) -> Outcome:
    """How a run ended, from what the SuperLink recorded (an entry of ``flwr ls``; empty: it never got the run)."""
    status = run.get("status", "")
    if status == flower.COMPLETED:
        return Outcome(True, "")
    if not run:
        return Outcome(False, f"Flower did not take the run: {complaint(log_file, before)}")
    details = run["status-details"].removeprefix(flower.DETAILS).strip()
    said = said_since(log_file, before)
    return Outcome(False, _raised(details, said) or f"The run ended as {status}, {details} (see {log_file}).")


def _raised(details: str, said: str) -> str:
    """Return the exception that ended the run as "name: message", or nothing where the log holds none."""
    for found in reversed(list(_RAISED.finditer(said))):
        name, line = found.groups()
        if line not in flower.WRAPPERS and (details in flower.WRAPPERS or details.startswith(line)):
            message = " ".join((line if details in flower.WRAPPERS else details).split())  # details has all its lines
            return message if name == UserError.__name__ else f"{name}: {message}"
    return ""
