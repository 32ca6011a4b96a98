"""The run: rounds of training, evaluation and checkpoints, over whatever reaches the nodes.

The Flower strategy and the in-process driver both end in `train`; they differ in the `Nodes` they hand it.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sglr_flower.data.samples import Samples
from sglr_flower.errors import TooFewClients, UserError
from sglr_flower.run import assembly, checkpoint, origin, track
from sglr_flower.run.accounting import Ledger
from sglr_flower.run.checkpoint import LazyStates
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import History, RoundMetrics, byte_columns, evaluation_columns
from sglr_flower.run.nodetable import departures
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split import averaging, methods, optimizers
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import (
    EvaluateSession,
    Link,
    LocalLink,
    RoundResult,
    Score,
    evaluate_round,
    merge,
    train_round,
)
from sglr_flower.split.sent import Sent
from sglr_flower.split.server import ServerSegment

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")


Weights = Mapping[str, Tensor]
CLIENTS_AT_ONCE = 20
"""Clients that are scored together: their segments are in memory, however many clients a run has."""
_Done = TypeVar("_Done")


@dataclass
class OpenRound:
    """A training round while it is open on the nodes; the nodes' share of it is there when it has ended.

    Attributes
    ----------
    link : Link
        To the nodes' sessions.
    average : Weights | None
        The mean of the clients' segments, where the method averages them or hands them on.
    local : list[RoundResult]
        What each node did by itself, where there is no server segment.
    segments : Sent
        The segments that the method itself moved.
    """

    link: Link
    average: Weights | None = None
    local: list[RoundResult] = field(default_factory=list)
    segments: Sent = field(default_factory=Sent)

    @property
    def sent(self) -> Sent:
        """All that went between the nodes and the server to train."""
        return self.link.sent + self.segments

    def train(
        self, server: ServerSegment, plan: RoundPlan, on_step: Callable[[int, float], None] | None = None
    ) -> RoundResult:
        """All steps of the round that the server has a part in."""
        return train_round(server, plan, self.link, on_step)


@dataclass
class Attended:
    """An attempt of a round: the plan with the clients that are there, and at its end how many still were.

    Attributes
    ----------
    plan : RoundPlan
        The round, with those of its clients whose nodes were there at the beginning.
    nodes : int
        Nodes that were there at the end.
    dropped_clients : int
        Clients drawn for the round that were not.
    """

    plan: RoundPlan
    nodes: int = 0
    dropped_clients: int = 0


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
        """Client -> its number of train images; without clients that were never reached."""

    @property
    def absent(self) -> frozenset[int]:
        """Clients that cannot be reached now."""

    def versions(self, server_round: int) -> dict[int, int]:
        """Client -> the last round that it has trained in, 0 if none, of those that did not in ``server_round``."""

    def attempt(self, plan: RoundPlan, number: int) -> AbstractContextManager[Attended]:
        """Begin a round, for the ``number``-th time, with those of its clients that are there."""

    def train(self, plan: RoundPlan, shared: Weights | None) -> AbstractContextManager[OpenRound]:
        """Open a training round, or a turn of one, on the nodes of the plan's clients.

        ``shared`` is the segment that they all start from; None: each goes on with its own.
        """

    def evaluate(self, server_round: int, shared: Weights | None) -> AbstractContextManager[Link]:
        """Open a client-side evaluation on all nodes."""

    def collect(self, server_round: int, *, checkpoint: bool) -> Mapping[int, dict[str, Tensor]]:
        """Have the clients' segments' weights, or for a checkpoint their whole states.

        Returns client -> its state, ``segment.NAME`` and, for a checkpoint, ``optimizer.INDEX.NAME``; without clients
        that have not trained yet or cannot be reached, and empty where nodes keep their checkpoints themselves.
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
    with track.observers(config, directory) as observers:
        return _train_all(config, nodes, directory, restored, observers)


