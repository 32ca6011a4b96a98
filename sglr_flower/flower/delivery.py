"""Flower messages on their way: what was sent to nodes, their replies, and what is read from these."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from sglr_flower.errors import UserError
from sglr_flower.exchange.checks import FrameCheck
from sglr_flower.exchange.grid import GridLink
from sglr_flower.exchange.link import Traffic
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.federation import internals as flower
from sglr_flower.flower.node import ANSWER, ORDER
from sglr_flower.run.nodetable import printable
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.rounds import Link, RoundResult
from sglr_flower.split.sent import Sent, total

Leave = Callable[[int, "Failure"], None]
"""Told a node that failed, and why; raises if things cannot go on without it."""


class RoundLink:
    """Several links as one: the nodes on streams and those on the grid exchange in the same round.

    Parameters
    ----------
    links : Mapping[Link, set[int]]
        Link -> its nodes.
    on_uploads : Callable[[Mapping[int, Upload]], None]
        Told what every `receive` brought, before it is used.
    """

    def __init__(self, links: Mapping[Link, set[int]], on_uploads: Callable[[Mapping[int, Upload]], None]) -> None:
        self._links, self._on_uploads = links, on_uploads
        self.replies: list[Message] = []

    @property
    def sent(self) -> Sent:
        """All uploads and downloads so far."""
        return total(link.sent for link in self._links)

    def receive(self) -> dict[int, Upload]:
        """The next uploads of all nodes."""
        uploads: dict[int, Upload] = {}
        for link in self._links:
            uploads |= link.receive()
        self._on_uploads(uploads)
        return uploads

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Answer them."""
        for link, nodes in self._links.items():
            link.send({node: download for node, download in downloads.items() if node in nodes})


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
    """

    reason: str
    mistake: bool = False
    gone: bool = False

    def error(self, name: str) -> Exception:
        """What ends a run that cannot go on without this node."""
        return UserError(self.reason) if self.mistake else ExchangeError(f"{name} failed: {self.reason}")


class Pending:
    """Messages sent, whose replies are pulled.

    Parameters
    ----------
    grid : Grid
        Carries them.

    Attributes
    ----------
    replies : dict[int, Message]
        Node -> its reply, of those that did what they were asked.
    failures : dict[int, Failure]
        Node -> why there is none.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._nodes: dict[str, int] = {}
        self.replies: dict[int, Message] = {}
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
            node = self._nodes.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                self.failures[node] = _failure(reply)
            elif ANSWER not in reply.content.config_records:
                self.failures[node] = Failure("its reply is not one of this app's")
            elif error := reply.content.config_records[ANSWER].get("error"):
                self.failures[node] = Failure(printable(str(error)), mistake=True)
            else:
                self.replies[node] = reply

    def forget(self, node: int) -> None:
        """Do not wait for a node any more."""
        self._nodes = {number: other for number, other in self._nodes.items() if other != node}

    def wait(self, timeout: float) -> None:
        """Poll until every node has replied or failed, at most ``timeout`` seconds; who is later has failed."""
        deadline = time.monotonic() + timeout
        pause = 0.02  # in a simulation a look costs nothing; over a network it is a request, so they get rarer
        while self._nodes:
            self.poll()
            if self._nodes and time.monotonic() > deadline:
                self.failures |= dict.fromkeys(self.open, Failure(f"no reply within {timeout:g} s"))
                self._nodes.clear()
            if self._nodes:
                time.sleep(pause)
                pause = min(0.25, 1.1 * pause)


