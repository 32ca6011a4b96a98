"""Rounds of real node processes over the real stream, without Flower's messages around it, and what strikes them.

The server is in this process: a `StreamServer` with TLS, a link for each round, `train_round`. Each node is an OS
process that stays for many rounds, keeps its clients' states on disk as a device does (`FolderStates`), and takes its
orders from a pipe in place of Flower's messages. A `Strike` says what a node does to itself, or what is done to it from
here, at one step of a round.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

import grpc
import psutil
import torch
from exchange.certificates import Authority, authority
from faults import proxy
from faults.faulty import AFTER
from torch import Tensor

from sglr_flower import assembly
from sglr_flower.config import RunConfig
from sglr_flower.errors import TooFewClients
from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange.checks import TrainCheck, frame_bytes
from sglr_flower.exchange.endpoint import Endpoint
from sglr_flower.exchange.frames import FrameError, decode_download, encode_upload
from sglr_flower.exchange.link import StreamLink
from sglr_flower.exchange.stream import StreamServer, run_session
from sglr_flower.exchange.wire import SECRET_KEY, ExchangeError
from sglr_flower.nodestate import FolderStates
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import spread
from sglr_flower.split.rounds import TrainSession, train_round

CLIENTS, NODES, SAMPLES, BATCH = 4, 3, 26, 4
STEPS = 7
"""Steps of a round: 26 samples in batches of 4, the last one of 2."""
HOSTED = dict(enumerate(spread(CLIENTS, NODES)))
SETTINGS: dict[str, Any] = {
    "model": "faults.faulty:network",
    "num-clients": CLIENTS,
    "samples-per-client": SAMPLES,
    "batch-size": BATCH,
    "client-lr": 0.01,
    "num-server-rounds": 200,  # more than any run of the suite has; with a constant rate nothing depends on it
    "dtype": "float64",
}
PATIENT = 30.0
"""Timeout of steps where nothing is meant to be late, seconds."""
IMPATIENT = 1.2
"""Timeout of steps, or of the first frame, where something is."""
PATIENCE = 60.0
"""The watchdog: seconds in which a round must end, and then its nodes."""
PRELOAD = [
    "grpc",
    "sklearn.datasets",
    "torch._dynamo",  # what the first optimizer of a process imports
    "sglr_flower.assembly",
    "sglr_flower.exchange.stream",
    "sglr_flower.nodestate",
]
"""What a node imports, imported once for all: then its process is there in milliseconds, with a gRPC never used."""

# In a node's process -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strike:
    """What strikes a node in a round.

    Attributes
    ----------
    kind : str
        One of `BEFORE`, `SPOILS`, `WIRE`, or `WITHHELD`, `WRONG_SECRET`, `KILL_OUTSIDE`.
    step : int
        Its frame of this step does not leave, or leaves spoilt.
    seed : int
        Of what the kind draws.
    seconds : float
        How long it lasts, or how long after the step before it strikes, of the kinds that have such.
    """

    kind: str
    step: int
    seed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Order:
    """A round, as a node is told."""

    settings: Mapping[str, Any]
    server_round: int
    base: int
    clients: tuple[int, ...]
    folder: Path
    strike: Strike | None


@dataclass(frozen=True)
class Place:
    """Where a node finds the round's stream."""

    address: str
    secret: str
    roots: bytes


WITHHELD = "no stream"
"""The node never opens its stream."""
WRONG_SECRET = "wrong secret"
KILL_OUTSIDE = "kill outside"
"""Its process is killed from here, at no particular moment after the server has used its frame before ``step``."""


def _hold(pipe: Connection, strike: Strike) -> None:
    """Until told to go on: meanwhile something is done from outside."""
    if pipe.poll(2 * PATIENCE):
        pipe.recv()


BEFORE: Mapping[str, Callable[[Connection, Strike], None]] = {
    "kill": lambda pipe, strike: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda pipe, strike: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda pipe, strike: time.sleep(strike.seconds),
    "hold": _hold,
    "cut": _hold,
    "close off": _hold,
    "silence": _hold,
    "steal": _hold,
}
"""Kind -> what happens in the node's process before the step's frame leaves."""


def _of_another_node(upload: Upload, before: Upload | None) -> Upload:
    mine = [(client + len(upload.clients)) % CLIENTS for client in upload.clients]
    return replace(upload, clients=tuple(sorted(mine)))


SPOILS: Mapping[str, Callable[[Upload, Upload | None], Upload]] = {**AFTER, "client": _of_another_node}
"""Kind -> the upload that is sent in place of the right one, given also the one before it."""


def _with_tensors(frame: pb.Upload, tensors: bytes) -> bytes:
    frame.tensors = tensors
    return bytes(frame.SerializeToString())


def _cut_off(content: bytes, draw: Random) -> bytes:
    return content[: draw.randrange(len(content))]