def _train_all(
    config: RunConfig,
    nodes: Nodes,
    directory: RunDirectory,
    restored: checkpoint.Checkpoint | None,
    observers: track.Observers,
) -> dict[str, Any]:
    server = assembly.server(config)
    scoring = assembly.scoring(config)
    history = History(score=scoring.score)
    shared: Weights | None = None
    if restored is not None:
        server.load_state(restored.server_state())
        history = History.from_json(restored.history)
        shared = restored.shared_weights()
    directory.begin(history)
    directory.record_origin(asdict(origin.here(server.device)))
    observers.begin(history.rows)
    ledger = Ledger.open(config, directory.path, len(history.rows))
    if ledger is not None and not ledger.claims:
        log.warning("noise-seed = %d: the noise can be drawn again, so no epsilon is stated", config.noise_seed)
    # With client-side evaluation the server needs no data of its own.
    images = assembly.evaluation_images(config) if config.evaluate == "server" else {}
    if images and config.partition != "own":
        directory.partition(*assembly.class_counts(config))
    for server_round in range(len(history.rows) + 1, config.num_server_rounds + 1):
        started = time.perf_counter()
        plan = assembly.plan(config, server_round)
        if ledger is not None and not ledger.affords(plan, nodes.sizes):
            _refuse_unscored(history, ledger, plan, nodes.sizes)
            break
        done = _train_until_done(server, plan, nodes, directory, shared, config.round_retries, ledger)
        shared = done.shared
        last = server_round == config.num_server_rounds or _spent(config, ledger, server_round, nodes.sizes)
        due = last or (config.evaluate_every > 0 and server_round % config.evaluate_every == 0)
        save = last or server_round % config.checkpoint_every == 0
        states: Mapping[int, dict[str, Tensor]] = {}
        if save or (due and config.evaluate == "server" and shared is None):
            collect = functools.partial(nodes.collect, server_round, checkpoint=save)
            states = _with_retries(collect, config.round_retries)
        if shared is not None:
            # What a node holds until the next round is what its clients trained, not yet what they share.
            states = _with_segment(states, shared)
        scores: dict[int, Score] = {}
        evaluation_bytes = 0
        if due:
            evaluate = functools.partial(_evaluate, config, server, nodes, images, server_round, states, shared)
            scores, evaluation_bytes = _with_retries(evaluate, config.round_retries)
        carried: dict[int, int] = {}
        if save and config.evaluate == "server" and nodes.absent and (earlier := directory.latest_checkpoint()):
            missing = earlier.client_states(nodes.absent - states.keys())
            states, carried = _joined(states, missing), earlier.state_versions(missing)
        row = RoundMetrics(
            round=server_round,
            steps=done.result.steps,
            clients=len(plan.clients) - done.attended.dropped_clients,
            train_loss=done.result.loss,
            client_lr=plan.client_rate(),
            server_lr=plan.step_lr,
            **evaluation_columns(scores),
            evaluated_images=max((score.test.samples for score in scores.values()), default=0),
            seconds=time.perf_counter() - started,
            step_seconds_median=done.result.step_seconds_median,
            **byte_columns(done.sent),
            evaluation_bytes=evaluation_bytes,
            nodes=done.attended.nodes,
            dropped_clients=done.attended.dropped_clients,
            attempts=done.attempts,
            epsilon=None if ledger is None else ledger.epsilon,
            score=scoring.score,
        )
        history.add(row, scores)
        if save:
            checkpoint.save(
                directory.checkpoints,
                server_round,
                server.state(),
                states,
                history.to_json(),
                shared,
                nodes.versions(server_round),
                carried,
                config.checkpoints_kept,
            )
        directory.record(row)
        observers.round(row)
        directory.status(**_round_status(row))
        log.info(_round_line(row, config.num_server_rounds))
        if last:
            break
    from sglr_flower.run import client_cost as client  # its counter's import is not the training's to wait for

    summary = {
        "method": config.method,
        "model": config.model,
        "dataset": config.dataset,
        "clients": len(assembly.clients(config)),
        "one_network": methods.get(config.method).one_network,
        "nodes": nodes.count,
        "exchange": nodes.exchange,
        **history.summary(),
        **_per_client(history, len(assembly.clients(config))),
        **departures(directory.nodes()),
        "client": client.bore(config, len(history.rows), nodes.sizes, directory.nodes()),
        "seed": config.seed,
        **({} if ledger is None else _privacy_summary(config, ledger, history)),
    }
    directory.finish(summary)
    observers.end(summary)
    return summary


