"""A training step by stopwatch: what two node processes and the server compute, and what the exchange takes.

The processes of a simulation without Flower: the same sessions over the same stream, tensors in shared memory.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.wire import NODES, TIMEOUT, fail
from sglr_flower.exchange.checks import TrainCheck
from sglr_flower.exchange.stream import StreamServer, run_session
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import spread
from sglr_flower.split.rounds import TrainSession

_BATCHES = 2
_FIRST = 3
"""Steps that are not counted: imports, first allocations."""


class _Timed(TrainSession):
    """A session that notes how long each of its steps computes."""

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.seconds: list[float] = []

    def advance(self, download: Download) -> Upload | None:
        began = time.perf_counter()
        upload = super().advance(download)
        self.seconds.append(time.perf_counter() - began)
        return upload


def _config(clients: int, epochs: int) -> RunConfig:
    samples = _BATCHES * 8
    sizes = {"num-clients": clients, "samples-per-client": samples, "local-epochs": epochs}
    return RunConfig.parse({"dataset": "digits", "image-size": 32, **sizes})


def _node(pipe: Connection, clients: Sequence[int], count: int, epochs: int) -> None:
    torch.set_num_threads(1)
    config = _config(count, epochs)
    session = _Timed(assembly.cohort(config, clients), assembly.plan(config, 1))
    pipe.send("ready")
    run_session(session, *pipe.recv(), TIMEOUT, shares_memory=True)
    pipe.send(session.seconds)


def step_parts(clients: int, epochs: int) -> dict[str, float]:
    """Train a round of so many epochs of two steps.

    Returns
    -------
    dict[str, float]
        Medians over the steps, seconds: of ``nodes`` (in each step the slower one), ``server`` and the whole ``step``;
        and ``share``, the part of a step that is neither.
    """
    config = _config(clients, epochs)
    server, plan, shape = assembly.server(config), assembly.plan(config, 1), assembly.model(config).smashed_shape()
    hosted = dict(enumerate(spread(clients, NODES)))
    context = multiprocessing.get_context("spawn")  # a forked child would share gRPC's threads
    pipes = [context.Pipe() for _ in hosted]
    processes = [
        context.Process(target=_node, args=(theirs, own, clients, epochs), daemon=True)
        for (_, theirs), own in zip(pipes, hosted.values(), strict=True)
    ]
    for process in processes:
        process.start()
    for ours, _ in pipes:
        ours.recv()
    checks = {
        node: TrainCheck(plan, dict.fromkeys(own, _BATCHES * 8), shape, torch.float32, assembly.targets(config))
        for node, own in hosted.items()
    }
    streams = StreamServer()
    computed, stamps = [], []
    timeouts: dict[str, Any] = {"timeout": TIMEOUT, "start_timeout": TIMEOUT, "on_drop": fail, "failures": dict}
    with streams.open(checks, **timeouts, sharing_memory=checks) as link:
        for node, (ours, _) in enumerate(pipes):
            ours.send((streams.address, link.secrets[node]))
        server.begin(plan)
        while uploads := link.receive():
            began = time.perf_counter()
            downloads, _ = server.step(plan, uploads)
            computed.append(time.perf_counter() - began)
            link.send(downloads)
            stamps.append(time.perf_counter())
        nodes = [max(both) for both in zip(*(ours.recv() for ours, _ in pipes), strict=True)]
    streams.stop()
    for process in processes:
        process.join()
    # Between two answers of the server lie the nodes' step after the first one, and the server's own second.
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    counted = slice(_FIRST, None)
    triples = list(zip(steps, nodes[: len(steps)], computed[1:], strict=True))[counted]
    return {
        "step": statistics.median(step for step, _, _ in triples),
        "nodes": statistics.median(node for _, node, _ in triples),
        "server": statistics.median(own for _, _, own in triples),
        "share": statistics.median(1 - (node + own) / step for step, node, own in triples),
    }
