"""A device's answers to the server, handler by handler, with Flower's own messages and contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from sglr_flower.flower import node
from sglr_flower.flower.protocol import ANSWER, ORDER
from sglr_flower.flower.protocol import CONFIG as CONFIG_RECORD
from sglr_flower.flower.staterecords import STATES, pack_states
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodestate import NodeStates

RUN_ID = "0" * 31 + "1"
CONFIG = RunConfig.parse({"num-clients": 2, "samples-per-client": 16, "evaluate": "server"})


def context(state_dir: Path) -> Context:
    return Context(1, 7, {"state-dir": str(state_dir), "name": "attic"}, RecordDict(), {})


def order(**changes: Any) -> dict[str, Any]:
    basis = {"clients": [0, 1], "run-id": RUN_ID, "session": 5, "versions": [5, 5]}
    return {**basis, "checkpoints": [5, 3], "threads": 0, **changes}


def ask(own: Context, record: dict[str, Any], states: dict[int, dict[str, Tensor]] | None = None) -> ConfigRecord:
    content = RecordDict({ORDER: ConfigRecord(record), CONFIG_RECORD: ConfigRecord({**CONFIG.values()})})
    if states is not None:
        content[STATES] = pack_states(states)
    message = Message(content, 7, "query.assign")
    message.metadata.__dict__["_message_id"] = "1"
    return node.assign(message, own).content.config_records[ANSWER]


def states(value: float) -> dict[int, dict[str, Tensor]]:
    cohort = assembly.cohort(CONFIG, [0, 1])
    made = {client: cohort.state(client) for client in (0, 1)}
    return {
        client: {name: tensor.fill_(value) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        for client, state in made.items()
    }


def since(base: int) -> dict[int, int]:
    """The version that a round began with, the same for every client."""
    return dict.fromkeys(range(6), base)


def values(kept: NodeStates, base: int) -> list[float]:
    return [float(next(iter(state.values())).flatten()[0].detach()) for state in kept.at(since(base)).values()]


def test_a_resumed_device_goes_back_to_the_checkpoint_and_keeps_what_it_is_sent(tmp_path: Path) -> None:
    kept = NodeStates(tmp_path / RUN_ID)
    for version in (6, 7):  # rounds after the checkpoint, which do not count any more
        kept.commit(version, states(version), since(version - 1), [])
    answer = ask(context(tmp_path), order(sent=[5, 5]), states(5.0))
    assert answer["versions"] == [5, 5]
    assert values(kept, 9) == [5.0, 5.0]


def test_a_device_keeps_its_own_state_where_the_servers_is_older(tmp_path: Path) -> None:
    kept = NodeStates(tmp_path / RUN_ID)
    kept.commit(4, states(4.0), since(3), [])
    # The server could not reach it at its checkpoint of round 5, and has its states as after round 2.
    answer = ask(context(tmp_path), order(versions=[4, 4], sent=[2, 2]), states(2.0))
    assert answer["versions"] == [4, 4]
    assert values(kept, 5) == [4.0, 4.0]


def test_a_device_without_its_disk_takes_what_the_server_has(tmp_path: Path) -> None:
    answer = ask(context(tmp_path), order(versions=[4, 4], sent=[2, 2]), states(2.0))
    assert answer["versions"] == [2, 2]
    assert ask(context(tmp_path / "empty"), order())["versions"] == [0, 0]


def test_an_assignment_of_an_earlier_session_is_refused_also_by_another_process(tmp_path: Path) -> None:
    ask(context(tmp_path), order(session=5))
    with pytest.raises(Exception, match="an earlier session"):
        ask(context(tmp_path), order(session=4))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"versions": [5]}, "the server's order query.assign: versions = (5,): it should have 2 item(s), one for each"),
        ({"clients": [0, -1]}, "the server's order query.assign: clients[1] = -1: it should be greater than or equal"),
        ({"session": "5"}, "the server's order query.assign: session = '5': it should be a valid integer"),
        ({"colour": "red"}, "the server's order query.assign: unknown key 'colour'; its keys are threads, clients, "),
    ],
)
def test_an_order_of_another_version_is_refused_in_a_sentence(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    error = str(ask(context(tmp_path), order(**changes))["error"])
    assert error.startswith(sentence)
    assert error.endswith("(are server and node of the same version of sglr-flower?)")


def test_orders_without_what_belongs_to_them_are_refused_in_a_sentence(tmp_path: Path) -> None:
    own = context(tmp_path)
    for handler, kind, content, sentence in (
        (node.hello, "query.hello", RecordDict(), "the server's order query.hello: it has no record 'order'"),
        (node.assign, "query.assign", RecordDict({ORDER: ConfigRecord(order())}), "it has no record 'config'"),
        (node.train_stream, "train.stream", RecordDict({ORDER: ConfigRecord({"round": 0})}), "order train: "),
    ):
        message = Message(content, 7, kind)
        message.metadata.__dict__["_message_id"] = "1"
        assert sentence in str(handler(message, own).content.config_records[ANSWER]["error"])


def test_a_run_id_cannot_lead_out_of_the_state_folder(tmp_path: Path) -> None:
    answer = ask(context(tmp_path), order(**{"run-id": "../../etc"}))
    assert "as the run's id" in str(answer["error"])
