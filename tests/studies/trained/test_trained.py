"""What a run has trained, put together again from its checkpoint."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
import trained_runs
from safetensors.torch import load_file
from torch import nn

from sglr_flower.data.inputs import to_input
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checkpoint
from sglr_flower.run.metrics import Best
from sglr_flower.run.nodestate import NodeStates
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.network import Trained


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    trained_runs.run(path, num_clients=3, num_server_rounds=2)
    return path


@pytest.fixture(scope="module")
def model(run_dir: Path) -> Trained:
    return trained.load(run_dir)


def copy_of(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def set_key(run_dir: Path, line: str) -> None:
    key = line.partition(" ")[0]
    config = run_dir / "config.toml"
    lines = [line if old.startswith(f"{key} ") else old for old in config.read_text().splitlines()]
    assert line in lines
    config.write_text("\n".join(lines))


def test_the_run_is_described(model: Trained, run_dir: Path) -> None:
    assert (model.run_dir, model.clients, model.server_round, model.same) == (run_dir, (0, 1, 2), 2, False)
    assert model.classes == tuple("0123456789")
    assert (model.channels, model.image_size) == (1, 16)


def test_a_network_has_the_names_of_the_unsplit_model_and_the_weights_of_the_checkpoint(
    model: Trained, run_dir: Path
) -> None:
    network = model.network(1)
    state = network.state_dict()
    folder = run_dir / "checkpoints" / "round-0002"
    saved = load_file(folder / "clients" / "client-00001.safetensors") | load_file(folder / "server.safetensors")
    weights = {name.removeprefix("segment."): tensor for name, tensor in saved.items() if name.startswith("segment.")}

    assert list(state) == list(assembly.model(model.config).whole().state_dict())
    assert "stem.0.weight" in state
    assert "stage3.0.conv1.weight" in state
    assert weights.keys() == state.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state.items())
    assert not any(module.training for module in network.modules())


def test_its_answer_is_that_of_the_two_segments_one_after_the_other(model: Trained) -> None:
    images = assembly.splits(model.config).test.images[:7]
    network = model.network(2)
    lower, upper = network[:3], network[3:]
    with torch.no_grad():
        expected = upper(lower(to_input(images, torch.float32)))

    assert torch.allclose(model.logits(2, images), expected, atol=1e-6)


def test_the_caller_may_change_a_network(model: Trained) -> None:
    nn.init.zeros_(model.network(0).get_parameter("head.2.weight"))
    assert model.network(0).get_parameter("head.2.weight").abs().sum() > 0
    assert not torch.equal(
        model.network(0).get_parameter("stem.0.weight"), model.network(1).get_parameter("stem.0.weight")
    )


@pytest.mark.parametrize("codec", ["int8-channel", "randtopk:0.1:0.2"])
def test_where_smashed_data_were_clipped_and_coded_the_network_has_both_at_the_cut(tmp_path: Path, codec: str) -> None:
    """With it the network scores what the run recorded, on all images, in its only round."""
    summary = trained_runs.run(tmp_path / "run", wire_up=codec, smashed_clip=15.0)
    model = trained.load(tmp_path / "run")
    network = model.network(0)
    names = [name for name, _ in network.named_children()]
    assert names.index("smashed_clip") + 1 == names.index("wire")
    assert list(network.state_dict()) == list(assembly.model(model.config).whole().state_dict())

    test = assembly.splits(model.config).test
    right = [(model.logits(client, test.images).argmax(1) == test.labels).double().mean() for client in (0, 1)]
    assert float(sum(right)) / 2 == pytest.approx(summary["last_round_test_accuracy_mean"], abs=1e-9)


@pytest.mark.parametrize("method", ["fedavg", "centralized", "sfl"])
def test_methods_without_a_cut_or_with_one_segment_for_all_give_whole_networks_too(tmp_path: Path, method: str) -> None:
    trained_runs.run(tmp_path / "run", method=method)
    model = trained.load(tmp_path / "run")

    assert model.clients == ((0,) if method == "centralized" else (0, 1))
    state = model.network(model.clients[-1]).state_dict()
    assert list(state) == list(assembly.model(model.config).whole().state_dict())
    if method != "centralized":
        assert model.same
        assert all(torch.equal(tensor, model.network(0).state_dict()[name]) for name, tensor in state.items())


def test_segments_that_a_simulations_nodes_kept_are_found(run_dir: Path, tmp_path: Path, model: Trained) -> None:
    """With evaluate = "client" over Flower, the simulated nodes keep their clients beside the checkpoints."""
    moved = copy_of(run_dir, tmp_path)
    last = moved / "checkpoints" / "round-0002"
    states = dict(checkpoint.latest(moved / "checkpoints").client_states(range(3)))
    history = checkpoint.latest(moved / "checkpoints").history
    server = checkpoint.latest(moved / "checkpoints").server_state()
    shutil.rmtree(last)
    checkpoint.save(moved / "checkpoints", 2, server, {}, history)
    settings = moved / "config.toml"
    settings.write_text(settings.read_text().replace('evaluate = "server"', 'evaluate = "client"'))
    with pytest.raises(UserError, match=r"does not hold the 3 clients' segments: with evaluate = 'client' they stay"):
        trained.load(moved)
    kept = NodeStates(moved / "nodes")
    kept.commit(2, {i: states[i] for i in (0, 1)}, {0: 1, 1: 1, 2: 1}, [])
    with pytest.raises(UserError, match="does not hold"):  # a node's are missing
        trained.load(moved)
    kept.commit(2, {2: states[2]}, {0: 1, 1: 1, 2: 1}, [])

    weight = trained.load(moved).network(2).get_parameter("stem.0.weight")
    assert torch.equal(weight, model.network(2).get_parameter("stem.0.weight"))


def test_a_run_without_a_checkpoint_is_a_users_mistake(run_dir: Path, tmp_path: Path) -> None:
    moved = copy_of(run_dir, tmp_path)
    shutil.rmtree(moved / "checkpoints")
    with pytest.raises(UserError, match=r"copy has no checkpoint"):
        trained.load(moved)
    with pytest.raises(UserError, match=r"is not a run directory"):
        trained.load(tmp_path)


def test_a_checkpoint_of_another_model_is_named(run_dir: Path, tmp_path: Path) -> None:
    moved = copy_of(run_dir, tmp_path)
    set_key(moved, 'model = "alexnet"')
    with pytest.raises(UserError, match=r"round-0002 does not fit model = 'alexnet': .*"):
        trained.load(moved).network(0)


def test_an_unknown_client_is_named_with_those_there_are(model: Trained) -> None:
    with pytest.raises(UserError, match=r"--client 3: .* has no such client, it has 0 to 2"):
        model.network(3)


def test_the_best_client_is_that_of_the_history(model: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    best = {client: Best(1, accuracy, 0.0) for client, accuracy in ((0, 0.5), (1, 0.7), (2, 0.7))}
    monkeypatch.setattr(model.history, "best", best)
    assert model.best_client() == 1
    monkeypatch.setattr(model.history, "best", {})
    assert model.best_client() == 0


def test_data_that_have_moved_are_looked_for_where_a_new_run_would(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = copy_of(run_dir, tmp_path)
    monkeypatch.setenv("SGLR_DATA_DIR", "/from/environment")
    set_key(moved, f'data-dir = "{tmp_path}"')
    assert trained.load(moved).config.data_dir == str(tmp_path)
    set_key(moved, f'data-dir = "{tmp_path}/gone"')
    assert trained.load(moved).config.data_dir == "/from/environment"
    assert trained.load(moved, Path("/from/option")).config.data_dir == "/from/option"


OWN_MODEL = """
from torch import nn

def network(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 8), nn.Linear(8, num_classes))
"""


def test_a_users_own_model_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_net_for_trained.py").write_text(OWN_MODEL)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "code")])
    trained_runs.run(tmp_path / "run", model="own_net_for_trained:network", cut="2")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path / "code")])
    monkeypatch.delitem(sys.modules, "own_net_for_trained")
    (tmp_path / "run" / "launch.toml").write_text(f'nodes = 1\ncode_dir = "{tmp_path / "code"}"\n')

    assert list(trained.load(tmp_path / "run").network(1).state_dict()) == ["1.weight", "1.bias", "2.weight", "2.bias"]
