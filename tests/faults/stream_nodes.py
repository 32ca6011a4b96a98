"""A node's process in the stream's fault suite: rounds over the real stream, and what it does to itself.

Each node is an OS process that stays for many rounds, keeps its clients' states on disk as a device does
(`NodeStates`), and takes its orders from a pipe in place of Flower's messages. A `Strike` says what it does to
itself, or what is done to it from outside (`stream_faults`), at one step of a round.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import grpc
from faults.faulty import AFTER

from sglr_flower.data.targets import Kind
from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange.checks import frame_bytes
from sglr_flower.exchange.frames import decode_download, encode_upload
from sglr_flower.exchange.stream import run_session
from sglr_flower.exchange.wire import SECRET_KEY, ExchangeError
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodestate import NodeStates
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import spread
from sglr_flower.split.rounds import TrainSession

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
PATIENCE = 60.0
"""The watchdog: seconds in which a round must end, and then its nodes."""


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
        config, states = RunConfig.parse(order.settings), NodeStates(order.folder)
        cohort = assembly.cohort(config, order.clients, states.at(dict.fromkeys(order.clients, order.base)))
        session = StrickenSession(TrainSession(cohort, assembly.plan(config, order.server_round)), order.strike, pipe)
        pipe.send(("ready", None))
        place = pipe.recv()
        try:
            _take_part(session, place, order.strike, pipe)
        except (ExchangeError, grpc.RpcError) as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
        else:
            bases = dict.fromkeys(order.clients, order.base)
            states.commit(order.server_round, {client: cohort.state(client) for client in cohort.clients}, bases, [])
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


def frame_shape() -> tuple[tuple[int, ...], Any, Kind]:
    """What `TrainCheck` wants to know of the run: a sample's smashed data, their dtype, the target type."""
    config = RunConfig.parse(SETTINGS)
    model = assembly.model(config)
    return model.smashed_shape(), assembly.dtype(config), assembly.targets(config)


def max_frame() -> int:
    """Bytes of a frame at most, as `flower.server` has it."""
    return frame_bytes(BATCH * max(map(len, HOSTED.values())), *frame_shape())
