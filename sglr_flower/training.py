"""The run: rounds of training, evaluation and checkpoints, over whatever reaches the nodes.

The Flower strategy and the in-process driver both end in `train`; they differ in the `Nodes` they hand it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from sglr_flower import assembly, checkpoint, splitlr
from sglr_flower.config import RunConfig
from sglr_flower.data.datasets import ImageSet
from sglr_flower.metrics import History, RoundMetrics, evaluation_columns
from sglr_flower.rundir import RunDirectory
from sglr_flower.split import optimizers
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import (
    EvaluateSession,
    Link,
    LocalLink,
    RoundResult,
    Score,
    evaluate_round,
    train_round,
)
from sglr_flower.split.server import ServerSegment

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")


class Nodes(Protocol):
    """How a run reaches its nodes: over Flower, or in this process."""

    @property
    def exchange(self) -> str:
        """How tensors travel, for the summary."""

    @property
    def count(self) -> int:
        """Number of nodes."""

    @property
    def sizes(self) -> Mapping[int, int]:
        """Client -> its number of train images."""

    def train(self, plan: RoundPlan) -> AbstractContextManager[Link]:
        """Open a training round on the nodes of the plan's clients."""

    def evaluate(self, server_round: int) -> AbstractContextManager[Link]:
        """Open a client-side evaluation on all nodes."""

    def collect(self, server_round: int, *, checkpoint: bool) -> dict[int, dict[str, Tensor]]:
        """Have all nodes send their client segments' weights, or for a checkpoint all of their clients' states.

        Returns client -> its state, ``segment.NAME`` and, for a checkpoint, ``optimizer.INDEX.NAME``; without the
        clients whose nodes keep their checkpoints themselves.
        """


def train(
    config: RunConfig, nodes: Nodes, directory: RunDirectory, restored: checkpoint.Checkpoint | None = None
) -> dict[str, Any]:
    """Train all rounds that are left and record them in the run directory.

    Parameters
    ----------
    config : RunConfig
        The run.
    nodes : Nodes
        Started, their clients in the state of ``restored``.
    directory : RunDirectory
        In a session of this process.
    restored : Checkpoint | None
        Where server and history continue from; None: a run from its beginning.

    Returns
    -------
    dict[str, Any]
        What ``summary.json`` holds.
    """
    server = assembly.server(config)
    history = History()
    if restored is not None:
        server.load_state(restored.server_state())
        history = History.from_json(restored.history)
    directory.begin(history)
    # With client-side evaluation the server needs no data of its own.
    images = assembly.evaluation_images(config) if config.evaluate == "server" else {}
    for server_round in range(len(history.rows) + 1, config.num_server_rounds + 1):
        started = time.perf_counter()
        plan = assembly.plan(config, server_round)
        result, sent = _train_round(server, plan, nodes, directory)
        last = server_round == config.num_server_rounds
        due = last or (config.evaluate_every > 0 and server_round % config.evaluate_every == 0)
        save = last or server_round % config.checkpoint_every == 0
        bring = save or (due and config.evaluate == "server")
        states = nodes.collect(server_round, checkpoint=save) if bring else {}
        scores, evaluation_bytes = _evaluate(config, server, nodes, images, server_round, states) if due else ({}, 0)
        row = RoundMetrics(
            round=server_round,
            steps=result.steps,
            clients=len(plan.clients),
            train_loss=result.loss,
            client_lr=plan.client_lr,
            server_lr=splitlr.server_lr(plan.client_lr, len(plan.clients), plan.alpha),
            **evaluation_columns(scores),
            evaluated_images=max((score.test.images for score in scores.values()), default=0),
            seconds=time.perf_counter() - started,
            step_seconds_median=result.step_seconds_median,
            bytes_up=sent.bytes_up,
            bytes_down=sent.bytes_down,
            evaluation_bytes=evaluation_bytes,
        )
        history.add(row, scores)
        if save:
            checkpoint.save(directory.checkpoints, server_round, server.state(), states, history.to_json())
        directory.record(row)
        directory.status(**_round_status(row))
        log.info(_round_line(row, config.num_server_rounds))
    summary = {
        "method": config.method,
        "model": config.model,
        "dataset": config.dataset,
        "clients": config.num_clients,
        "nodes": nodes.count,
        "exchange": nodes.exchange,
        **history.summary(),
        "seed": config.seed,
    }
    directory.finish(summary)
    return summary


def _train_round(
    server: ServerSegment, plan: RoundPlan, nodes: Nodes, directory: RunDirectory
) -> tuple[RoundResult, Link]:
    steps = plan.local_epochs * max(-(-nodes.sizes[client] // plan.batch_size) for client in plan.clients)
    directory.status(state="training", round=plan.server_round, step=0, steps=steps)

    def on_step(step: int, loss: float) -> None:
        directory.status(force=False, step=step, loss=loss)

    with nodes.train(plan) as link:
        return train_round(server, plan, link, on_step), link


def _evaluate(
    config: RunConfig,
    server: ServerSegment,
    nodes: Nodes,
    images: Mapping[str, ImageSet],
    server_round: int,
    states: Mapping[int, Mapping[str, Tensor]],
) -> tuple[dict[int, Score], int]:
    """Score every client, on the server with the ``states`` it was sent or over the nodes; and the bytes it took."""
    if config.evaluate == "client":
        with nodes.evaluate(server_round) as link:
            scores = evaluate_round(server, link)
        return scores, link.bytes_up + link.bytes_down
    network = assembly.model(config)
    segments: dict[int, torch.nn.Module] = {}
    for client, state in sorted(states.items()):
        segments[client] = network.client_segment(client).to(server.device)
        segments[client].load_state_dict(optimizers.segment_weights(state))
    session = EvaluateSession(segments, assembly.dtype(config), server_round, images)
    return evaluate_round(server, LocalLink({0: session})), 0


def _round_status(row: RoundMetrics) -> dict[str, Any]:
    status: dict[str, Any] = {
        "rounds_done": row.round,
        "train_loss": row.train_loss,
        "round_seconds": row.seconds,
    }
    if row.test_accuracy_mean is not None:
        status |= {"accuracy": row.test_accuracy_mean, "evaluated_round": row.round}
    return status


def _round_line(row: RoundMetrics, rounds: int) -> str:
    line = f"round {row.round}/{rounds}: loss {row.train_loss:.4f}, {row.steps} steps in {row.seconds:.1f} s"
    if row.test_accuracy_mean is not None and row.test_accuracy_std is not None:
        line += f", test accuracy {100 * row.test_accuracy_mean:.2f} ± {100 * row.test_accuracy_std:.2f} %"
    return line
