"""What one client bears in a run, by hand and of a real run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import trained_runs
from torch import nn

from sglr_flower import models
from sglr_flower.data.inputs import rgb
from sglr_flower.models.footprint import Footprint, _saved, footprint
from sglr_flower.run import assembly
from sglr_flower.run import client_cost as client
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodetable import NodeRow
from sglr_flower.split.optimizers import ADAM, SGD
from sglr_flower.split.plan import draw_participants


def node(clients: tuple[int, ...], latency: float | None) -> NodeRow:
    return NodeRow(1, 1, 7, "", clients, "finished", 3, latency, 0, 0)


def test_memory_by_hand() -> None:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Linear(3, 2))
    layer[1].requires_grad_(False)
    weights, trained = 4 * (12 * 3 + 3 + 3 * 2 + 2), 4 * (3 * 2 + 2)
    # Saved for the second layer's weights is its input; the images are not needed, the output is sent.
    assert footprint(layer, ADAM.nbytes(layer), 5, rgb(2)) == Footprint(weights, trained, 2 * trained, 4 * 5 * (3 + 2))
    assert footprint(layer, SGD.nbytes(layer), 5, rgb(2)).optimizer == 0


@pytest.mark.parametrize("name", ["resnet16", "alexnet", "vit"])
@pytest.mark.parametrize("batch", [2, 8, 13])
def test_activations_of_a_batch_are_those_that_its_forward_saves(name: str, batch: int) -> None:
    model = models.get(name)
    network = model.build(10, 16)
    segment = network[: models.cut_index(network, model.cut)].train()
    assert footprint(segment, ADAM.nbytes(segment), batch, rgb(16)).activations == _saved(segment, batch, rgb(16))


def test_a_clients_samples_are_counted_as_often_as_they_are_used() -> None:
    config = RunConfig.parse({"num-clients": 4, "num-server-rounds": 3, "local-epochs": 2})
    assert client.samples_trained(config, 3, {0: 10, 1: 20, 2: 30, 3: 40}) == 3 * 2 * 25
    assert client.samples_trained(config, 1, {0: 10, 1: 20, 2: 30, 3: 40}) == 2 * 25  # a run that ended early
    some = config.replace(fraction_train=0.5)
    drawn = [draw_participants(some.seed, r, 4, 0.5) for r in (1, 2, 3)]
    expected = 2 * sum(10 * (i + 1) for taking_part in drawn for i in taking_part) / 4
    assert client.samples_trained(some, 3, {0: 10, 1: 20, 2: 30, 3: 40}) == expected
    pooled = config.replace(method="centralized")
    assert client.samples_trained(pooled, 3, {0: 100}) == 3 * 2 * 100


def test_a_clients_step_takes_its_share_of_its_nodes_time() -> None:
    rows = [node((0, 1), 0.2), node((2, 3, 4), 0.6), node((5,), 0.4), node((6,), None), node((), 0.1)]
    assert client.step_seconds(rows) == pytest.approx(0.2)  # of 0.1, 0.2 and 0.4
    assert client.step_seconds([]) is None


def test_a_runs_summary_has_it(tmp_path: Path) -> None:
    trained_runs.run(tmp_path / "run", num_server_rounds=2)
    bore = json.loads((tmp_path / "run" / "summary.json").read_text())["client"]
    segment = assembly.model(RunConfig.parse({})).client_segment(0)
    weights = sum(tensor.nbytes for tensor in segment.state_dict().values())
    assert bore["weight_bytes"] == weights
    assert bore["optimizer_bytes"] == 2 * bore["gradient_bytes"]
    assert bore["forward_flops"] < bore["backward_flops"] < 2 * bore["forward_flops"]
    assert bore["activation_bytes"] > 0
    assert (bore["samples"], bore["step_seconds"]) == (32, None)  # 16 images twice; without nodes none was timed


def test_a_network_that_cannot_be_counted_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(segment: nn.Module, image_size: int) -> tuple[int, int]:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(client, "segment_flops", broken)
    with caplog.at_level(logging.WARNING, "flwr.sglr"):
        summary = trained_runs.run(tmp_path / "run")
    assert summary["client"] == {"samples": 16, "step_seconds": None}
    assert "could not be counted: no such operator" in caplog.text
    assert torch.is_grad_enabled()