def _spent(config: RunConfig, ledger: Ledger | None, server_round: int, samples: Mapping[int, int]) -> bool:
    """Whether the privacy budget allows no round after this one."""
    return ledger is not None and not ledger.affords(assembly.plan(config, server_round + 1), samples)


def _charge(ledger: Ledger, plan: RoundPlan, samples: Mapping[int, int]) -> None:
    """Count an attempt of a round before anything is sent: what a round that fails has sent is known to the clients."""
    if not ledger.affords(plan, samples):
        again = f"round {plan.server_round} another time"
        raise UserError(f"run-config key dp-epsilon-budget = {ledger.budget:g}: it does not allow {again}")
    ledger.charge(plan, samples)


def _refuse_unscored(history: History, ledger: Ledger, plan: RoundPlan, samples: Mapping[int, int]) -> None:
    """Refuse to end a run before a round where there is nothing yet to end with.

    Raises
    ------
    UserError
        If no round has been trained, or none that is left has been evaluated.
    """
    if history.last_evaluated() is None:
        raise UserError(
            f"run-config key dp-epsilon-budget = {ledger.budget:g}: round {plan.server_round} would bring epsilon to "
            f"{ledger.cost(plan, samples):.4g}, and no round before it is there with an evaluation"
        )


def _privacy_summary(config: RunConfig, ledger: Ledger, history: History) -> dict[str, Any]:
    ended = len(history.rows) < config.num_server_rounds
    return {"epsilon": ledger.epsilon, "delta": ledger.delta, "ended_by_privacy_budget": ended}


@dataclass(frozen=True)
class _Trained:
    """A whole round: what it did, what it sent, and the segment that all clients now share, if they do."""

    result: RoundResult
    shared: Weights | None
    sent: Sent
    attended: Attended
    attempts: int = 1


def _train_until_done(
    server: ServerSegment,
    plan: RoundPlan,
    nodes: Nodes,
    directory: RunDirectory,
    shared: Weights | None,
    retries: int,
    ledger: Ledger | None,
) -> _Trained:
    """A round, trained again from the weights before it if too few clients are left at its end."""
    before = {name: tensor.clone() for name, tensor in server.state().items()} if retries else {}
    for attempt in itertools.count(1):
        try:
            with nodes.attempt(plan, attempt) as attended:
                if ledger is not None:
                    _charge(ledger, attended.plan, nodes.sizes)
                done = _train_round(server, attended, nodes, directory, shared)
            return replace(done, attempts=attempt)
        except TooFewClients as error:
            if attempt > retries:
                tried = f" (attempt {attempt} of {retries + 1})" if retries else ""
                raise TooFewClients(f"{error}{tried}") from error
            log.warning("%s; attempt %d of %d", error, attempt + 1, retries + 1)
            server.load_state(before)
    raise AssertionError("unreachable")


def _train_round(
    server: ServerSegment, attended: Attended, nodes: Nodes, directory: RunDirectory, shared: Weights | None
) -> _Trained:
    turns = attended.plan.turns()
    steps = [turn.steps(nodes.sizes) for turn in turns]
    directory.status(
        state="training",
        round=attended.plan.server_round,
        step=0,
        steps=sum(steps),
    )
    results: list[RoundResult] = []
    sent = Sent()

    def on_step(step: int, loss: float) -> None:
        directory.status(force=False, step=sum(result.steps for result in results) + step, loss=loss)

    for number, turn in enumerate(turns):
        if set(turn.clients) <= nodes.absent:
            continue  # its node has left in a turn before
        turn = replace(turn, first_step=sum(steps[:number]), round_steps=sum(steps))
        with nodes.train(turn, shared) as opened:
            split = None if turn.server_update == "none" else opened.train(server, turn, on_step)
        results.append(split or merge(opened.local, together=True))
        # Who leaves in the middle hands nothing on.
        shared = shared if opened.average is None else opened.average
        sent += opened.sent
    return _Trained(merge(results, together=False), shared, sent, attended)


