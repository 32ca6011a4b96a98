"""A run in which planned faults strike round after round.

`Campaign.go` strikes, `verdict.verify` judges. In each round a random number of the nodes that are fit is struck, each
at a random step; at least one stays whole. A node that was struck gets a round in which to come back.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from faults import faulty
from faults.faulty import Fault
from faults.harness import Federation, Run, last_attempts, node_of, release, struck, wait

STEPS = 7
"""Steps of a round: 26 samples in batches of 4, the last one of 2."""
STEP_TIMEOUT = 8.0
SETTINGS: dict[str, Any] = {
    "model": "faults.faulty:network",
    "samples-per-client": 26,
    "batch-size": 4,
    "client-lr": 0.01,
    "evaluate": "client",
    "evaluate-every": 0,
    "evaluate-samples": 40,
    "dtype": "float64",
    "exchange": "stream",
    "step-timeout": STEP_TIMEOUT,
    "start-timeout": 120.0,
}
PATIENCE = 300.0
"""The watchdog: seconds in which a round must end, whatever has struck it."""


@dataclass(frozen=True)
class Specimen:
    """A kind of fault as the suite's table names it.

    Attributes
    ----------
    kind : str
        What the process does (`faulty`).
    reason : str
        Pattern that the reason in ``nodes.csv`` must match.
    outside : str
        What the harness adds: a method of `Campaign`.
    late : int
        How many further frames of the node the server may still use: of a fault that falls between two frames.
    first : int
        The first step at which it makes sense: a node may take its time before its first frame (``start-timeout``).
    """

    kind: str
    reason: str = "."
    outside: str = ""
    late: int = 0
    first: int = 0


_SILENT = f"{STEP_TIMEOUT:g} s"
SPECIMENS: Mapping[str, Specimen] = {
    "ClientApp killed": Specimen("kill"),
    "ClientApp killed around its frame": Specimen(faulty.SOON, late=1),
    "SuperNode killed, restarted": Specimen("kill-node", outside="restart"),
    "SuperNode killed, its disk lost": Specimen("kill-node", outside="restart_bare"),
    "network cut": Specimen("hold", outside="cut"),
    "network cut in TLS handshakes": Specimen("hold", outside="close_off"),
    "network silent": Specimen("hold", _SILENT, outside="silence", first=1),
    "straggler asleep": Specimen("sleep", _SILENT, first=1),
    "straggler stopped": Specimen("stop", _SILENT, outside="proceed", first=1),
} | {
    f"rubbish: {what}": Specimen(kind, reason, first=int(kind == "replay"))
    for what, kind, reason in (
        ("not finite", "nan", "finite"),
        ("wrong shape", "shape", "shape|\\("),
        ("wrong dtype", "dtype", "float32"),
        ("labels out of range", "labels", "label"),
        ("another step", "step", "step"),
        ("a replayed frame", "replay", "step"),
        ("another round", "round", "round"),
        ("another split", "split", "test"),
        ("another's client", "client", "client"),
        ("a wrong end", "last", "last"),
        ("random bytes", faulty.BYTES, "."),
    )
}


@dataclass
class Injection:
    """One fault of a campaign, and what became of it.

    Attributes
    ----------
    name : str
        Key of `SPECIMENS`.
    fault : Fault
        As planned.
    struck : float | None
        When, seconds since the epoch; None: the node did not get there.
    recovered : float | None
        Seconds until the server made a step without the node.
    returned : float | None
        Seconds until it made one with the node again; None: the run ended before.
    wrong : list[str]
        What was not as specified; empty: survived.
    """

    name: str
    fault: Fault
    struck: float | None = None
    recovered: float | None = None
    returned: float | None = None
    wrong: list[str] = field(default_factory=list)


class Campaign:
    """Strikes a run.

    Parameters
    ----------
    federation, run : Federation, Run
        Up, and not yet submitted.
    names : Sequence[str]
        The faults to inject, keys of `SPECIMENS`, in this order.
    seed : int
        Of the nodes and steps.
    at_most : int
        Faults in one round.

    Attributes
    ----------
    injections : list[Injection]
        Those that struck, once the run has ended.
    left : list[str]
        Faults that the run was too short for.
    servers : dict[int, Path]
        Round -> a copy of the server's state after it.
    """

    def __init__(self, federation: Federation, run: Run, names: Sequence[str], seed: int, at_most: int) -> None:
        self.federation, self.run = federation, run
        self.injections: list[Injection] = []
        self.servers: dict[int, Path] = {}
        self.left, self._draw, self._at_most = list(names), random.Random(seed), at_most
        self._handled: set[str] = set()
        self._later: list[tuple[float, Any]] = []
        self._round = 0
        self._snapshots = run.directory.with_name(f"{run.directory.name}-servers")
        self._snapshots.mkdir()

    def go(self) -> None:
        """From the run's submission to its end.

        Raises
        ------
        AssertionError
            If a round does not end in time.
        """
        self.run.submit()
        progress, done = time.monotonic(), -1
        while not self.run.ended():
            if (now := self.run.rounds_done()) != done:
                progress, done = time.monotonic(), now
            assert time.monotonic() - progress < PATIENCE, f"no progress after round {done}: {self.run.status()}"
            self._tick()
            time.sleep(0.05)
        self._tick()
        self._take_back()

    def _tick(self) -> None:
        status = self.run.status()
        if status.get("state") == "training" and status.get("round", 0) > self._round:
            self._round = status["round"]
            self._plan()
        for injection in self.injections:
            fault = injection.fault
            if fault.id not in self._handled and (moment := struck(self.federation.faults, fault)) is not None:
                self._handled.add(fault.id)
                injection.struck = moment
                if outside := SPECIMENS[injection.name].outside:
                    getattr(self, f"_{outside}")(fault)
        due = [action for moment, action in self._later if moment <= time.monotonic()]
        self._later = [(moment, action) for moment, action in self._later if moment > time.monotonic()]
        for action in due:
            action()
        for folder in self.run.directory.glob("checkpoints/round-*"):
            number = int(folder.name.removeprefix("round-"))
            copy = self._snapshots / f"{number}.safetensors"
            if number not in self.servers:
                with contextlib.suppress(FileNotFoundError):  # pruned while we look
                    shutil.copy(folder / "server.safetensors", copy)
                    self.servers[number] = copy

    def _take_back(self) -> None:
        """Faults that have not struck, as their node was not there, or the round ended early: another one's turn."""
        for injection in [injection for injection in self.injections if injection.struck is None]:
            self.injections.remove(injection)
            self.left.insert(0, injection.name)

    def _plan(self) -> None:
        """Choose this round's faults, before any of its nodes has made a step."""
        self._take_back()
        before = last_attempts(self.run.node_rows()).get(self._round - 1)
        fit = [node for node in range(self.federation.count) if self.federation.node_runs(node)]
        if before is not None:
            finished = {node_of(row, self.federation, self.run) for row in before if row["state"] == "finished"}
            fit = [node for node in fit if node in finished]
        most = min(self._at_most, len(fit) - 1, len(self.left))
        number = self._draw.randint(1, most) if most > 0 else 0
        names = [self.left.pop(0) for _ in range(number)]
        firsts = [SPECIMENS[name].first for name in names]
        # Different ones, so that each can be timed by itself.
        steps = self._draw.sample(range(max(firsts, default=0), STEPS), number)
        for name, node, step in zip(names, self._draw.sample(fit, number), steps, strict=True):
            specimen = SPECIMENS[name]
            seconds = {"sleep": STEP_TIMEOUT + 3, faulty.SOON: self._draw.uniform(0, 0.02)}.get(specimen.kind, 0.0)
            fault = Fault(f"{self._round:04d}-{node}-{specimen.kind}", specimen.kind, self._round, step, node, seconds)
            self.injections.append(Injection(name, fault))
        faulty.write_plan(self.federation.faults, [injection.fault for injection in self.injections])

    # ---- what the harness adds to a fault

    def _after(self, seconds: float, action: Any) -> None:
        self._later.append((time.monotonic() + seconds, action))

    def _restart(self, fault: Fault) -> None:
        assert fault.node is not None
        node = fault.node
        wait(lambda: not self.federation.node_runs(node), 10, f"SuperNode {node} is killed")
        self._after(self._draw.uniform(0.0, 5.0), lambda: self.federation.start_node(node))

    def _restart_bare(self, fault: Fault) -> None:
        self._restart(fault)
        assert fault.node is not None
        shutil.rmtree(self.federation.state(fault.node), ignore_errors=True)

    def _cut(self, fault: Fault) -> None:
        self._fail(fault, "cut")

    def _close_off(self, fault: Fault) -> None:
        self._fail(fault, "close_off")

    def _silence(self, fault: Fault) -> None:
        self._fail(fault, "silence")

    def _fail(self, fault: Fault, how: str) -> None:
        connections = getattr(self.federation.network, how)(str(fault.node))
        assert connections, f"node {fault.node} had no connection through the proxy"
        release(self.federation.faults, fault)
        self._after(STEP_TIMEOUT + 2, lambda: self.federation.network.heal(str(fault.node)))

    def _proceed(self, fault: Fault) -> None:
        """A stopped process goes on once it is too late."""

        def proceed() -> None:
            for process in self.federation.processes("flwr-clientapp"):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)

        self._after(STEP_TIMEOUT + 3, proceed)
