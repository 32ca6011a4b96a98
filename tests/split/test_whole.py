"""A step that is recorded whole has the weights of a plain loop, and of a run over a link, whatever it is made of."""

from __future__ import annotations

import logging
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.runs import final_weights, largest_difference
from reference import plain_loop
from torch import nn

from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import optimizers, recording, whole
from sglr_flower.split.plan import RoundPlan

RUN: dict[str, Any] = {
    "method": "sglr",
    "cohort": "graph",
    "num-clients": 4,
    "image-size": 8,
    "samples-per-client": 20,  # two batches of 8 and one of 4
    "num-server-rounds": 3,
    "local-epochs": 2,
    "evaluate-every": 0,
    "evaluate-samples": 10,
    "dtype": "float64",
}
FIGURES = ("train_loss", "steps", "bytes_up", "bytes_down", "test_accuracy_mean")


def with_dropout(num_classes: int, image_size: int) -> nn.Sequential:
    """Dropout above the cut only."""
    low = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(image_size**2, num_classes))
    return nn.Sequential(OrderedDict(low=low, head=head))


with_dropout.cut = "low"  # type: ignore[attr-defined]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As many as there were, of how many operations each."""
    counted: list[int] = []
    replay = recording._Operations.replay

    def count(self: recording._Operations) -> None:
        counted.append(len(self._done))
        replay(self)

    monkeypatch.setattr(recording._Operations, "replay", count)
    return counted


def trained(folder: Path, settings: dict[str, Any], nodes: int = 1) -> dict[str, Any]:
    return inprocess.run(RunConfig.parse({**RUN, **settings, "run-dir": str(folder)}), nodes)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "psl"},
        {"method": "slr", "optimizer": "sgd"},
        {"method": "sgl", "lr-schedule": "cyclic:low=0.4,high=1.6,period=2"},
        {"method": "sfl"},
        {"splitavg-phi": 1.0, "splitavg-phase": "first:0.5"},
        {"loss": "binary-cross-entropy"},
        {"model": "alexnet", "image-size": 32, "num-server-rounds": 1},
    ],
    ids=lambda settings: ",".join(map(str, settings.values())) or "sglr",
)
def test_recorded_steps_have_the_weights_of_a_plain_loop(
    settings: dict[str, Any], tmp_path: Path, replays: list[int]
) -> None:
    trained(tmp_path / "run", settings)
    config = RunConfig.parse({**RUN, **settings})

    steps = 6 * config.num_server_rounds
    kinds = 4 if "splitavg-phase" in settings else 2  # two sizes of batches
    assert len(replays) == steps - 2 * kinds  # each kind is tried once and recorded once
    assert largest_difference(final_weights(tmp_path / "run"), plain_loop(config)) < 1e-9


@pytest.mark.parametrize(
    "settings",
    [{"splitavg-over": "clients-and-samples"}, {"cut-gradient-scale": "joint"}, {"fraction-train": 0.5}],
    ids=lambda settings: next(iter(settings)),
)
def test_recorded_steps_do_what_steps_over_a_link_do(
    settings: dict[str, Any], tmp_path: Path, replays: list[int]
) -> None:
    ours = trained(tmp_path / "graph", settings)
    assert replays
    theirs = trained(tmp_path / "loop", {**settings, "cohort": "loop"})

    assert largest_difference(final_weights(tmp_path / "graph"), final_weights(tmp_path / "loop")) < 1e-9
    assert [ours[name] for name in FIGURES] == pytest.approx([theirs[name] for name in FIGURES], rel=1e-12)


