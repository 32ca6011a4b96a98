"""The beginning of a run: which node takes which place, that is which clients, and how its tensors travel."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sglr_flower.errors import UserError
from sglr_flower.exchange.stream import MAX_STREAMS, StreamServer
from sglr_flower.flower.delivery import Pending
from sglr_flower.flower.protocol import AssignAnswer, HelloAnswer
from sglr_flower.run.nodetable import printable
from sglr_flower.split.plan import spread

log = logging.getLogger("flwr.sglr")
Answers = Mapping[int, HelloAnswer]
"""Node -> what it is, in the order of their partitions."""


@dataclass
class Member:
    """A place in the run: some clients, and the node that hosts them.

    Attributes
    ----------
    clients : tuple[int, ...]
        The clients of this place.
    node : int
        Flower's id of the node; 0: none has come yet.
    name : str
        What its node-config calls it; may be empty.
    partition : int
        Its partition-id, -1 if it has none; another node with the same one may take the place.
    base : int
        The round whose end its clients' states are from, as the server counts them.
    streams : bool
        Whether it can open a stream.
    memory : bool
        Whether it shares memory with the server: a simulated node on the server's machine.
    away : str
        Why it is not there; empty if it is.
    seated : bool
        Whether it, or a node before it, has taken the clients.
    """

    clients: tuple[int, ...]
    node: int = 0
    name: str = ""
    partition: int = -1
    base: int = 0
    streams: bool = False
    memory: bool = False
    away: str = ""
    seated: bool = False
    question: Pending[AssignAnswer] | None = field(default=None, repr=False)
    asked_at: float = 0.0

    def __str__(self) -> str:
        if not self.node:
            return f"the node of partition {self.partition}"
        return f"node {self.name} ({self.node})" if self.name else f"node {self.node}"


def clients_of(members: Iterable[Member], clients: Sequence[int]) -> tuple[int, ...]:
    """Those of ``clients`` that the members host, ascending."""
    hosted = {client for member in members for client in member.clients}
    return tuple(client for client in clients if client in hosted)


def numbered(answers: Answers) -> bool:
    """Whether the nodes say which of how many they are, each another one."""
    partitions = {answer.partition_id for answer in answers.values()}
    told = max(answer.num_partitions for answer in answers.values())
    return len(partitions) == len(answers) and partitions <= set(range(told))


def simulated(answers: Answers) -> bool:
    """Whether all nodes are Flower's simulated ones."""
    return all(answer.capacity for answer in answers.values())


class Seating:
    """Gives nodes their places.

    Parameters
    ----------
    streams : StreamServer | None
        The port that nodes must reach for the stream exchange; None: no node streams.
    insists : bool
        Whether the run-config insists on streams.
    """

    def __init__(self, streams: StreamServer | None, *, insists: bool) -> None:
        self._streams, self._insists = streams, insists

    def seat(self, answers: Answers, clients: int, places: int, base: int, absent: str) -> list[Member]:
        """Spread the clients over the places, the nodes' own partitions where they have some.

        Parameters
        ----------
        answers : Answers
            The nodes that are there.
        clients : int
            How many there are.
        places : int
            How many nodes there should be.
        base : int
            The round whose end the clients' states are from.
        absent : str
            Why nobody is in the places that stay empty.
        """
        by_number = numbered(answers)
        parts = spread(clients, places if by_number else len(answers))
        keys = [answer.partition_id for answer in answers.values()] if by_number else range(len(answers))
        seated = dict(zip(keys, answers.items(), strict=True))
        members = []
        for place, hosted in enumerate(parts):
            if not hosted:
                continue
            member = Member(hosted, partition=place if by_number else -1, base=base, away=absent)
            if place in seated:
                self.take_place(member, *seated[place])
            members.append(member)
        self._choose_exchange([member for member in members if not member.away], answers)
        _say_gpus(list(answers.values()))
        return members

    def take_place(self, member: Member, node: int, answer: HelloAnswer) -> None:
        """A node takes a place.

        Raises
        ------
        UserError
            If the run-config insists on streams and it cannot have one.
        """
        member.node, member.name, member.away = node, printable(answer.name), ""
        if self._streams is None:
            return  # the exchange is the grid, or the method has none
        member.streams = not answer.blocked
        memory = self._streams.memory
        member.memory = memory is not None and memory.accepts(answer.memory)
        if not member.streams and self._insists:
            reason = f"{member} cannot open a stream ({printable(answer.blocked)})"
            raise _insisted(reason, "open the stream's port to the nodes")

    def _choose_exchange(self, here: Sequence[Member], answers: Answers) -> None:
        """Say once in the log why nodes do not use streams.

        Raises
        ------
        UserError
            If the run-config insists on streams and a node cannot have one.
        """
        if self._streams is None:
            return
        capacity = min([MAX_STREAMS, *(answer.capacity for answer in answers.values() if answer.capacity)])
        blocked = [member for member in here if not member.streams]
        if len(here) > capacity:
            # A stream holds its node's worker for the whole round: the nodes waiting for one would never come.
            reason = f"{len(here)} nodes take part but only {capacity} can run at the same time"
            for member in here:
                member.streams = False
        elif blocked:
            node = blocked[0].node
            reason = f"{len(blocked)} of {len(here)} node(s) cannot open a stream (node {node}: "
            reason += f"{printable(answers[node].blocked)})"
        else:
            return
        if self._insists:
            raise _insisted(reason, "use fewer nodes with more clients each")
        log.warning("exchange auto: %s, so the grid exchange is used there", reason)


def _insisted(reason: str, advice: str) -> UserError:
    return UserError(f"run-config key exchange = 'stream': {reason}; {advice}, or use exchange auto or grid")


def _say_gpus(answers: Sequence[HelloAnswer]) -> None:
    """Say once in the log which GPUs Ray has set aside for the nodes, and whether torch can use them."""
    asked = Counter(printable(gpu) for answer in answers for gpu in answer.gpus)
    if not asked:
        return
    log.info("GPUs set aside: %s", ", ".join(f"{gpu} for {count} node(s)" for gpu, count in sorted(asked.items())))
    if any(answer.gpus and answer.device == "cpu" for answer in answers):
        log.warning("torch can use no GPU there: the nodes compute on the CPU")
