"""What becomes of a message to a node: its reply is read, or it has failed, and why; rounds over messages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from exchange.rounds import answer_to, train_check, train_session
from flower.fakegrid import Clock
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from sglr_flower.exchange import grid as steps
from sglr_flower.federation import internals
from sglr_flower.flower.courier import Courier
from sglr_flower.flower.delivery import Failure, Pending
from sglr_flower.flower.protocol import ANSWER, METRICS, EvaluateMetrics, ProtocolError, Refusal

Reply = Callable[[Message], Message | None]


class Post:
    """As Flower's `Grid`: what it is given it answers by a function of each node's."""

    def __init__(self, nodes: dict[int, Reply]) -> None:
        self.nodes, self.replies, self.number = nodes, dict[str, Message | None](), 0
        self.stray: list[Message] = []

    def push_messages(self, messages: list[Message]) -> list[str]:
        ids = []
        for message in messages:
            self.number += 1
            message.metadata.__dict__["_message_id"] = str(self.number)
            node = message.metadata.dst_node_id
            self.replies[str(self.number)] = self.nodes[node](message) if node in self.nodes else None
            ids.append(str(self.number) if node in self.nodes else "")
        return ids

    def pull_messages(self, ids: set[str]) -> list[Message]:
        found = [reply for number in sorted(ids) if (reply := self.replies.pop(number, None)) is not None]
        return found + found[:1] + self.stray  # one twice


def message(node: int, kind: str = "query.hello") -> Message:
    return Message(RecordDict(), node, kind)


def saying(content: RecordDict | Error) -> Reply:
    return lambda asked: Message(content, reply_to=asked)  # type: ignore[call-overload,no-any-return]


def read(node: int, reply: Message) -> int:
    return EvaluateMetrics.from_content(reply.content).num_clients


def metrics(clients: object) -> RecordDict:
    return RecordDict({ANSWER: ConfigRecord(), METRICS: MetricRecord({"num-clients": clients})})  # type: ignore[dict-item]


REASONS: dict[str, tuple[Reply, Failure]] = {
    "late": (lambda asked: None, Failure("no reply within 60 s")),
    "unavailable": (
        saying(Error(internals.node_unavailable(), "")),
        Failure("it is not there: Flower has no sign of life of it", gone=True),
    ),
    "raised": (
        saying(Error(2, f"Trace\n  line 3\n{internals.CLIENT_RAISED}ValueError: no \x1bdata'>\n")),
        Failure("ValueError: no data"),
    ),
    "silent error": (saying(Error(2, "")), Failure("it gave no reason")),
    "refused": (saying(RecordDict({ANSWER: Refusal("its\nsentence").to_record()})), Failure("its sentence", True)),
    "refused by name": (
        saying(RecordDict({ANSWER: Refusal("its sentence", "attic").to_record()})),
        Failure("its sentence", True, name="attic"),
    ),
    "refused with more": (
        saying(RecordDict({ANSWER: ConfigRecord({"error": "x", "more": 1})})),
        Failure("its refusal: unknown key 'more'; its keys are error, name", nonsense=True),
    ),
    "another app's": (saying(RecordDict()), Failure("its reply is not one of this app's", nonsense=True)),
    "odd": (
        saying(metrics(-1)),
        Failure(
            "its metrics of the evaluation: num-clients = -1: it should be greater than or equal to 0", nonsense=True
        ),
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_why_there_is_no_reply(case: str, clock: Clock) -> None:
    reply, expected = REASONS[case]
    post = Post({1: reply, 2: saying(metrics(3))})
    pending = Pending(post, read)  # type: ignore[arg-type]
    pending.push([message(1), message(2), message(3)])
    assert pending.open == {1, 2}
    pending.wait(60.0)
    assert pending.replies == {2: 3}
    not_taken = Failure("Flower did not take its message: it is gone, or the message is too large")
    assert pending.failures == {1: expected, 3: not_taken}


def test_a_grid_that_takes_nothing(clock: Clock) -> None:
    post = Post({})
    post.push_messages = lambda messages: []  # type: ignore[method-assign,assignment]
    pending = Pending(post, read)  # type: ignore[arg-type]
    pending.push([message(1), message(2)])
    assert pending.failures.keys() == {1, 2}


def test_a_reply_to_nothing_is_not_used(clock: Clock) -> None:
    post = Post({1: saying(metrics(3))})
    asked = message(9)
    asked.metadata.__dict__["_message_id"] = "999"
    post.stray = [Message(metrics(5), reply_to=asked)]
    pending = Pending(post, read)  # type: ignore[arg-type]
    pending.push([message(1)])
    pending.wait(60.0)
    assert (pending.replies, pending.failures) == ({1: 3}, {})


class Trainer:
    """A node's side of a round over messages, which ends with some content."""

    def __init__(self, ending: RecordDict, spoilt_at: int = -1) -> None:
        self._session, self._ending, self._spoilt_at = train_session(), ending, spoilt_at
        self._step = -1

    def __call__(self, asked: Message) -> Message:
        self._step += 1
        download = steps.get_download(asked.content)
        upload = self._session.start() if download is None else self._session.advance(download)
        if upload is None:
            return Message(self._ending, reply_to=asked)
        content = RecordDict({ANSWER: ConfigRecord()})
        steps.put_upload(content, upload)
        if self._step == self._spoilt_at:
            content[steps.FRAME] = ConfigRecord({"upload": "no bytes"})
        return Message(content, reply_to=asked)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Trainer(metrics(2)), ""),
        (Trainer(metrics(-2)), "num-clients = -2"),
        (Trainer(RecordDict({ANSWER: ConfigRecord()})), "its metrics of the evaluation: it has no record 'metrics'"),
        (Trainer(metrics(2), spoilt_at=1), "the record frame has no bytes named upload"),
        (saying(Error(2, "killed")), "killed"),
        (saying(RecordDict()), "its reply is not one of this app's"),
    ],
    ids=["right", "odd metrics", "no metrics", "odd frame", "killed", "another app's"],
)
def test_a_round_over_messages_goes_on_without_who_leaves(node: Reply, reason: str, clock: Clock) -> None:
    left: dict[int, str] = {}
    courier = Courier(Post({1: Trainer(metrics(2)), 2: node}), None, 60.0, 60.0)  # type: ignore[arg-type]
    opening = [message(number, "train.grid") for number in (1, 2)]
    checks = {number: train_check() for number in (1, 2)}

    def leave(node: int, failure: Failure) -> None:
        left[node] = failure.reason

    with courier.round(opening, checks, read, leave) as link:
        while uploads := link.receive():
            link.send({number: answer_to(upload, ()) for number, upload in uploads.items()})
    assert link.replies == ({1: 2} if reason else {1: 2, 2: 2})
    assert list(left) == ([2] if reason else [])
    assert reason in left.get(2, "")


def test_what_leave_raises_ends_the_waiting(clock: Clock) -> None:
    courier = Courier(Post({1: saying(Error(2, "x"))}), None, 1.0, 1.0)  # type: ignore[arg-type]

    def leave(node: int, failure: Failure) -> None:
        raise ProtocolError(failure.reason)

    with pytest.raises(ProtocolError, match="x"):
        courier.deliver([message(1)], read, leave, 5.0)