def test_every_step_s_loss_is_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "STEPS_AT_ONCE", 4)
    told: dict[str, list[tuple[int, float]]] = {}
    original = inprocess.OpenRound.train
    for form, owner in (("graph", inprocess._Recorded), ("loop", inprocess.OpenRound)):
        heard = told.setdefault(form, [])
        train = owner.train

        def listening(self, server, plan, on_step=None, train=train, heard=heard):
            return train(self, server, plan, lambda step, loss: heard.append((step, loss)))

        with monkeypatch.context() as patch:
            patch.setattr(owner, "train", listening)
            trained(tmp_path / form, {"cohort": form})
    assert inprocess.OpenRound.train is original

    assert [step for step, _ in told["graph"]] == [1, 2, 3, 4, 5, 6] * 3
    assert told["graph"] == [(step, pytest.approx(loss, rel=1e-9)) for step, loss in told["loop"]]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "sfl-v2"}, "one step over the joint batch"),
        ({"method": "fedavg"}, "the server has no part in them"),
        ({"method": "own_method:robust"}, "a rule of its own for the cut gradient"),
        ({"augment": "standard"}, "images are augmented"),
        ({"wire-up": "float16"}, "changed on their way"),
        ({"smashed-clip": 1.0}, "changed on their way"),
        ({"recompute": True}, "not computed together"),
        (
            {"partition": "linear", "samples-per-client": 150, "local-epochs": 1, "num-server-rounds": 1},
            "different numbers of samples",
        ),
        ({"model": "split.test_whole:with_dropout"}, "it draws random numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_steps_that_cannot_be_recorded_are_made_all_the_same(
    settings: dict[str, Any], reason: str, tmp_path: Path, replays: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flwr.sglr"):
        ours = trained(tmp_path / "graph", settings)
    said = [record.message for record in caplog.records if record.message.startswith("steps are not recorded: ")]
    assert len(said) == 1
    assert reason in said[0]
    theirs = trained(tmp_path / "loop", {**settings, "cohort": "loop"})

    assert not replays
    assert largest_difference(final_weights(tmp_path / "graph"), final_weights(tmp_path / "loop")) < 1e-9
    assert [ours[name] for name in FIGURES] == pytest.approx([theirs[name] for name in FIGURES], rel=1e-12)


def test_several_nodes_compute_their_clients_as_stacked(
    tmp_path: Path, replays: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flwr.sglr"):
        trained(tmp_path / "graph", {}, nodes=2)
    assert not replays
    assert "steps are not recorded: the clients are on several nodes" in caplog.messages
    assert largest_difference(final_weights(tmp_path / "graph"), plain_loop(RunConfig.parse(RUN))) < 1e-9


def test_a_recording_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As CUDA's may in the middle of a step, which has not been computed then: the server has no gradients of it."""
    update = optimizers.Adam._update

    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore about it")

    def record(recorder: recording.Recorder, function: Callable[[], None]) -> None:
        kept = [tensor.clone() for tensor in tensors]
        with monkeypatch.context() as patch:
            patch.setattr(optimizers.Adam, "_update", fails)
            try:
                function()
            finally:  # a CUDA graph that is recorded computes nothing
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.data.copy_(value)

    tensors: list[torch.Tensor] = []
    refusal = whole.WholeStep.refusal

    def watched(self: whole.WholeStep, plan: RoundPlan) -> str:
        said = refusal(self, plan)
        stack = self.cohort.stack
        assert stack is not None
        tensors[:] = [*stack.tensors(), *self.server.segment.state_dict().values()]
        return said

    monkeypatch.setattr(whole.WholeStep, "refusal", watched)
    monkeypatch.setattr(recording.Recorder, "record", record)
    with caplog.at_level(logging.INFO, "flwr.sglr"):
        trained(tmp_path / "graph", {})
    assert optimizers.Adam._update is update
    assert "steps are not recorded: operation not permitted when stream is capturing" in caplog.messages
    assert largest_difference(final_weights(tmp_path / "graph"), plain_loop(RunConfig.parse(RUN))) < 1e-9


def test_a_resumed_run_records_anew(tmp_path: Path, replays: list[int]) -> None:
    settings = {"checkpoint-every": 1, "dtype": "float32"}
    trained(tmp_path / "straight", settings)
    shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "round-0003")
    (tmp_path / "killed" / "summary.json").unlink()
    replays.clear()

    trained(tmp_path / "killed", {**settings, "resume": True})

    assert len(replays) == 6 - 4
    assert largest_difference(final_weights(tmp_path / "killed"), final_weights(tmp_path / "straight")) == 0.0


def test_weights_that_are_elsewhere_are_recorded_anew(tmp_path: Path, replays: list[int]) -> None:
    """As after a round that is trained again: the server's optimizer has other tensors then."""
    config = RunConfig.parse({**RUN, "run-dir": str(tmp_path)})
    plans = [inprocess.assembly.plan(config, server_round) for server_round in (1, 2, 3)]
    nodes = inprocess.InProcessNodes(config, [range(4)])
    server = inprocess.assembly.server(config)
    for plan in plans:
        with nodes.train(plan, None) as opened:
            opened.train(server, plan)
        server.load_state({name: tensor.clone() for name, tensor in server.state().items()})

    assert len(replays) == 3 * (6 - 4)
    ours = {f"client-{i}": dict(segment.state_dict()) for i, segment in nodes.cohorts[0].segments.items()}
    assert largest_difference({"server": server.segment.state_dict(), **ours}, plain_loop(config)) < 1e-9
    assert torch.isfinite(next(server.segment.parameters())).all()
