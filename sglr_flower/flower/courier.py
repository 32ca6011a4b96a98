"""Rounds opened on nodes: over a stream where the opening message is of that kind, else a message for every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from sglr_flower.exchange.checks import FrameCheck
from sglr_flower.exchange.grid import GridLink
from sglr_flower.exchange.link import Traffic
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.flower.delivery import Failure, Pending, Read
from sglr_flower.flower.protocol import STREAM, Access, ProtocolError
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.rounds import Link
from sglr_flower.split.sent import Sent, total

Leave = Callable[[int, Failure], None]
"""Told a node that failed, and why; raises if things cannot go on without it."""
Answer = TypeVar("Answer")


class RoundLink(Generic[Answer]):
    """Several links as one: the nodes on streams and those on the grid exchange in the same round.

    Parameters
    ----------
    links : Mapping[Link, set[int]]
        Link -> its nodes.
    on_uploads : Callable[[Mapping[int, Upload]], None]
        Told what every `receive` brought, before it is used.

    Attributes
    ----------
    replies : dict[int, Answer]
        Node -> what it said at its end, of those that were in the round until then.
    """

    def __init__(self, links: Mapping[Link, set[int]], on_uploads: Callable[[Mapping[int, Upload]], None]) -> None:
        self._links, self._on_uploads = links, on_uploads
        self.replies: dict[int, Answer] = {}

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

    def deliver(self, messages: list[Message], read: Read[Answer], leave: Leave, timeout: float) -> dict[int, Answer]:
        """Send messages and wait for all replies; node -> what was read in its reply, of those that did as asked.

        ``leave`` is told of each of the others as soon as it fails; what it raises ends the waiting.
        """
        pending = Pending(self._grid, read)
        pending.push(messages)

        def look() -> None:
            for node, failure in pending.fresh().items():
                leave(node, failure)

        pending.wait(timeout, look)
        look()  # where nothing was sent there was nothing to wait for
        return pending.replies

    @contextmanager
    def round(
        self,
        messages: Iterable[Message],
        checks: Mapping[int, FrameCheck],
        read: Read[Answer],
        leave: Leave,
        watch: Callable[[Mapping[int, Traffic]], None] = lambda traffic: None,
        on_uploads: Callable[[Mapping[int, Upload]], None] = lambda uploads: None,
        sharing_memory: Collection[int] = (),
    ) -> Iterator[RoundLink[Answer]]:
        """Open a round on the nodes that the messages are for; at its end all that are still in it have replied.

        Parameters
        ----------
        messages : Iterable[Message]
            One for each node; its type ends in ``.stream`` or ``.grid``.
        checks : Mapping[int, FrameCheck]
            Node -> what its frames have to be.
        read : Read[Answer]
            Reads a node's last reply.
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
        pending, failed, gone = Pending(self._grid, read), dict[int, Failure](), set[int]()

        def failures() -> dict[int, str]:
            pending.poll()
            return {node: failure.reason for node, failure in pending.failures.items()}

        def on_drop(node: int, reason: str) -> None:
            gone.add(node)
            pending.forget(node)
            leave(node, pending.failures.get(node) or failed.get(node) or Failure(reason))

        def deliver(batch: list[Message]) -> tuple[dict[int, Message], dict[int, str]]:
            step = Pending(self._grid, lambda node, reply: reply)
            step.push(batch)
            step.wait(self._reply_timeout)
            failed.update(step.failures)
            return step.replies, {node: failure.reason for node, failure in step.failures.items()}

        grid = GridLink(on_grid, deliver, checks, on_drop)
        watch(grid.traffic)
        links: dict[Link, set[int]] = {grid: set(on_grid)}
        with ExitStack() as stack:
            if streaming and self._streams is not None:
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
                    access = Access(self._streams.address, self._streams.tls, secret, node in sharing_memory)
                    streaming[node].content[STREAM] = access.to_record()
                pending.push(list(streaming.values()))
            link = RoundLink[Answer](links, on_uploads)
            yield link
            pending.wait(self._reply_timeout)
            link.replies |= {node: answer for node, answer in pending.replies.items() if node not in gone}
            failures_at_end = {node: failure for node, failure in pending.failures.items() if node not in gone}
            for node, reply in grid.replies.items():
                try:
                    link.replies[node] = read(node, reply)
                except ProtocolError as error:
                    failures_at_end[node] = Failure.odd(error)
            for node, failure in failures_at_end.items():
                leave(node, failure)
