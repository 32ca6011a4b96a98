"""One attempt of a round: which of its clients are there, which nodes have left it, and what each has done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from sglr_flower.errors import TooFewClients
from sglr_flower.exchange.link import Traffic
from sglr_flower.flower.delivery import Failure
from sglr_flower.flower.roster import Roster
from sglr_flower.flower.seating import Member, clients_of
from sglr_flower.run.nodetable import REMAINED, NodeEntry, NodeRow, NodeState
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.sent import total


class Attendance:
    """Who is in an attempt of a round.

    Parameters
    ----------
    roster : Roster
        The run's nodes; who is there now takes part.
    plan : RoundPlan
        The round, with all clients that were drawn for it.
    attempt : int
        From 1.
    min_clients : int
        How many must be left; 0: all that were drawn.

    Attributes
    ----------
    plan : RoundPlan
        The round, with the clients that are there at its beginning.
    number : int
        The attempt.
    """

    def __init__(self, roster: Roster, plan: RoundPlan, attempt: int, min_clients: int) -> None:
        self._roster, self._drawn, self.number = roster, plan.clients, attempt
        self._need = min(min_clients, len(plan.clients)) or len(plan.clients)
        self._members = [member for member in roster.members if clients_of([member], plan.clients)]
        self._here = [member for member in self._members if not member.away]
        self._left: dict[int, str] = {}
        self._done = False
        self._turns: list[Mapping[int, Traffic]] = []
        self.plan = replace(plan, clients=clients_of(self._here, plan.clients))

    @property
    def enough(self) -> bool:
        """Whether there are as many clients as the round needs."""
        return len(self._clients_left()) >= self._need

    @property
    def complete(self) -> bool:
        """Whether all clients that were drawn are there."""
        return len(self._clients_left()) == len(self._drawn)

    @property
    def nodes(self) -> int:
        """Nodes that are still in it."""
        return sum(member.node not in self._left for member in self._here)

    @property
    def dropped_clients(self) -> int:
        """The round's clients that are not, or no longer, there."""
        return len(self._drawn) - len(self._clients_left())

    def members(self, plan: RoundPlan) -> list[Member]:
        """The places that host clients of a turn and are still in the round."""
        return [m for m in self._here if m.node not in self._left and clients_of([m], plan.clients)]

    def left(self, node: int) -> bool:
        """Whether a node has left."""
        return node in self._left

    def leave(self, node: int, failure: Failure) -> None:
        """A node leaves the round.

        Raises
        ------
        UserError
            If the run may not go on without it, and it was a user's mistake.
        TooFewClients
            If too few clients are left.
        """
        if node in self._left:
            return
        member = self._roster.of_node(node)
        self._left[node] = failure.reason
        step = self._traffic(node).frames
        self._roster.lose(node, failure, f" round {self.plan.server_round} at step {step}")
        if not self.enough:
            raise self.too_few(f"{member} left at step {step} ({failure.reason})")

    def too_few(self, why: str = "") -> TooFewClients:
        """The error that says how many clients there are and how many there must be."""
        left, drawn = len(self._clients_left()), len(self._drawn)
        why = why or self._roster.reasons() or "no node hosts them"
        return TooFewClients(
            f"round {self.plan.server_round}: {left} of its {drawn} client(s) are there and it needs {self._need} "
            f"(min-clients): {why}"
        )

    def watch(self, traffic: Mapping[int, Traffic]) -> None:
        """Count what goes between the server and the nodes in a turn, from its beginning."""
        self._turns.append(traffic)

    def rows(self) -> list[NodeRow]:
        """The attempt as rows of ``nodes.csv``."""
        rows = []
        for member in self._members:
            traffic = self._traffic(member.node)
            state: NodeState = "finished" if self._done else "given up"
            if member.node in self._left:
                state = "dropped"
            elif member not in self._here:
                state = "away"
            rows.append(
                NodeRow(
                    round=self.plan.server_round,
                    attempt=self.number,
                    node=member.node,
                    name=member.name,
                    clients=clients_of([member], self._drawn),
                    state=state,
                    steps=traffic.frames,
                    latency_median=statistics.median(traffic.waits) if traffic.waits else None,
                    bytes_up=traffic.sent.up,
                    bytes_down=traffic.sent.down,
                    reason="" if state in REMAINED else self._left.get(member.node, member.away),
                )
            )
        return rows

    def entries(self) -> list[NodeEntry]:
        """The nodes as they are now, for ``status.json``."""
        entries = []
        for member, row in zip(self._members, self.rows(), strict=True):
            state: str = row.state
            if state in REMAINED:
                state = "training"
            elif member.question is not None:
                state = "returning"
            entries.append(
                NodeEntry(
                    node=row.node,
                    name=row.name,
                    clients=" ".join(map(str, row.clients)),
                    state=state,
                    step=row.steps,
                    latency=row.latency_median,
                    bytes_up=row.bytes_up,
                    bytes_down=row.bytes_down,
                    reason=row.reason,
                )
            )
        return entries

    def finish(self) -> None:
        """The round is done: the nodes that are still in it have its clients' new states."""
        for member in self._roster.present():
            if member.node not in self._left:
                self._roster.finished(member, self.plan)
        self._done = True

    def _clients_left(self) -> tuple[int, ...]:
        return clients_of((m for m in self._here if m.node not in self._left), self.plan.clients)

    def _traffic(self, node: int) -> Traffic:
        """What went between the server and a node in all turns so far."""
        turns = [turn[node] for turn in self._turns if node in turn]
        return Traffic(
            sum(turn.frames for turn in turns),
            total(turn.sent for turn in turns),
            [wait for turn in turns for wait in turn.waits],
        )
