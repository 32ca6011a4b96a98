"""How a run reaches its nodes: what `training` asks of them, over Flower or in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import Link, RoundResult, train_round
from sglr_flower.split.sent import Sent
from sglr_flower.split.server import ServerSegment

Weights = Mapping[str, Tensor]


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


class TrainingNodes(Protocol):
    """What a round of training needs of the nodes."""

    @property
    def sizes(self) -> Mapping[int, int]:
        """Client -> its number of train samples; without clients that were never reached."""

    @property
    def absent(self) -> frozenset[int]:
        """Clients that cannot be reached now."""

    def attempt(self, plan: RoundPlan, number: int) -> AbstractContextManager[Attended]:
        """Begin a round, for the ``number``-th time, with those of its clients that are there."""

    def train(self, plan: RoundPlan, shared: Weights | None) -> AbstractContextManager[OpenRound]:
        """Open a training round, or a turn of one, on the nodes of the plan's clients.

        ``shared`` is the segment that they all start from; None: each goes on with its own.
        """


class Nodes(TrainingNodes, Protocol):
    """How a run reaches its nodes: over Flower, or in this process."""

    @property
    def exchange(self) -> str:
        """How tensors travel, for the summary."""

    @property
    def count(self) -> int:
        """Number of nodes."""

    def versions(self, server_round: int) -> dict[int, int]:
        """Client -> the last round that it has trained in, 0 if none, of those that did not in ``server_round``."""

    def evaluate(self, server_round: int, shared: Weights | None) -> AbstractContextManager[Link]:
        """Open a client-side evaluation on all nodes."""

    def collect(self, server_round: int, *, checkpoint: bool) -> Mapping[int, dict[str, Tensor]]:
        """Have the clients' segments' weights, or for a checkpoint their whole states.

        Returns client -> its state, ``segment.NAME`` and, for a checkpoint, ``optimizer.INDEX.NAME``; without clients
        that have not trained yet or cannot be reached, and empty where nodes keep their checkpoints themselves.
        """
