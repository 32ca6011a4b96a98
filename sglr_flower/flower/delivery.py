"""Flower messages on their way: what was sent to nodes, what is read in their replies, and why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from sglr_flower.errors import UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.federation import internals as flower
from sglr_flower.flower.protocol import ANSWER, ProtocolError, Refusal
from sglr_flower.run.nodetable import printable

Answer = TypeVar("Answer")
Read = Callable[[int, Message], Answer]
"""Reads what it needs in the reply of a node; raises `ProtocolError` if the reply does not have it."""


@dataclass(frozen=True)
class Failure:
    """Why a node did not do what a message asked.

    Attributes
    ----------
    reason : str
        A sentence, in the node's own words where it has some.
    mistake : bool
        It is a user's mistake (`UserError` on the node).
    gone : bool
        Flower has no sign of life of the node.
    nonsense : bool
        It has answered, and not what the protocol has.
    name : str
        What the node calls itself, where it has said so.
    """

    reason: str
    mistake: bool = False
    gone: bool = False
    nonsense: bool = False
    name: str = ""

    @classmethod
    def odd(cls, error: ProtocolError) -> Failure:
        """It sent what it should not have sent."""
        return cls(printable(str(error)), nonsense=True)

    def error(self, name: str) -> Exception:
        """What ends a run that cannot go on without this node."""
        return UserError(f"{name}: {self.reason}") if self.mistake else ExchangeError(f"{name} failed: {self.reason}")

    def called(self, node: int) -> str:
        """The node in a sentence, before it has a place in the run."""
        return f"node {self.name} ({node})" if self.name else f"node {node}"


class Pending(Generic[Answer]):
    """Messages sent, whose replies are pulled.

    Parameters
    ----------
    grid : Grid
        Carries them.
    read : Read[Answer]
        Reads a reply.

    Attributes
    ----------
    replies : dict[int, Answer]
        Node -> what was read in its reply, of those that did what they were asked.
    failures : dict[int, Failure]
        Node -> why there is none.
    """

    def __init__(self, grid: Grid, read: Read[Answer]) -> None:
        self._grid, self._read = grid, read
        self._nodes: dict[str, int] = {}
        self._told: set[int] = set()
        self.replies: dict[int, Answer] = {}
        self.failures: dict[int, Failure] = {}

    @property
    def open(self) -> set[int]:
        """The nodes that have not replied."""
        return set(self._nodes.values())

    def push(self, messages: list[Message]) -> None:
        """Send; a node whose message Flower does not take has failed: Flower says so only by a missing id."""
        if not messages:
            return
        ids: list[str | None] = list(self._grid.push_messages(messages))
        if len(ids) != len(messages):
            ids = [None] * len(messages)
        for message, number in zip(messages, ids, strict=True):
            node = message.metadata.dst_node_id
            if number:
                self._nodes[number] = node
            else:
                self.failures[node] = Failure(
                    "Flower did not take its message: it is gone, or the message is too large"
                )

    def poll(self) -> None:
        """Pull what is there."""
        if not self._nodes:
            return
        for reply in self._grid.pull_messages(set(self._nodes)):
            # An error that Flower itself replies with does not always name the node.
            node = self._nodes.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            try:
                answer = self._read(node, _willing(reply))
            except _Refused as refused:
                self.failures[node] = refused.failure
            except ProtocolError as error:
                self.failures[node] = Failure.odd(error)
            else:
                self.replies[node] = answer

    def forget(self, node: int) -> None:
        """Do not wait for a node any more."""
        self._nodes = {number: other for number, other in self._nodes.items() if other != node}

    def fresh(self) -> dict[int, Failure]:
        """The failures since this was last asked."""
        found = {node: failure for node, failure in self.failures.items() if node not in self._told}
        self._told |= found.keys()
        return found

    def wait(self, timeout: float, watch: Callable[[], None] = lambda: None) -> None:
        """Poll until every node has replied or failed, at most ``timeout`` seconds; who is later has failed.

        ``watch`` is called after every look; what it raises ends the waiting.
        """
        deadline = time.monotonic() + timeout
        pause = 0.02  # in a simulation a look costs nothing; over a network it is a request, so they get rarer
        while self._nodes:
            self.poll()
            if self._nodes and time.monotonic() > deadline:
                self.failures |= dict.fromkeys(self.open, Failure(f"no reply within {timeout:g} s"))
                self._nodes.clear()
            watch()
            if self._nodes:
                time.sleep(pause)
                pause = min(0.25, 1.1 * pause)


class _Refused(Exception):
    """A reply that says why the node does not do what it was asked."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def _willing(reply: Message) -> Message:
    """The reply, if it is one to be read."""
    if reply.has_error():
        raise _Refused(_failure(reply))
    if not reply.has_content() or ANSWER not in reply.content.config_records:
        raise ProtocolError("its reply is not one of this app's")
    if "error" in (answer := reply.content.config_records[ANSWER]):
        refusal = Refusal.from_record(answer)
        raise _Refused(Failure(printable(refusal.error), mistake=True, name=printable(refusal.name or "")))
    return reply


def _failure(reply: Message) -> Failure:
    if reply.error.code == flower.node_unavailable():
        return Failure("it is not there: Flower has no sign of life of it", gone=True)
    # The last line of what may be a whole traceback; the rest is in the log. Flower puts its own words around it.
    lines = [line for line in (reply.error.reason or "").splitlines() if line.strip()] or ["it gave no reason"]
    said = lines[-1].strip().removesuffix("'>")
    return Failure(printable(said.rpartition(flower.CLIENT_RAISED)[2]))
