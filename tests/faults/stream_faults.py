"""Rounds of real node processes over the real stream, without Flower's messages around it, and what strikes them.

The server is in this process: a `StreamServer` with TLS, a link for each round, `train_round`. What the nodes do, and
what they do to themselves, is in `stream_nodes`; what is done to them from outside is here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil
import torch
from exchange.certificates import Authority, authority
from faults import proxy
from faults.stream_nodes import (
    HOSTED,
    KILL_OUTSIDE,
    PATIENCE,
    SAMPLES,
    SETTINGS,
    WITHHELD,
    Order,
    Place,
    Strike,
    frame_shape,
    max_frame,
    node,
)
from torch import Tensor

from sglr_flower.errors import TooFewClients
from sglr_flower.exchange.checks import TrainCheck
from sglr_flower.exchange.endpoint import Endpoint
from sglr_flower.exchange.frames import FrameError
from sglr_flower.exchange.link import StreamLink
from sglr_flower.exchange.stream import StreamServer, run_session
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodestate import NodeStates
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.rounds import train_round

PATIENT = 30.0
"""Timeout of steps where nothing is meant to be late, seconds."""
IMPATIENT = 1.2
"""Timeout of steps, or of the first frame, where something is."""
PRELOAD = [
    "grpc",
    "sklearn.datasets",
    "torch._dynamo",  # what the first optimizer of a process imports
    "sglr_flower.run.assembly",
    "sglr_flower.exchange.stream",
    "sglr_flower.run.nodestate",
]
"""What a node imports, imported once for all: then its process is there in milliseconds, with a gRPC never used."""


class NodeProcess:
    """A node's process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=node, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def close(self) -> int | None:
        """End it; its exit code, None if it had to be killed."""
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(10)
        ended = self.process.exitcode
        if ended is None:
            self.process.kill()
            self.process.join()
        self.pipe.close()
        return ended


def _end_forkserver() -> None:
    """Else the process that the nodes are forked from lasts until Python has ended, and a little longer."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "multiprocessing.forkserver" in " ".join(child.cmdline()):
                child.terminate()
                child.wait(10)


def _endpoint(pair: Authority, advertise: str) -> Endpoint:
    return Endpoint(proxy.SERVER, advertise=advertise, certificate=pair.certificate, key=pair.key)


class Ground:
    """What all rounds of the suite share: the server's ports and the nodes' processes.

    Attributes
    ----------
    near, far : StreamServer
        One that the nodes reach directly, and one behind ``network``.
    network : proxy.Network
        Between the nodes and ``far``; a connection's key is the node's pid.
    nodes : dict[int, NodeProcess]
        By node.
    pids : set[int]
        Of all processes that there have ever been.
    """

    def __init__(self) -> None:
        self._near, self._far = authority(proxy.SERVER), authority(proxy.PUBLIC)
        self.near = StreamServer(_endpoint(self._near, proxy.SERVER), max_frame())
        self.far = StreamServer(_endpoint(self._far, proxy.PUBLIC), max_frame())
        port = int(self.far.address.rpartition(":")[2])
        self.network = proxy.Network([port], lambda process: str(process.pid))
        self.nodes: dict[int, NodeProcess] = {}
        self.pids: set[int] = set()

    def start(self) -> None:
        """Give every node a process that has none."""
        for number in HOSTED:
            if number in self.nodes and self.nodes[number].process.is_alive():
                continue
            if number in self.nodes:
                self.nodes[number].close()
            self.nodes[number] = NodeProcess()
            self.pids.add(self.nodes[number].pid)

    def kill(self) -> None:
        """End all nodes' processes at once."""
        for process in self.nodes.values():
            process.process.kill()
            process.process.join()

    def roots(self, server: StreamServer) -> bytes:
        """The CA of one of the servers."""
        return self._near.root if server is self.near else self._far.root

    def close(self) -> list[str]:
        """End everything; what did not end as it should."""
        ended = {number: process.close() for number, process in self.nodes.items()}
        self.network.close()
        self.near.stop()
        self.far.stop()
        _end_forkserver()
        left = [pid for pid in self.pids if psutil.pid_exists(pid)]
        wrong = [f"node {number} ended with {code}" for number, code in ended.items() if code != 0]
        return wrong + ([f"processes {left} are left"] if left else [])


