"""Flower messages on their way: what was sent to nodes, their replies, and what is read from these."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from sglr_flower.errors import UserError
from sglr_flower.exchange.stream import ExchangeError
from sglr_flower.node import ANSWER
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.rounds import Link, RoundResult


class RoundLink:
    """Several links as one: the nodes on streams and those on the grid exchange in the same round."""

    def __init__(self, links: Mapping[Link, set[int]]) -> None:
        self._links = links
        self.replies: list[Message] = []

    @property
    def bytes_up(self) -> int:
        """Bytes of all uploads so far."""
        return sum(link.bytes_up for link in self._links)

    @property
    def bytes_down(self) -> int:
        """Bytes of all downloads so far."""
        return sum(link.bytes_down for link in self._links)

    def receive(self) -> dict[int, Upload]:
        """The next uploads of all nodes."""
        uploads: dict[int, Upload] = {}
        for link in self._links:
            uploads |= link.receive()
        return uploads

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Answer them."""
        for link, nodes in self._links.items():
            link.send({node: download for node, download in downloads.items() if node in nodes})


class Pending:
    """Messages sent, whose replies are pulled until all are here; a node's error ends the waiting.

    Parameters
    ----------
    grid : Grid
        Carries them.
    forgive_absence : bool
        Whether a node that is not there is passed over instead.
    """

    def __init__(self, grid: Grid, *, forgive_absence: bool = False) -> None:
        self._grid = grid
        self._forgive_absence = forgive_absence
        self._ids: set[str] = set()
        self._replies: dict[int, Message] = {}

    def push(self, messages: list[Message]) -> None:
        """Send.

        Raises
        ------
        ExchangeError
            If Flower does not take every message: it says so only by a missing id, and the round would go on without.
        """
        ids = list(self._grid.push_messages(messages))
        if len(ids) != len(messages) or not all(ids):
            nodes = ", ".join(str(message.metadata.dst_node_id) for message in messages)
            raise ExchangeError(
                f"Flower did not take all messages for node(s) {nodes}: one is gone, or one is too large"
            )
        self._ids |= set(ids)

    def raise_failures(self) -> None:
        """Pull what is there.

        Raises
        ------
        UserError, ExchangeError
            If a node replied with an error, in the node's own words.
        """
        for reply in self._grid.pull_messages(self._ids):
            self._ids.discard(reply.metadata.reply_to_message_id)
            node = reply.metadata.src_node_id
            if reply.has_error():
                if self._forgive_absence and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                    continue
                # The last line of what may be a whole traceback; the rest is in the log.
                lines = [line for line in (reply.error.reason or "no reason").splitlines() if line.strip()]
                raise ExchangeError(f"node {node} failed: {lines[-1].strip()}")
            if error := reply.content.config_records[ANSWER].get("error"):
                raise UserError(str(error))
            self._replies[node] = reply

    def wait(self, timeout: float) -> dict[int, Message]:
        """All replies, node -> reply.

        Raises
        ------
        UserError, ExchangeError
            If a node fails or the timeout (seconds) passes.
        """
        deadline = time.monotonic() + timeout
        pause = 0.02  # in a simulation a look costs nothing; over a network it is a request, so they get rarer
        while self._ids:
            self.raise_failures()
            if self._ids and time.monotonic() > deadline:
                raise ExchangeError(f"{len(self._ids)} node(s) did not reply within {timeout:g} s")
            if self._ids:
                time.sleep(pause)
                pause = min(0.5, 1.1 * pause)
        return self._replies


def sum_metrics(replies: Iterable[Message]) -> MetricRecord:
    """Add up the nodes' metrics, key by key."""
    total: dict[str, int | float | list[int] | list[float]] = {}
    for reply in replies:
        for record in reply.content.metric_records.values():
            for name, value in record.items():
                if name.startswith("local-"):
                    continue  # a mean or a median of one node
                before = total.get(name, 0)
                assert isinstance(value, int | float)
                assert isinstance(before, int | float)
                total[name] = before + value
    return MetricRecord(total)


def array_bytes(message: Message) -> int:
    """Bytes of the segments in a message."""
    return sum(record.count_bytes() for record in message.content.array_records.values())


def local_result(reply: Message) -> RoundResult:
    """What a node that trained by itself says of it."""
    metrics = reply.content.metric_records["metrics"]
    values: dict[str, Any] = {
        name.removeprefix("local-"): value for name, value in metrics.items() if name.startswith("local-")
    }
    return RoundResult(**values)


def integer(answer: ConfigRecord, key: str) -> int:
    """An integer out of a record."""
    value = answer[key]
    assert isinstance(value, int)
    return value
