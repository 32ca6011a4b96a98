"""Checkpoints: whole or not at all, verified when read, the one before used when the last is damaged."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from sglr_flower.errors import UserError
from sglr_flower.run import checkpoint


def save(folder: Path, server_round: int) -> Path:
    value = torch.full((3,), float(server_round))
    clients = {i: {"segment.w": value * 10 + i} for i in range(2)}
    return checkpoint.save(folder, server_round, {"segment.w": value}, clients, {"rows": [server_round]})


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    latest = checkpoint.latest(tmp_path)

    assert latest.folder == folder == tmp_path / "round-0002"
    assert (latest.server_round, latest.history) == (2, {"rows": [2]})
    assert latest.server_state()["segment.w"].tolist() == [2.0] * 3
    assert latest.client_states([1])[1]["segment.w"].tolist() == [21.0] * 3


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for server_round in (1, 2, 3, 9998, 9999, 10000):
        save(tmp_path, server_round)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-10000", "round-9998", "round-9999"]
    assert checkpoint.latest(tmp_path).server_round == 10000


def test_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).rename(tmp_path / ".round-0002.partial")  # killed before the rename

    assert checkpoint.latest(tmp_path).server_round == 1
    save(tmp_path, 2)
    assert checkpoint.latest(tmp_path).server_round == 2


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["server.safetensors", "clients/client-00001.safetensors", "state.json"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, caplog, name: str, damage) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / name)

    with caplog.at_level(logging.WARNING, logger="flwr.sglr"):
        logging.getLogger("flwr").propagate = True
        assert checkpoint.latest(tmp_path).server_round == 1
    assert "round-0002 is damaged" in caplog.text
    assert Path(name).name in caplog.text


def test_a_changed_figure_in_the_state_counts_as_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    state = save(tmp_path, 2) / "state.json"
    state.write_text(state.read_text().replace('"rows": [2]', '"rows": [3]'))
    assert checkpoint.latest(tmp_path).server_round == 1


@pytest.mark.parametrize("state", [[], {}, {"state": {}, "sha256": ""}, {"state": 3}])
def test_a_state_of_the_wrong_form_counts_as_damage(tmp_path: Path, state: object) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "state.json").write_text(json.dumps(state))
    assert checkpoint.latest(tmp_path).server_round == 1


def test_no_whole_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    truncate(save(tmp_path, 1) / "server.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint to resume from: .*round-0001 is damaged \(server.safetensors"):
        checkpoint.latest(tmp_path)


def test_optimizer_state_survives_safetensors() -> None:
    from sglr_flower.split import optimizers

    def trained(steps: int, state: dict | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.BatchNorm2d(2))
        adam = optimizers.ADAM(layer.parameters())
        adam.lr = 0.1
        if state:
            optimizers.load_flat_state(layer, adam, state)
        for _ in range(steps):
            adam.zero_grad()
            layer(torch.arange(9.0).view(1, 1, 3, 3)).square().sum().backward()
            adam.step()
        return {name: tensor.clone() for name, tensor in optimizers.flat_state(layer, adam).items()}

    resumed = trained(2, trained(3))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in trained(5).items())
