"""What a run records of its nodes: a row of ``nodes.csv`` per node and attempt of a round, and who left how often."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypedDict, cast, get_args

from sglr_flower.run.summary import Departures

NodeState = Literal["finished", "given up", "dropped", "away"]
"""How an attempt of a round ended for a node: it was there to the end, or until the attempt was given up; it left
before; or it was not there at the beginning."""

REMAINED = ("finished", "given up")
"""States of a node that was there for all of the attempt."""

GONE = ("dropped", "away")
"""States of a node that is not there."""

LONGEST_TEXT = 300
"""Characters that are kept of a text that came from a node."""


class NodeEntry(TypedDict):
    """A node in ``status.json``'s ``node_table``, while its round is under way.

    As a row of ``nodes.csv``, but ``state`` may also be ``training`` or ``returning``, ``step`` counts the frames that
    were used so far, and ``latency`` is the median wait for one in seconds, None before the first.
    """

    node: int
    name: str
    clients: str
    state: str
    step: int
    latency: float | None
    bytes_up: int
    bytes_down: int
    reason: str


@dataclass(frozen=True)
class NodeRow:
    """A row of ``nodes.csv``.

    Attributes
    ----------
    round, attempt : int
        The round, and which training of it, both from 1.
    node : int
        Flower's id of the node.
    name : str
        The node's own name; empty where it has none.
    clients : tuple[int, ...]
        Those of the round's clients that it hosts, ascending.
    state : NodeState
        How it ended the attempt.
    steps : int
        Frames of the node that the server used; a node dropped at step k (from 0) has k.
    latency_median : float | None
        Median seconds from the server's answer, or the round's opening, to the node's next frame; None without frames.
    bytes_up, bytes_down : int
        What the node sent, and was sent.
    reason : str
        One sentence saying why it left; empty if it did not.
    """

    round: int
    attempt: int
    node: int
    name: str
    clients: tuple[int, ...]
    state: NodeState
    steps: int
    latency_median: float | None
    bytes_up: int
    bytes_down: int
    reason: str = ""


NODE_COLUMNS = tuple(column.name for column in fields(NodeRow))


def to_csv(rows: Iterable[NodeRow], *, header: bool) -> str:
    """Rows as CSV text; a list of clients is its numbers with spaces between, a missing latency is empty.

    Node names and reasons come from the nodes: what would move a terminal's cursor does not get into the file.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, NODE_COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        values = {"clients": " ".join(map(str, row.clients)), "name": printable(row.name)}
        writer.writerow({**asdict(row), **values, "reason": printable(row.reason)})
    return text.getvalue()


def from_csv(text: str) -> list[NodeRow]:
    """Inverse of `to_csv` with a header; a row that is damaged (the machine died while it was written) is left out."""
    rows = []
    for values in csv.DictReader(io.StringIO(text)):
        try:
            rows.append(_row(values))
        except (KeyError, TypeError, ValueError):  # a column is missing, its value is None, or is not a number
            continue
    return rows


def departures(rows: Sequence[NodeRow]) -> Departures:
    """How often nodes left, and how many of them.

    A node that stays away for many rounds left once. Nodes are told apart by their names, as one that is started
    again without a key of its own gets another id; those without a name by their ids; and places that no node has
    come to yet, whose id is 0, by their clients.

    Parameters
    ----------
    rows : Sequence[NodeRow]
        In the order in which they were recorded.
    """
    count: dict[str, int] = {}
    before: dict[str, str] = {}
    for row in rows:
        who = row.name or str(row.node or row.clients)
        if row.state == "dropped" or (row.state == "away" and before.get(who) not in GONE):
            count[who] = count.get(who, 0) + 1
        before[who] = row.state
    return Departures(sum(count.values()), len(count))


def printable(text: str) -> str:
    """One line of characters that can be printed, cut to a length: white space is a space, control characters go."""
    line = " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"


def _row(values: dict[str, str]) -> NodeRow:
    state, latency = values["state"], values["latency_median"]
    if state not in get_args(NodeState) or values["reason"] is None:
        raise ValueError(state)
    return NodeRow(
        round=int(values["round"]),
        attempt=int(values["attempt"]),
        node=int(values["node"]),
        name=values["name"],
        clients=tuple(int(client) for client in values["clients"].split()),
        state=cast(NodeState, state),
        steps=int(values["steps"]),
        latency_median=float(latency) if latency else None,
        bytes_up=int(values["bytes_up"]),
        bytes_down=int(values["bytes_down"]),
        reason=values["reason"],
    )