WIRE: Mapping[str, Callable[[pb.Upload, Random], bytes]] = {
    "random bytes": lambda frame, draw: draw.randbytes(draw.choice([0, 1, 9, 200, 5000])),
    "random tensors": lambda frame, draw: _with_tensors(frame, draw.randbytes(draw.choice([0, 7, 8, 1000]))),
    "truncated tensors": lambda frame, draw: _with_tensors(frame, _cut_off(frame.tensors, draw)),
    "truncated frame": lambda frame, draw: _cut_off(frame.SerializeToString(), draw),
    "oversized": lambda frame, draw: _with_tensors(frame, frame.tensors + bytes(max_frame())),
}
"""Kind -> the bytes that are sent in place of a right frame."""


class StrickenSession:
    """A node's session of a round that is struck at one step."""

    def __init__(self, session: TrainSession, strike: Strike | None, pipe: Connection) -> None:
        self._session, self._strike, self._pipe = session, strike, pipe
        self._before: Upload | None = None

    def start(self) -> Upload:
        upload = self._next(self._session.start())
        assert upload is not None
        return upload

    def advance(self, download: Download) -> Upload | None:
        return self._next(self._session.advance(download))

    def _next(self, upload: Upload | None) -> Upload | None:
        before, self._before, strike = self._before, upload, self._strike
        if upload is None or strike is None or upload.step != strike.step:
            return upload
        self._pipe.send(("struck", time.monotonic()))
        if strike.kind in BEFORE:
            BEFORE[strike.kind](self._pipe, strike)
        return SPOILS[strike.kind](upload, before) if strike.kind in SPOILS else upload


def hostile_session(session: StrickenSession, place: Place, strike: Strike) -> None:
    """What `run_session` does, by a node that puts bytes of its own on the wire."""
    outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.secure_channel(place.address, grpc.ssl_channel_credentials(place.roots)) as channel:
        steps: Any = channel.stream_stream(
            "/sglr_flower.exchange.Exchange/Steps", response_deserializer=pb.Download.FromString
        )
        call = steps(iter(outgoing.get, None), timeout=PATIENCE, metadata=((SECRET_KEY, place.secret),))
        try:
            upload: Upload | None = session.start()
            while upload is not None:
                frame = encode_upload(upload)
                spoilt = upload.step == strike.step
                outgoing.put(WIRE[strike.kind](frame, Random(strike.seed)) if spoilt else frame.SerializeToString())
                answer = next(call, None)
                if answer is None:
                    raise ExchangeError("the server ended the round early")
                upload = session.advance(decode_download(answer))
        finally:
            outgoing.put(None)
            call.cancel()


def node(pipe: Connection) -> None:
    """A node's process: one round after another, until there is no further order.

    It says ``ready`` when its cohort is there; ``struck`` and the time (`time.monotonic`, which is the whole machine's)
    at the moment it is; ``done`` when its clients' new states are on the disk, or ``failed`` and why.
    """
    while (order := pipe.recv()) is not None:
        config, states = RunConfig.parse(order.settings), FolderStates(order.folder, order.clients)
        cohort = assembly.cohort(config, order.clients, states.at(order.base))
        session = StrickenSession(TrainSession(cohort, assembly.plan(config, order.server_round)), order.strike, pipe)
        pipe.send(("ready", None))
        place = pipe.recv()
        try:
            _take_part(session, place, order.strike, pipe)
        except (ExchangeError, grpc.RpcError) as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
        else:
            states.commit(
                order.server_round, {client: cohort.state(client) for client in cohort.clients}, order.base, []
            )
            pipe.send(("done", None))


def _take_part(session: StrickenSession, place: Place, strike: Strike | None, pipe: Connection) -> None:
    kind = strike.kind if strike else ""
    if strike and kind in (WITHHELD, WRONG_SECRET):
        pipe.send(("struck", time.monotonic()))
    if strike and kind == WITHHELD:
        _hold(pipe, strike)
        raise ExchangeError("told to do nothing")
    if strike and kind == WRONG_SECRET:
        place = replace(place, secret=Random(strike.seed).randbytes(32).hex())
    if strike and kind in WIRE:
        hostile_session(session, place, strike)
    else:
        run_session(session, place.address, place.secret, PATIENCE, place.roots)


# In the server's process ---------------------------------------------------------------------------------------------


def frame_shape() -> tuple[tuple[int, ...], Any, int]:
    """What `TrainCheck` wants to know of the run: a sample's smashed data, their dtype, the number of classes."""
    config = RunConfig.parse(SETTINGS)
    model = assembly.model(config)
    return model.smashed_shape(), assembly.dtype(config), model.num_classes


def max_frame() -> int:
    """Bytes of a frame at most, as `SplitStrategy` has it."""
    shape, dtype, _ = frame_shape()
    return frame_bytes(BATCH * max(map(len, HOSTED.values())), shape, dtype)


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
            for client, state in FolderStates(self._home(number), HOSTED[number]).at(version).items()
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
