"""What a node keeps between two messages: versions of its clients' states in files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor

from sglr_flower.errors import UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.flower.staterecords import drop_step, keep_step, step_states
from sglr_flower.run.nodestate import NodeStates


def state(value: float) -> dict[str, Tensor]:
    return {"segment.w": torch.full((3,), value), "optimizer.0.step": torch.tensor(value)}


def since(base: int) -> dict[int, int]:
    """The version that a round began with, the same for every client."""
    return dict.fromkeys(range(6), base)


def value(states: dict[int, dict[str, Tensor]]) -> dict[int, float]:
    return {client: float(tensors["segment.w"][0]) for client, tensors in states.items()}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def test_a_client_has_its_newest_version_that_the_server_counts(tmp_path: Path) -> None:
    kept = NodeStates(tmp_path)
    kept.commit(1, {3: state(1), 4: state(10)}, since(0), [])
    kept.commit(2, {3: state(2)}, since(1), [])
    assert value(kept.at({3: 0, 4: 0})) == {}
    assert value(kept.at({3: 1, 4: 1})) == {3: 1.0, 4: 10.0}
    assert value(kept.at({4: 2})) == {4: 10.0}
    assert value(NodeStates(tmp_path).at({3: 7, 4: 7})) == {3: 2.0, 4: 10.0}  # another process


def test_old_versions_go_but_those_of_checkpoints_stay(tmp_path: Path) -> None:
    kept = NodeStates(tmp_path)
    for server_round in range(1, 8):
        kept.commit(server_round, {0: state(server_round)}, since(server_round - 1), [2, 4])
    # The newest, the one before it, and what was newest at each checkpoint.
    assert files(tmp_path) == [f"client-00000/round-000{number}.safetensors" for number in (2, 4, 6, 7)]
    kept.commit(9, {0: state(9)}, since(8), [8])
    assert files(tmp_path) == [f"client-00000/round-000{number}.safetensors" for number in (7, 9)]


def test_states_are_read_one_by_one_when_they_are_needed(tmp_path: Path) -> None:
    kept = NodeStates(tmp_path, durable=False)
    kept.commit(1, {0: state(1), 2: state(3)}, since(0), [])
    kept.commit(2, {0: state(2)}, since(1), [])
    later = kept.later({0: 1, 1: 2, 2: 2})
    assert list(later) == [0, 2]  # client 1 has not trained
    assert 1 not in later
    assert value(dict(later)) == {0: 1.0, 2: 3.0}
    kept.go_back({2: 0})
    assert len(later) == 2
    with pytest.raises(UserError, match="client-00002 has no state that can be read"):
        later[2]


def test_going_back_drops_what_is_newer(tmp_path: Path) -> None:
    kept = NodeStates(tmp_path)
    for server_round in (1, 2, 3):
        kept.commit(server_round, {0: state(server_round), 1: state(10 * server_round)}, since(server_round - 1), [])
    assert kept.go_back({0: 2, 1: 3}) == {0: 2, 1: 3}
    assert value(kept.at({0: 9, 1: 9})) == {0: 2.0, 1: 30.0}
    assert kept.go_back({0: 0, 1: 3}) == {0: 0, 1: 3}
    assert value(kept.at({0: 9, 1: 9})) == {1: 30.0}


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_version_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    kept = NodeStates(tmp_path)
    kept.commit(1, {0: state(1)}, since(0), [])
    kept.commit(2, {0: state(2)}, since(1), [])
    file = tmp_path / "client-00000" / "round-0002.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    file.write_bytes(bytes(content[:-9]) if damage == "truncate" else bytes(content))
    with caplog.at_level(logging.WARNING, "flwr.sglr"):
        assert value(kept.at({0: 2})) == {0: 1.0}
    assert str(file) in caplog.text


def test_an_older_session_of_the_run_may_not_undo_a_newer_ones_rounds(tmp_path: Path) -> None:
    kept = NodeStates(tmp_path / "run")
    kept.enter(100)
    kept.enter(100)
    kept.enter(200)
    with pytest.raises(ExchangeError, match="an earlier session"):
        kept.enter(100)


def test_a_folder_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = NodeStates(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"node-config key state-dir: .*file/run cannot be written"):
        kept.commit(1, {0: state(1)}, since(0), [])
    with pytest.raises(UserError, match="cannot be written"):
        kept.enter(1)


def test_what_the_server_does_not_count_is_not_what_a_round_goes_back_to(tmp_path: Path) -> None:
    # The node finished round 2 after the server had dropped it; round 3 begins from 1, and is trained again.
    kept = NodeStates(tmp_path)
    kept.commit(1, {5: state(1)}, since(0), [])
    kept.commit(2, {5: state(2)}, since(1), [])
    assert value(kept.at({5: 1})) == {5: 1.0}
    kept.commit(3, {5: state(3)}, since(1), [])
    assert value(kept.at({5: 1})) == {5: 1.0}
    assert value(kept.at({5: 3})) == {5: 3.0}


def test_the_states_within_a_round_are_of_that_attempt() -> None:
    records = RecordDict()
    keep_step(records, {5: state(1.5)}, 1)
    assert value(step_states(records, 1)) == {5: 1.5}
    assert step_states(records, 2) == {}
    drop_step(records)
    assert step_states(records, 1) == {}


def test_a_late_commit_of_a_round_that_does_not_count_is_neither_read_nor_kept(tmp_path: Path) -> None:
    """A node that was given up finishes round 4 all the same; its client next trains in 6, from round 3."""
    kept = NodeStates(tmp_path)
    kept.commit(3, {5: state(3)}, since(0), [])
    kept.commit(4, {5: state(4)}, since(3), [])
    assert value(kept.at({5: 3})) == {5: 3.0}
    kept.commit(6, {5: state(6)}, since(3), [5])  # the checkpoint of round 5 has this client as after round 3
    assert files(tmp_path) == [f"client-00005/round-000{number}.safetensors" for number in (3, 6)]
