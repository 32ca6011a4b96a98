"""The stream alone: frames of a size, to and fro between this process and two others, without Flower or training."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from sglr_flower.exchange.endpoint import Endpoint
from sglr_flower.exchange.stream import ExchangeError, StreamServer, run_session
from sglr_flower.federation import pki
from sglr_flower.split.messages import Download, Upload

NODES = 2
ROWS = 32  # samples of a frame: four clients' batches of eight
TIMEOUT = 60.0


@dataclass(frozen=True)
class Job:
    """What a node process is to do: one stream of so many frames.

    Attributes
    ----------
    address, secret : str
        As a node gets them.
    ca : bytes | None
        The federation's certificate authority; None: plaintext.
    columns : int
        Floats per sample of the frame.
    steps : int
        Frames to send.
    memory : bool
        Whether the tensors lie in shared memory, as those of a simulation's nodes.
    """

    address: str
    secret: str
    ca: bytes | None
    columns: int
    steps: int
    memory: bool


class _Pump:
    """A session that trains nothing: the same tensor goes up in every step."""

    def __init__(self, columns: int, steps: int) -> None:
        self._smashed, self._labels = torch.randn(ROWS, columns), torch.zeros(ROWS, dtype=torch.int64)
        self._steps = steps

    def start(self) -> Upload:
        """The first frame."""
        return self._upload(0)

    def advance(self, download: Download) -> Upload | None:
        """The next frame."""
        return self._upload(download.step + 1) if download.step + 1 < self._steps else None

    def _upload(self, step: int) -> Upload:
        return Upload(1, step, "train", (0,), (ROWS,), self._smashed, self._labels, step + 1 == self._steps)


def _node(orders: Connection) -> None:
    torch.set_num_threads(1)
    while (job := orders.recv()) is not None:
        pump = _Pump(job.columns, job.steps)
        run_session(pump, job.address, job.secret, TIMEOUT, job.ca, shares_memory=job.memory)


class Wire:
    """Two node processes, a plaintext and a TLS server on loopback."""

    def __init__(self, orders: list[Connection], servers: Mapping[str, StreamServer], ca: bytes) -> None:
        self._orders, self._servers, self._ca = orders, servers, ca

    def step_seconds(self, transport: str, payload: int, steps: int) -> float:
        """Median time of a step in one stream per node: both nodes' frames received, decoded, and answered.

        Parameters
        ----------
        transport : str
            ``memory``, ``plain`` or ``tls``.
        payload : int
            Bytes of a frame's floats, each way and for each node.
        steps : int
            Steps of the round; the first, which holds the opening of the streams, is not counted.
        """
        columns = payload // (4 * ROWS)
        answer, server = torch.randn(ROWS, columns), self._servers["tls" if transport == "tls" else "plain"]
        checks = dict.fromkeys(range(NODES), _accept)
        stamps = []
        with server.open(
            checks,
            timeout=TIMEOUT,
            start_timeout=TIMEOUT,
            on_drop=fail,
            failures=lambda: {},
            sharing_memory=checks if transport == "memory" else (),
        ) as link:
            ca = self._ca if transport == "tls" else None
            for node, orders in enumerate(self._orders):
                orders.send(Job(server.address, link.secrets[node], ca, columns, steps, transport == "memory"))
            while uploads := link.receive():
                link.send({node: _answer(upload, answer) for node, upload in uploads.items()})
                stamps.append(time.perf_counter())
        return statistics.median(after - before for before, after in itertools.pairwise(stamps))


@contextmanager
def wire() -> Iterator[Wire]:
    """Start the processes and servers, and end them with the block."""
    authority = pki.new_authority("benchmark")
    identity = pki.new_server(authority, ["127.0.0.1"])
    servers = {
        "plain": StreamServer(Endpoint()),
        "tls": StreamServer(Endpoint(certificate=identity.public, key=identity.private)),
    }
    context = multiprocessing.get_context("spawn")  # a forked child would share gRPC's threads
    pipes = [context.Pipe() for _ in range(NODES)]
    processes = [context.Process(target=_node, args=(theirs,)) for _, theirs in pipes]
    for process in processes:
        process.start()
    try:
        yield Wire([ours for ours, _ in pipes], servers, authority.public)
    finally:
        for ours, _ in pipes:
            ours.send(None)
        for process in processes:
            process.join(10)
            process.kill()
        for server in servers.values():
            server.stop()


def _accept(upload: Upload) -> None:
    """A frame check that lets everything pass: what is measured is the wire."""


def _answer(upload: Upload, gradient: Tensor) -> Download:
    return Download(upload.server_round, upload.step, own=gradient)


def fail(node: int, reason: str) -> Any:
    """End the measurement: no node may leave it."""
    raise ExchangeError(f"node {node}: {reason}")