class Courier:
    """Takes messages to nodes and opens rounds on them, over a stream where the message is of that kind.

    Parameters
    ----------
    grid : Grid
        Carries messages.
    streams : StreamServer | None
        The port for streams, where there is one.
    step_timeout, start_timeout : float
        Seconds for a node's next frame, and for its first one.
    """

    def __init__(self, grid: Grid, streams: StreamServer | None, step_timeout: float, start_timeout: float) -> None:
        self._grid, self._streams = grid, streams
        self._step_timeout, self._start_timeout = step_timeout, start_timeout
        # A reply is a Flower message and takes seconds on a device, however short a step is.
        self._reply_timeout = step_timeout + start_timeout

    def deliver(self, messages: list[Message], leave: Leave, timeout: float) -> dict[int, Message]:
        """Send messages and wait for all replies; node -> reply, of those that did what they were asked.

        ``leave`` is told of the others; what it raises ends the waiting.
        """
        pending = Pending(self._grid)
        pending.push(messages)
        pending.wait(timeout)
        for node, failure in pending.failures.items():
            leave(node, failure)
        return pending.replies

    @contextmanager
    def round(
        self,
        messages: Iterable[Message],
        checks: Mapping[int, FrameCheck],
        leave: Leave,
        watch: Callable[[Mapping[int, Traffic]], None] = lambda traffic: None,
        on_uploads: Callable[[Mapping[int, Upload]], None] = lambda uploads: None,
        sharing_memory: Collection[int] = (),
    ) -> Iterator[RoundLink]:
        """Open a round on the nodes that the messages are for; at its end all that are still in it have replied.

        Parameters
        ----------
        messages : Iterable[Message]
            One for each node; its type ends in ``.stream`` or ``.grid``.
        checks : Mapping[int, FrameCheck]
            Node -> what its frames have to be.
        leave : Leave
            Told a node that leaves the round; may raise to end it.
        watch : Callable[[Mapping[int, Traffic]], None]
            Given what counts the nodes' traffic, at the beginning.
        on_uploads : Callable[[Mapping[int, Upload]], None]
            Told what every `RoundLink.receive` brings.
        sharing_memory : Collection[int]
            Nodes that share memory with this process.
        """
        opening = {message.metadata.dst_node_id: message for message in messages}
        kinds = {node: message.metadata.message_type.rpartition(".")[2] for node, message in opening.items()}
        streaming = {node: message for node, message in opening.items() if kinds[node] == "stream"}
        on_grid = {node: message for node, message in opening.items() if kinds[node] == "grid"}
        pending, failed, gone = Pending(self._grid), dict[int, Failure](), set[int]()

        def failures() -> dict[int, str]:
            pending.poll()
            return {node: failure.reason for node, failure in pending.failures.items()}

        def on_drop(node: int, reason: str) -> None:
            gone.add(node)
            pending.forget(node)
            leave(node, pending.failures.get(node) or failed.get(node) or Failure(reason))

        def deliver(batch: list[Message]) -> tuple[dict[int, Message], dict[int, str]]:
            step = Pending(self._grid)
            step.push(batch)
            step.wait(self._reply_timeout)
            failed.update(step.failures)
            return step.replies, {node: failure.reason for node, failure in step.failures.items()}

        grid = GridLink(on_grid, deliver, checks, on_drop)
        watch(grid.traffic)
        links: dict[Link, set[int]] = {grid: set(on_grid)}
        with ExitStack() as stack:
            if streaming:
                assert self._streams is not None
                stream = stack.enter_context(
                    self._streams.open(
                        {node: checks[node] for node in streaming},
                        timeout=self._step_timeout,
                        start_timeout=self._start_timeout,
                        on_drop=on_drop,
                        failures=failures,
                        sharing_memory=sharing_memory,
                    )
                )
                watch(stream.traffic)
                links[stream] = set(streaming)
                for node, secret in stream.secrets.items():
                    order = streaming[node].content.config_records[ORDER]
                    order.update(address=self._streams.address, tls=self._streams.tls, secret=secret)
                    order["memory"] = node in sharing_memory
                pending.push(list(streaming.values()))
            link = RoundLink(links, on_uploads)
            yield link
            pending.wait(self._reply_timeout)
            for node, failure in pending.failures.items():
                if node not in gone:
                    leave(node, failure)
        link.replies = [reply for node, reply in pending.replies.items() if node not in gone]
        link.replies += grid.replies.values()


def _failure(reply: Message) -> Failure:
    if reply.error.code == flower.node_unavailable():
        return Failure("it is not there: Flower has no sign of life of it", gone=True)
    # The last line of what may be a whole traceback; the rest is in the log. Flower puts its own words around it.
    lines = [line for line in (reply.error.reason or "").splitlines() if line.strip()] or ["it gave no reason"]
    said = lines[-1].strip().removesuffix("'>")
    return Failure(printable(said.rpartition(flower.CLIENT_RAISED)[2]))


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
    """Bytes of the segments in a message, with what Flower's records add to their tensors."""
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