@dataclass
class Attempt:
    """What happened in a round.

    Attributes
    ----------
    dropped : dict[int, tuple[int, str]]
        Node -> the step at which the server recorded that it left, and why; in that order.
    too_few : bool
        Whether it ended by `TooFewClients`.
    frames : dict[int, int]
        Node -> its frames that the server used.
    stamps : list[float]
        When each server step was done, `time.monotonic`.
    over : float
        When the round was over.
    struck : dict[int, float]
        Node -> when it was.
    done, dead : set[int]
        Nodes that finished the round, and those whose processes are no more.
    failed : dict[int, str]
        Nodes that did not finish it -> their own words.
    busy : set[int]
        Nodes that had not ended the round by the time the watchdog gave up: there must be none.
    stolen : str
        What the server said to a second stream with a node's secret, if there was one.
    """

    dropped: dict[int, tuple[int, str]] = field(default_factory=dict)
    too_few: bool = False
    frames: dict[int, int] = field(default_factory=dict)
    stamps: list[float] = field(default_factory=list)
    over: float = 0.0
    struck: dict[int, float] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    busy: set[int] = field(default_factory=set)
    stolen: str = ""


class _Round:
    """One round under way, and the strikes of it that come from outside."""

    def __init__(self, ground: Ground, server: StreamServer, strikes: Mapping[int, Strike]) -> None:
        self.ground, self.server, self.strikes = ground, server, strikes
        self.attempt = Attempt()
        self.secrets: dict[int, str] = {}
        self._closed = threading.Event()
        self._post = threading.Thread(target=self._take_post, name="post", daemon=True)
        self._killers: list[threading.Thread] = []

    def begin(self, link: StreamLink) -> None:
        """Send the nodes to the link."""
        self.secrets = dict(link.secrets)
        self._post.start()
        for number, process in self.ground.nodes.items():
            place = Place(self.server.address, self.secrets[number], self.ground.roots(self.server))
            process.pipe.send(place)
        for number, strike in self.strikes.items():
            if strike.kind == KILL_OUTSIDE:
                self._killers.append(threading.Thread(target=self._kill, args=(link, number, strike), daemon=True))
                self._killers[-1].start()

    def release(self) -> None:
        """The round is over for the server: undo what still holds a node, and see that all end."""
        self._closed.set()
        for number, strike in self.strikes.items():
            process = self.ground.nodes[number]
            if strike.kind == "stop":
                os.kill(process.pid, signal.SIGCONT)
            elif strike.kind == "silence":
                self.ground.network.heal(str(process.pid))
            elif strike.kind in (WITHHELD, "hold"):
                process.pipe.send("go on")
        for killer in self._killers:
            killer.join()  # the process may have finished the round before; in the next one it must not be hit
        self._post.join(PATIENCE)
        for number, strike in self.strikes.items():
            if strike.kind == KILL_OUTSIDE:
                self.ground.nodes[number].process.join(10)
        attempt = self.attempt
        attempt.busy = set(self.ground.nodes) - attempt.done - attempt.dead - attempt.failed.keys()
        for number in attempt.busy:
            self.ground.nodes[number].process.kill()
        for number, strike in self.strikes.items():
            if strike.kind in ("cut", "close off"):
                self.ground.network.heal(str(self.ground.nodes[number].pid))

    def _take_post(self) -> None:
        """What the nodes say, until each has ended the round."""
        attempt = self.attempt
        pipes = {process.pipe: number for number, process in self.ground.nodes.items()}
        while pipes:
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                number = pipes[pipe]
                try:
                    kind, what = pipe.recv()
                except (EOFError, OSError):
                    kind, what = "dead", None
                    self.ground.nodes[number].process.join(10)  # its end of the pipe closes a little earlier
                if kind == "struck":
                    attempt.struck[number] = what
                    self._from_outside(number)
                    continue
                del pipes[pipe]
                if kind == "failed":
                    attempt.failed[number] = what
                else:
                    (attempt.done if kind == "done" else attempt.dead).add(number)

    def _from_outside(self, number: int) -> None:
        """The part of a strike that the node cannot do itself; it waits for it."""
        network, process = self.ground.network, self.ground.nodes[number]
        kind, key = self.strikes[number].kind, str(process.pid)
        fails = {"cut": network.cut, "close off": network.close_off, "silence": network.silence}
        if kind in fails:
            self.attempt.struck[number] = time.monotonic()
            fails[kind](key)  # also a connection that is only being made
        if kind == "steal":
            self.attempt.stolen = self._steal(number)
        if kind in fails or kind == "steal":
            process.pipe.send("go on")

    def _steal(self, number: int) -> str:
        """Show a node's secret once more while its stream is open; what the server says to that."""
        thief = _Thief()
        try:
            run_session(thief, self.server.address, self.secrets[number], 10.0, self.ground.roots(self.server))
        except (ExchangeError, FrameError) as error:
            return str(error)
        return "it was let in"

    def _kill(self, link: StreamLink, number: int, strike: Strike) -> None:
        """SIGKILL at no particular moment of the step."""
        while link.traffic[number].frames < strike.step and not self._closed.wait(0.0005):
            pass
        time.sleep(strike.seconds)
        self.attempt.struck[number] = time.monotonic()
        self.ground.nodes[number].process.kill()


