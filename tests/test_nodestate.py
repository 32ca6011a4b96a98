"""What a node keeps between two messages: versions on a device's disk, and in a simulated node's context."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor

from sglr_flower.errors import UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.nodestate import STATES, ContextStates, FolderStates, drop_step, keep_step, step_states


def state(value: float) -> dict[str, Tensor]:
    return {"segment.w": torch.full((3,), value), "optimizer.0.step": torch.tensor(value)}


def value(states: dict[int, dict[str, Tensor]]) -> dict[int, float]:
    return {client: float(tensors["segment.w"][0]) for client, tensors in states.items()}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def test_a_client_has_its_newest_version_that_the_server_counts(tmp_path: Path) -> None:
    kept = FolderStates(tmp_path, (3, 4))
    kept.commit(1, {3: state(1), 4: state(10)}, 0, [])
    kept.commit(2, {3: state(2)}, 1, [])
    assert value(kept.at(0)) == {}
    assert value(kept.at(1)) == {3: 1.0, 4: 10.0}
    assert value(FolderStates(tmp_path, (3, 4)).at(7)) == {3: 2.0, 4: 10.0}  # another process


def test_old_versions_go_but_those_of_checkpoints_stay(tmp_path: Path) -> None:
    kept = FolderStates(tmp_path, (0,))
    for server_round in range(1, 8):
        kept.commit(server_round, {0: state(server_round)}, server_round - 1, [2, 4])
    # The newest, the one before it, and what was newest at each checkpoint.
    assert [name.split("/")[0] for name in files(tmp_path)] == ["round-0002", "round-0004", "round-0006", "round-0007"]
    kept.commit(9, {0: state(9)}, 8, [8])
    assert [name.split("/")[0] for name in files(tmp_path)] == ["round-0007", "round-0009"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0007", "round-0009"]


def test_going_back_drops_what_is_newer(tmp_path: Path) -> None:
    kept = FolderStates(tmp_path, (0, 1))
    for server_round in (1, 2, 3):
        kept.commit(server_round, {0: state(server_round), 1: state(10 * server_round)}, server_round - 1, [])
    assert kept.go_back({0: 2, 1: 3}) == {0: 2, 1: 3}
    assert value(kept.at(9)) == {0: 2.0, 1: 30.0}
    assert kept.go_back({0: 0, 1: 3}) == {0: 0, 1: 3}
    assert value(kept.at(9)) == {1: 30.0}


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_version_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    kept = FolderStates(tmp_path, (0,))
    kept.commit(1, {0: state(1)}, 0, [])
    kept.commit(2, {0: state(2)}, 1, [])
    file = tmp_path / "round-0002" / "clients" / "client-00000.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    file.write_bytes(bytes(content[:-9]) if damage == "truncate" else bytes(content))
    with caplog.at_level(logging.WARNING, "flwr.sglr"):
        assert value(kept.at(2)) == {0: 1.0}
    assert str(file) in caplog.text


def test_an_older_session_of_the_run_may_not_undo_a_newer_ones_rounds(tmp_path: Path) -> None:
    kept = FolderStates(tmp_path / "run", (0,))
    kept.enter(100)
    kept.enter(100)
    kept.enter(200)
    with pytest.raises(ExchangeError, match="an earlier session"):
        kept.enter(100)


def test_a_folder_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = FolderStates(tmp_path / "file" / "run", (0,))
    with pytest.raises(UserError, match=r"node-config key state-dir: .*file/run cannot be written"):
        kept.commit(1, {0: state(1)}, 0, [])
    with pytest.raises(UserError, match="cannot be written"):
        kept.enter(1)


def test_a_simulated_node_can_go_back_one_round_where_rounds_are_trained_again() -> None:
    records = RecordDict()
    kept = ContextStates(records, tolerant=True)
    for server_round in range(4):
        kept.commit(server_round, {5: state(server_round)}, server_round - 1, [])
    assert value(kept.at(3)) == {5: 3.0}
    assert value(kept.at(2)) == {5: 2.0}
    assert value(kept.at(1)) == {}
    kept.commit(3, {5: state(33)}, 2, [])  # the third round again
    assert value(kept.at(3)) == {5: 33.0}
    assert value(kept.at(2)) == {5: 2.0}


def test_what_the_server_does_not_count_is_not_what_a_round_goes_back_to(tmp_path: Path) -> None:
    # The node finished round 2 after the server had dropped it; round 3 begins from 1, and is trained again.
    for kept in (ContextStates(RecordDict(), tolerant=True), FolderStates(tmp_path, (5,))):
        kept.commit(1, {5: state(1)}, 0, [])
        kept.commit(2, {5: state(2)}, 1, [])
        assert value(kept.at(1)) == {5: 1.0}
        kept.commit(3, {5: state(3)}, 1, [])
        assert value(kept.at(1)) == {5: 1.0}
        assert value(kept.at(3)) == {5: 3.0}


def test_where_no_round_is_trained_again_only_the_newest_travels_with_the_context() -> None:
    records = RecordDict()
    kept = ContextStates(records, tolerant=False)
    for server_round in range(3):
        kept.commit(server_round, {5: state(server_round)}, server_round - 1, [])
    assert list(records) == [STATES]
    assert value(kept.at(2)) == {5: 2.0}


def test_the_states_within_a_round_are_of_that_attempt() -> None:
    records = RecordDict()
    kept = ContextStates(records, tolerant=True)
    kept.commit(1, {5: state(1)}, 0, [])
    keep_step(records, {5: state(1.5)}, 1, tolerant=True)
    assert value(step_states(records, 1)) == {5: 1.5}
    assert step_states(records, 2) == {}
    drop_step(records)
    assert step_states(records, 1) == {}
    assert value(kept.at(1)) == {5: 1.0}
    keep_step(records, {5: state(1.5)}, 1, tolerant=False)
    assert STATES not in records
