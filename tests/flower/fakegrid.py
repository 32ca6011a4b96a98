"""A grid in this process: its nodes run this package's own handlers, and what they answer can be changed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict

from sglr_flower.flower import node

HANDLERS = {
    "query.hello": node.hello,
    "query.assign": node.assign,
    "query.collect": node.collect,
    "train.grid": node.train_grid,
    "train.local": node.train_local,
    "evaluate.grid": node.evaluate_grid,
}
Change = Callable[[RecordDict], RecordDict | Error | None]
"""Makes another content of a node's right one, or an error, or no answer at all."""


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Device:
    """One node of the grid.

    Attributes
    ----------
    changes : dict[str, Change]
        Message type -> what is done to the node's answers.
    """

    def __init__(self, number: int, config: dict[str, str | int], state_dir: Path) -> None:
        self.number = number
        self.context = Context(1, number, {"state-dir": str(state_dir), **config}, RecordDict(), {})
        self.changes: dict[str, Change] = {}

    def answer(self, message: Message) -> Message | None:
        kind = message.metadata.message_type
        try:
            reply = HANDLERS[kind](message, self.context)
        except Exception as error:  # Flower sends the text of whatever a ClientApp raises
            return Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)
        if kind not in self.changes:
            return reply
        changed = self.changes[kind](reply.content)
        return None if changed is None else Message(changed, reply_to=message)


class FakeGrid:
    """What the server's side uses of Flower's `Grid`.

    Attributes
    ----------
    devices : dict[int, Device]
        The nodes that are listed.
    asked : Counter[tuple[int, str]]
        (node, message type) -> how often it was asked.
    sent : list[Message]
        All messages.
    refuses : bool
        Whether it takes no messages.
    """

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices = {device.number: device for device in devices}
        self.asked: Counter[tuple[int, str]] = Counter()
        self.sent: list[Message] = []
        self.refuses = False
        self._replies: dict[str, Message | None] = {}
        self._ids = itertools.count(1)

    def get_node_ids(self) -> list[int]:
        return list(self.devices)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [] if self.refuses else [self._push(message) for message in messages]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        found = [self._replies.pop(number) for number in list(ids) if self._replies.get(number) is not None]
        return [reply for reply in found if reply is not None]

    def _push(self, message: Message) -> str:
        number = str(next(self._ids))
        message.metadata.__dict__["_message_id"] = number
        to = message.metadata.dst_node_id
        self.asked[to, message.metadata.message_type] += 1
        self.sent.append(message)
        if to in self.devices:
            self._replies[number] = self.devices[to].answer(message)
        return number


def devices(root: Path, count: int = 2, *, numbered: bool = True) -> list[Device]:
    """Nodes 11, 12, ...; the last of them is partition 0."""
    made = []
    for place in range(count):
        config: dict[str, str | int] = {"name": f"device-{place}"}
        if numbered:
            config |= {"partition-id": count - 1 - place, "num-partitions": count}
        made.append(Device(11 + place, config, root / f"device-{place}"))
    return made