class _Thief:
    """A session of somebody who is no node."""

    def start(self) -> Upload:
        return Upload(1, 0, "train", (0,), (1,), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), False)

    def advance(self, download: Download) -> Upload | None:
        return None


class StreamRun:
    """A run's rounds: the server segment here, the clients' states in the nodes' folders.

    Parameters
    ----------
    ground : Ground
        Ports and processes.
    server : StreamServer
        ``ground.near`` or ``ground.far``.
    folder : Path
        For the nodes' states.
    seed : int
        The run's.
    """

    def __init__(self, ground: Ground, server: StreamServer, folder: Path, seed: int) -> None:
        self.settings = {**SETTINGS, "seed": seed}
        self.config = RunConfig.parse(self.settings)
        self.segment = assembly.server(self.config)
        self.versions = dict.fromkeys(HOSTED, 0)
        self._ground, self._server, self._folder = ground, server, folder
        self._frame = frame_shape()

    def attempt(
        self,
        server_round: int,
        strikes: Mapping[int, Strike],
        *,
        min_clients: int = 1,
        timeout: float = PATIENT,
        start_timeout: float = PATIENT,
    ) -> Attempt:
        """Train a round; with too few clients left the server segment is as before it.

        Parameters
        ----------
        server_round : int
            From 1.
        strikes : Mapping[int, Strike]
            By node.
        min_clients : int
            With fewer the round ends.
        timeout, start_timeout : float
            Seconds for a frame, and for the first one.
        """
        self._order(server_round, strikes)
        plan = assembly.plan(self.config, server_round)
        samples = {n: dict.fromkeys(clients, SAMPLES) for n, clients in HOSTED.items()}
        checks = {n: TrainCheck(plan, samples[n], *self._frame) for n in HOSTED}
        round_ = _Round(self._ground, self._server, strikes)
        attempt, deadline = round_.attempt, time.monotonic() + PATIENCE
        before = {name: tensor.clone() for name, tensor in self.segment.state().items()}

        def on_drop(number: int, reason: str) -> None:
            assert number not in attempt.dropped, f"node {number} was dropped twice"
            attempt.dropped[number] = link.traffic[number].frames, reason
            if clients_left(attempt.dropped) < min_clients:
                raise TooFewClients(f"{clients_left(attempt.dropped)} of {min_clients}")

        def failures() -> dict[int, str]:
            assert time.monotonic() < deadline, f"round {server_round} hangs: {attempt}"
            return dict(attempt.failed)

        try:
            with self._server.open(
                checks, timeout=timeout, start_timeout=start_timeout, on_drop=on_drop, failures=failures
            ) as link:
                round_.begin(link)
                train_round(self.segment, plan, link, lambda *_: attempt.stamps.append(time.monotonic()))
        except TooFewClients:
            attempt.too_few = True
            self.segment.load_state(before)
        except BaseException:
            self._ground.kill()  # the next run shall have fresh ones
            raise
        attempt.over = time.monotonic()
        round_.release()
        attempt.frames = {n: traffic.frames for n, traffic in link.traffic.items()}
        if not attempt.too_few:
            self.versions |= dict.fromkeys(attempt.done - attempt.dropped.keys(), server_round)
        return attempt

    def client_states(self) -> dict[int, dict[str, Tensor]]:
        """Client -> its state as its node's disk has it: of the last round that it finished."""
        return {
            client: state
            for number, version in self.versions.items()
            for client, state in NodeStates(self._home(number)).at(dict.fromkeys(HOSTED[number], version)).items()
        }

    def _order(self, server_round: int, strikes: Mapping[int, Strike]) -> None:
        """Every node has a process, and that a cohort in the state of the last round that the node finished."""
        self._ground.start()
        for number, process in self._ground.nodes.items():
            strike = strikes.get(number)
            process.pipe.send(
                Order(
                    self.settings,
                    server_round,
                    self.versions[number],
                    HOSTED[number],
                    self._home(number),
                    None if strike and strike.kind == KILL_OUTSIDE else strike,
                )
            )
        for number, process in self._ground.nodes.items():
            assert process.pipe.poll(PATIENCE), f"node {number} does not get ready"
            assert process.pipe.recv() == ("ready", None)

    def _home(self, number: int) -> Path:
        return self._folder / f"node-{number}"


def clients_left(dropped: Collection[int]) -> int:
    """How many clients there are without some nodes."""
    return sum(len(clients) for number, clients in HOSTED.items() if number not in dropped)
