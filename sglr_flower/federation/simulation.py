"""Runs a Flower app on a private simulation SuperLink and says how it ended.

``flwr run`` alone leaves a SuperLink behind that others may share. Here
SuperLink, SuperExec, simulation, its nodes and the ``flwr`` command form one process group that belongs to one call,
forked from one interpreter that has imported what they need (`warm`).
"""

import contextlib
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sglr_flower.errors import UserError
from sglr_flower.federation import internals as flower
from sglr_flower.federation.client import Client, Outcome, Submission, outcome_of, watched
from sglr_flower.federation.health import wait_until_up
from sglr_flower.federation.processes import complaint, environment, free_port
from sglr_flower.federation.warm import Forked, Interpreter, interpreter
from sglr_flower.run.machine import available_cpus, gpu_places, steady_memory

START_SECONDS = 60.0  # a SuperLink takes 2 s on an idle machine; a busy one gets its time


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

    def run(self, run: Submission, resources: Resources) -> Outcome:
        """Run a Flower app and wait for its end; only once, as a SuperLink that has had a run knows several.

        Parameters
        ----------
        run : Submission
            What is run.
        resources : Resources
            Size of the simulation.
        """
        link, self._at_rest = self._link, False
        run.log_file.parent.mkdir(parents=True, exist_ok=True)
        with run.log_file.open("ab") as log:
            before = log.tell()

            def failed(what: str) -> Outcome:
                log.write(link.log.read_bytes())
                log.flush()
                return Outcome(False, f"Flower's SuperLink {what}: {complaint(run.log_file, before)}")

            process = link.interpreter.process
            if not wait_until_up(link.address, None, process, START_SECONDS):
                return failed("did not start")
            client = Client(link.flwr, START_SECONDS)
            with client.submitted(run, log.fileno(), "--federation-config", _federation_config(resources)) as flwr:
                watched(run, lambda: flwr.poll() is None and process.poll() is None)
            if process.poll() is not None:
                return failed("ended during the run")
            recorded = client.recorded()  # it is private: the one run it lists is ours
            self._at_rest = bool(recorded)
            return outcome_of(recorded, run.log_file, before)


@dataclass(frozen=True)
class _SuperLink:
    """A private SuperLink: its address, its log, and the warm interpreter that everything belongs to."""

    address: str
    log: Path
    interpreter: Interpreter

    def flwr(self, arguments: Sequence[str], stdout: int, stderr: int) -> contextlib.closing[Forked]:
        """Start ``flwr`` as a fork (`client.Start`)."""
        return contextlib.closing(self.interpreter.start(["flwr", *arguments], subprocess.DEVNULL, stdout, stderr))


@contextlib.contextmanager
def _superlink(code_dir: Path | None) -> Iterator[_SuperLink]:
    """Start a warm interpreter with a SuperLink in a directory of its own, and end them, with all they started."""
    # Ray puts sockets here whose whole path may have 107 bytes (103 on macOS): a long TMPDIR would break them.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sglr-", dir=short, ignore_cleanup_errors=True) as home:
        port = free_port()
        address = f"127.0.0.1:{port}"
        env = environment(home, code_dir) | steady_memory()
        (Path(home) / "config.toml").write_text(
            f'[superlink]\ndefault = "private"\n\n[superlink.private]\naddress = "{address}"\ninsecure = true\n'
        )
        # Under --isolation subprocess the SuperLink starts its SuperExec in another session, out of reach of a signal
        # to our group, and a simulation has been seen to outlive both. Under --isolation process we start it.
        link = ["flower-superlink", "--insecure", "--simulation", "--isolation", "process"]
        link += ["--host", "127.0.0.1", "--port", str(port)]
        executor = ["flower-superexec", "--insecure", "--runtime-api-address", address]
        log = Path(home) / "superlink.log"
        with interpreter(Path(home), [link, executor], log, env) as warm:
            yield _SuperLink(address, log, warm)


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
