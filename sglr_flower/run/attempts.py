"""A training round over whatever reaches the nodes: its turns, and all of it again where too few clients stayed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from sglr_flower.errors import TooFewClients
from sglr_flower.run.nodes import Attended, TrainingNodes, Weights
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import RoundResult, merge
from sglr_flower.split.sent import Sent
from sglr_flower.split.server import ServerSegment

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")

OnStep = Callable[[int, int, float], None]
"""Told how many of a round's steps are done, of how many, and the last one's loss (nan before the first)."""
_Done = TypeVar("_Done")


@dataclass(frozen=True)
class Trained:
    """A whole round: what it did, what it sent, and the segment that all clients now share, if they do."""

    result: RoundResult
    shared: Weights | None
    sent: Sent
    attended: Attended
    attempts: int = 1


def train_until_done(
    server: ServerSegment,
    plan: RoundPlan,
    nodes: TrainingNodes,
    shared: Weights | None,
    *,
    retries: int = 0,
    on_attempt: Callable[[RoundPlan], None] = lambda plan: None,
    on_step: OnStep = lambda done, steps, loss: None,
) -> Trained:
    """A round, trained again from the weights before it if too few clients are left at its end.

    Parameters
    ----------
    server : ServerSegment
        Trained in place.
    plan : RoundPlan
        The round, with all clients that were drawn for it.
    nodes : TrainingNodes
        Reach them.
    shared : Weights | None
        The segment that all clients start from; None: each goes on with its own.
    retries : int
        How often it may be begun again.
    on_attempt : Callable[[RoundPlan], None]
        Told the plan of every attempt, with the clients that are there, before anything is sent; may raise.
    on_step : OnStep
        Told of every step, and once before the first.

    Raises
    ------
    TooFewClients
        If too few clients are left after the last attempt.
    """
    before = {name: tensor.clone() for name, tensor in server.state().items()} if retries else {}
    for attempt in itertools.count(1):
        try:
            with nodes.attempt(plan, attempt) as attended:
                on_attempt(attended.plan)
                done = _train_turns(server, attended, nodes, shared, on_step)
            return replace(done, attempts=attempt)
        except TooFewClients as error:
            if attempt > retries:
                tried = f" (attempt {attempt} of {retries + 1})" if retries else ""
                raise TooFewClients(f"{error}{tried}") from error
            log.warning("%s; attempt %d of %d", error, attempt + 1, retries + 1)
            server.load_state(before)
    raise AssertionError("unreachable")


def _train_turns(
    server: ServerSegment, attended: Attended, nodes: TrainingNodes, shared: Weights | None, on_step: OnStep
) -> Trained:
    turns = attended.plan.turns()
    steps = [turn.steps(nodes.sizes) for turn in turns]
    on_step(0, sum(steps), float("nan"))
    results: list[RoundResult] = []
    sent = Sent()
    for number, turn in enumerate(turns):
        if set(turn.clients) <= nodes.absent:
            continue  # its node has left in a turn before
        turn = replace(turn, first_step=sum(steps[:number]), round_steps=sum(steps))
        done = sum(result.steps for result in results)

        def told(step: int, loss: float, before: int = done) -> None:
            on_step(before + step, sum(steps), loss)

        with nodes.train(turn, shared) as opened:
            split = None if turn.server is None else opened.train(server, turn, told)
        results.append(split or merge(opened.local, together=True))
        # Who leaves in the middle hands nothing on.
        shared = shared if opened.average is None else opened.average
        sent += opened.sent
    return Trained(merge(results, together=False), shared, sent, attended)


def with_retries(action: Callable[[], _Done], retries: int) -> _Done:
    """What a round's end needs of the nodes, tried again where all of them have left meanwhile."""
    for attempt in itertools.count():
        try:
            return action()
        except TooFewClients as error:
            if attempt == retries:
                raise
            log.warning("%s; once more", error)
    raise AssertionError("unreachable")
