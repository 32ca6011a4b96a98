"""The grid link: the same frames, checks and drops as over a stream, in Flower messages."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from rounds import answer_to, changed, train_check, train_session
from streaming import Drops

from sglr_flower.exchange.frames import FrameError
from sglr_flower.exchange.grid import FRAME, GridLink, get_download, put_upload
from sglr_flower.split.rounds import TrainSession


@pytest.fixture(autouse=True)
def inside_a_server_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can be made in a ServerApp only, which knows its run."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def opening(node: int) -> Message:
    content = RecordDict({"order": ConfigRecord({"round": 3}), "arrays": ArrayRecord()})
    return Message(content, node, "train.grid")


class Nodes:
    """Delivers messages to sessions in this process, or says why not."""

    def __init__(self, sessions: dict[int, TrainSession]) -> None:
        self.sessions = sessions
        self.failing: dict[int, str] = {}
        self.messages: list[Message] = []

    def deliver(self, messages: list[Message]) -> tuple[dict[int, Message], dict[int, str]]:
        self.messages += messages
        replies, failed = {}, {}
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.failing:
                failed[node] = self.failing[node]
            else:
                replies[node] = Message(self.reply(node, message), node, "train.grid")
        return replies, failed

    def reply(self, node: int, message: Message) -> RecordDict:
        content, session = RecordDict(), self.sessions[node]
        download = get_download(message.content)
        put_upload(content, session.start() if download is None else session.advance(download))
        return content


def link_of(nodes: Nodes, drops: Drops) -> GridLink:
    messages = {node: opening(node) for node in nodes.sessions}
    return GridLink(messages, nodes.deliver, {node: train_check() for node in messages}, drops)


def steps(link: GridLink) -> int:
    count = 0
    while uploads := link.receive():
        link.send({node: answer_to(upload) for node, upload in uploads.items()})
        count += 1
    return count


def test_a_round_to_its_end() -> None:
    nodes, drops = Nodes({11: train_session(), 22: train_session()}), Drops()
    link = link_of(nodes, drops)
    assert steps(link) == 6
    assert not drops
    assert set(link.replies) == {11, 22}
    assert link.traffic[11].frames == 6
    assert len(link.traffic[11].waits) == 7
    assert link.sent.up == 2 * link.traffic[22].sent.up > 0
    assert link.sent.down > 0
    # What only the first message brings is not sent again.
    assert ["arrays" in message.content for message in nodes.messages] == [True] * 2 + [False] * 12


def test_a_node_that_does_not_reply_is_dropped_and_the_others_go_on() -> None:
    nodes, drops = Nodes({11: train_session(), 22: train_session()}), Drops()
    link = link_of(nodes, drops)
    link.send({node: answer_to(upload) for node, upload in link.receive().items()})
    nodes.failing[11] = "node unavailable"
    assert steps(link) == 5
    assert drops == {11: "node unavailable"}
    assert link.traffic[11].frames == 1
    assert set(link.replies) == {22}
    assert sum(message.metadata.dst_node_id == 11 for message in nodes.messages) == 2


@pytest.mark.parametrize("wrong", ["frame", "labels", "no frame", "no bytes", "no upload"])
def test_a_node_that_sends_rubbish_is_dropped(wrong: str) -> None:
    class Rubbish(Nodes):
        def reply(self, node: int, message: Message) -> RecordDict:
            content = super().reply(node, message)
            if node == 11 and get_download(message.content) is not None:
                if wrong == "labels":
                    bad = train_session().start()
                    put_upload(content, changed(bad, step=1, labels=bad.labels - 9))
                elif wrong == "no frame":
                    del content[FRAME]
                else:
                    values = {"frame": b"rubbish", "no bytes": "rubbish", "no upload": b""}
                    key = "other" if wrong == "no upload" else "upload"
                    content[FRAME] = ConfigRecord({key: values[wrong]})
            return content

    nodes, drops = Rubbish({11: train_session(), 22: train_session()}), Drops()
    link = link_of(nodes, drops)
    assert steps(link) == 6
    assert list(drops) == [11]
    assert link.traffic[11].frames == 1
    assert set(link.replies) == {22}


def test_what_on_drop_raises_ends_the_round() -> None:
    def end(node: int, reason: str) -> None:
        raise RuntimeError(f"{node}: {reason}")

    nodes = Nodes({11: train_session()})
    nodes.failing[11] = "gone"
    link = GridLink({11: opening(11)}, nodes.deliver, {11: train_check()}, end)
    with pytest.raises(RuntimeError, match="11: gone"):
        link.receive()


def test_a_node_refuses_a_message_whose_frame_is_none() -> None:
    with pytest.raises(FrameError, match="no bytes named download"):
        get_download(RecordDict({FRAME: ConfigRecord({"upload": b""})}))
    with pytest.raises(FrameError, match="no download"):
        get_download(RecordDict({FRAME: ConfigRecord({"download": b"rubbish"})}))
