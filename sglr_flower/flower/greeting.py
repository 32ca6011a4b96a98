"""Asking nodes what they are, again and again where they do not say, but never in a tight loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from flwr.app import Message
from flwr.serverapp import Grid

from sglr_flower.flower.delivery import Failure, Pending
from sglr_flower.flower.protocol import HelloAnswer

log = logging.getLogger("flwr.sglr")
ASK_SECONDS = 15.0
"""How long a node is left alone that has failed to answer, or has said why it does not do what it was asked."""


class Greeter:
    """Asks nodes what they are.

    Parameters
    ----------
    grid : Grid
        Reaches them.
    hello : Callable[[int], Message]
        The question to a node.

    Attributes
    ----------
    answers : dict[int, HelloAnswer]
        Node -> what it is, of those that have said so.
    failures : dict[int, Failure]
        Node -> why it has not, the last time.
    """

    def __init__(self, grid: Grid, hello: Callable[[int], Message]) -> None:
        self._hello = hello
        self._again: dict[int, float] = {}
        self._pending = Pending(grid, lambda node, reply: HelloAnswer.from_content(reply.content))
        self.answers = self._pending.replies
        self.failures: dict[int, Failure] = {}

    @property
    def open(self) -> set[int]:
        """The nodes that have still to answer."""
        return self._pending.open

    def ask(self, nodes: Collection[int]) -> dict[int, Failure]:
        """Ask those of the nodes that are due, and hear those that have answered; those that have now failed."""
        now = time.monotonic()
        known = self._pending.open | self.answers.keys()
        due = [node for node in nodes if node not in known and now >= self._again.get(node, 0.0)]
        self._pending.push([self._hello(node) for node in due])
        self._pending.poll()
        failed = dict(self._pending.failures)
        self._pending.failures.clear()
        for node, failure in failed.items():
            # A node may be listed and yet be gone: it is asked as soon as it is back. Others would answer the same.
            self._again[node] = now + (0.0 if failure.gone else ASK_SECONDS)
            if failure != self.failures.get(node):
                log.warning("%s: %s", failure.called(node), failure.reason)
            self.failures[node] = failure
        for node in self.answers.keys() & self.failures.keys():
            del self.failures[node]
        return failed

    def forget(self, node: int) -> None:
        """Ask a node anew, should it have to be asked again: it has a place now."""
        self.answers.pop(node, None)