def _with_retries(action: Callable[[], _Done], retries: int) -> _Done:
    """What a round's end needs of the nodes, tried again where all of them have left meanwhile."""
    for attempt in itertools.count():
        try:
            return action()
        except TooFewClients as error:
            if attempt == retries:
                raise
            log.warning("%s; once more", error)
    raise AssertionError("unreachable")


def _evaluate(
    config: RunConfig,
    server: ServerSegment,
    nodes: Nodes,
    images: Mapping[str, Samples],
    server_round: int,
    states: Mapping[int, Mapping[str, Tensor]],
    shared: Weights | None,
) -> tuple[dict[int, Score], int]:
    """Score every client, on the server with the ``states`` it was sent or over the nodes; and the bytes it took."""
    if config.evaluate == "client":
        with nodes.evaluate(server_round, shared) as link:
            scores = evaluate_round(server, link, assembly.scoring(config))
        # Of who left in the middle only a part of the images was scored.
        scores = {client: score for client, score in scores.items() if client not in nodes.absent}
        if not scores:
            raise TooFewClients(f"round {server_round}: no client is left to be evaluated")
        return scores, link.sent.up + link.sent.down
    if shared is not None:  # all clients are the same: scored once
        scores = _score(config, server, images, server_round, {0: shared})
        return dict.fromkeys(assembly.clients(config), scores[0]), 0
    here = [client for client in assembly.clients(config) if client not in nodes.absent]
    if not here:
        raise TooFewClients(f"round {server_round}: no client is left to be evaluated")
    scores = {}
    for first in range(0, len(here), CLIENTS_AT_ONCE):
        group = here[first : first + CLIENTS_AT_ONCE]
        segments = {
            client: optimizers.segment_weights(states[client]) if client in states else None for client in group
        }
        scores |= _score(config, server, images, server_round, segments)
    return scores, 0


def _score(
    config: RunConfig,
    server: ServerSegment,
    images: Mapping[str, Samples],
    server_round: int,
    weights: Mapping[int, Weights | None],
) -> dict[int, Score]:
    """Score some clients on the server; those without weights have their initial segments."""
    network = assembly.model(config)
    template = network.client_segment(0)
    segments: dict[int, torch.nn.Module] = {}
    for client, own in weights.items():
        segment = network.client_segment(client) if own is None else copy.deepcopy(template)
        if own is not None:
            averaging.load(segment, own)
        segments[client] = segment.to(server.device)
    defence, (up, _) = assembly.defence(config), assembly.wire_codecs(config)
    dtype, layout = assembly.dtype(config), server.memory_format
    session = EvaluateSession(segments, dtype, server_round, images, layout, defence, up)
    return evaluate_round(server, LocalLink({0: session}), assembly.scoring(config))


def _per_client(history: History, clients: int) -> dict[str, float]:
    """What training sent for a client on the average over all of the run's, as Table 6 divides: totals by |C|."""
    sums = history.summary()
    return {f"{column}_per_client": sums[column] / clients for column in ("bytes_up", "bytes_down")}


def _joined(states: Mapping[int, dict[str, Tensor]], others: Mapping[int, dict[str, Tensor]]) -> LazyStates:
    return LazyStates([*states, *others], lambda client: states[client] if client in states else others[client])


def _with_segment(states: Mapping[int, dict[str, Tensor]], shared: Weights) -> LazyStates:
    """The states with this segment in place of each one's own."""
    segment = {f"segment.{name}": tensor for name, tensor in shared.items()}
    return LazyStates(states, lambda client: {**states[client], **segment})


def _round_status(row: RoundMetrics) -> dict[str, Any]:
    status: dict[str, Any] = {
        "rounds_done": row.round,
        "train_loss": row.train_loss,
        "round_seconds": row.seconds,
    }
    if row.test_score_mean is not None:
        status |= {row.score.name: row.test_score_mean, "evaluated_round": row.round}
    return status


def _round_line(row: RoundMetrics, rounds: int) -> str:
    line = f"round {row.round}/{rounds}: loss {row.train_loss:.4f}, {row.steps} steps in {row.seconds:.1f} s"
    if row.test_score_mean is not None:
        line += f", test {row.score.words} {row.score.text(row.test_score_mean, row.test_score_std)}"
    return line
