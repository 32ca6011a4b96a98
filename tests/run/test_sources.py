"""Runs on what is no classified image, each against a plain PyTorch loop: weights to 1e-9, scores and losses too."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower.data.samples import Samples
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.plots import save_curves, save_partition
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.view import closing_table
from sglr_flower.seeds import generator
from sglr_flower.split.optimizers import segment_weights
from sglr_flower.studies import report
from sglr_flower.studies.report import tables
from sglr_flower.studies.trained import network

CLIENTS, BATCH, ROUNDS, LR = 3, 4, 2, 0.01
COMMON = {
    "num-clients": CLIENTS,
    "samples-per-client": 0,
    "batch-size": BATCH,
    "num-server-rounds": ROUNDS,
    "client-lr": LR,
    "dtype": "float64",
    "method": "psl",
    "optimizer": "sgd",
    "cohort": "loop",
}
TASKS = {
    "regression": {"dataset": "diabetes", "model": "mlp", "loss": "torch.nn.functional:mse_loss"},
    "table of classes": {"dataset": "wine", "model": "mlp"},
    "dicts": {"dataset": "own_sources:sentences", "model": "own_sources:recurrent"},
    "several labels": {
        "dataset": "own_sources:tagged",
        "model": "mlp",
        "loss": "torch.nn.functional:binary_cross_entropy_with_logits",
    },
    "several targets": {
        "dataset": "own_sources:pairs",
        "model": "own_sources:recurrent",
        "loss": "own_sources:pair_loss",
        "score": "own_sources:off_by",
    },
}


def task(name: str, run_dir: Path, **changes: Any) -> RunConfig:
    return RunConfig.parse({**COMMON, **TASKS[name], "run-dir": str(run_dir), **changes})


def read(samples: Samples, indices: Tensor) -> tuple[Any, Any]:
    """Inputs and targets in float64, whole numbers as they are."""

    def exact(values: Any) -> Any:
        if isinstance(values, Mapping):
            return {key: exact(own) for key, own in values.items()}
        return values.double() if values.is_floating_point() else values

    batch = samples.take(indices)
    return exact(batch.inputs), exact(batch.targets)


def loss_of(name: str) -> Callable[[Tensor, Any], Tensor]:
    def own(outputs: Tensor, targets: Any) -> Tensor:
        if name == "regression":
            return ((outputs - targets) ** 2).mean()
        if name == "several labels":
            p = outputs.sigmoid()
            return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
        if name == "several targets":
            kinds = outputs[:, :3].log_softmax(1)[torch.arange(len(outputs)), targets["kind"]]
            return -kinds.mean() + ((outputs[:, 3:] - targets["size"]) ** 2).mean()
        return -outputs.log_softmax(1)[torch.arange(len(outputs)), targets].mean()

    return own


def score_of(name: str, outputs: Tensor, targets: Any) -> Tensor:
    if name == "regression":
        return ((outputs - targets) ** 2).mean()
    if name == "several labels":
        return ((outputs.sigmoid() > 0.5) == targets.bool()).double().mean()
    if name == "several targets":
        return (outputs[:, 3:] - targets["size"]).abs().sum(1).mean()
    return (outputs.argmax(1) == targets).double().mean()


def plain(name: str, config: RunConfig) -> tuple[dict[int, nn.Module], nn.Module]:
    """Parallel split learning with SGD: each client by its own batch's mean, the server by the joint batch's mean."""
    model, data = assembly.model(config), assembly.client_data(config, range(CLIENTS))
    clients = {i: model.client_segment(i) for i in data}
    server, loss = model.server_segment(), loss_of(name)
    optimizers = {i: torch.optim.SGD(clients[i].parameters(), LR) for i in data}
    above = torch.optim.SGD(server.parameters(), LR)
    for epoch in range(ROUNDS):
        orders = {
            i: torch.randperm(len(own), generator=generator(config.seed, "order", i, epoch)).split(BATCH)
            for i, own in data.items()
        }
        for step in range(max(map(len, orders.values()))):
            here = [i for i in data if step < len(orders[i])]
            batches = {i: read(data[i], orders[i][step]) for i in here}
            smashed = {i: clients[i](batches[i][0]) for i in here}
            outputs = {i: server(smashed[i]) for i in here}
            sizes = {i: len(smashed[i]) for i in here}
            whole = sum(sizes.values())
            # What is a mean over samples is so over the joint batch too.
            joint = sum(loss(outputs[i], batches[i][1]) * (sizes[i] / whole) for i in here)
            above.zero_grad()
            joint.backward(retain_graph=True)
            upwards = [weight.grad.clone() for weight in server.parameters()]
            for i in here:
                optimizers[i].zero_grad()
                grads = torch.autograd.grad(
                    loss(outputs[i], batches[i][1]), list(clients[i].parameters()), retain_graph=True
                )
                for weight, grad in zip(clients[i].parameters(), grads, strict=True):
                    weight.grad = grad
            for weight, grad in zip(server.parameters(), upwards, strict=True):
                weight.grad = grad
            above.step()
            for i in here:
                optimizers[i].step()
    return clients, server


@pytest.mark.parametrize("name", TASKS)
def test_a_run_is_the_plain_loop(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = task(name, tmp_path / "one")
    checks.check(config)
    clients, server = plain(name, config)
    summaries = []
    for nodes, changes in ((1, {}), (2, {"evaluate": "client", "run-dir": str(tmp_path / "two")})):
        ours = RunConfig.parse({**config.values(), **changes})
        summaries.append(inprocess.run(ours, nodes))
        directory = RunDirectory(Path(ours.run_dir))
        kept = directory.latest_checkpoint()
        assert kept is not None
        torch.testing.assert_close(
            segment_weights(kept.server_state()), dict(server.state_dict()), rtol=1e-9, atol=1e-9
        )
        states = kept.client_states(range(CLIENTS))
        for i, segment in clients.items():
            expected = dict(segment.state_dict())
            torch.testing.assert_close(segment_weights(states[i]), expected, rtol=1e-9, atol=1e-9)
    test = assembly.splits(config).test
    inputs, targets = read(test, torch.arange(len(test)))
    with torch.no_grad():
        outputs = [server(segment(inputs)) for segment in clients.values()]
    score = assembly.scoring(config).score.name
    expected_score = math.fsum(float(score_of(name, own, targets)) for own in outputs) / CLIENTS
    expected_loss = math.fsum(float(loss_of(name)(own, targets)) for own in outputs) / CLIENTS
    for summary, run_dir in zip(summaries, ("one", "two"), strict=True):
        assert summary[f"last_round_test_{score}_mean"] == pytest.approx(expected_score, abs=1e-9)
        rows = list(csv.DictReader((tmp_path / run_dir / "metrics.csv").read_text().splitlines()))
        assert float(rows[-1][f"test_{score}_mean"]) == pytest.approx(expected_score, abs=1e-9)
        assert float(rows[-1]["test_loss_mean"]) == pytest.approx(expected_loss, abs=1e-9)
        assert summary["evaluated_images"] == len(test)


@pytest.mark.parametrize("name", ["regression", "dicts", "several labels", "several targets"])
@pytest.mark.parametrize("cohort", ["stacked", "graph"])
def test_clients_computed_together_are_the_same(name: str, cohort: str, tmp_path: Path) -> None:
    alone = inprocess.run(task(name, tmp_path / "loop"))
    # An LSTM's kernel is none of vmap's, and is looped over; all others are stacked.
    together = inprocess.run(task(name, tmp_path / cohort, cohort=cohort))
    assert together["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-9)
    assert (together["bytes_up"], together["bytes_down"]) == (alone["bytes_up"], alone["bytes_down"])


def test_a_resumed_regression_goes_on_and_its_best_round_is_of_the_lowest_error(tmp_path: Path) -> None:
    whole = inprocess.run(task("regression", tmp_path / "whole", **{"num-server-rounds": 4}))
    config = task("regression", tmp_path / "parts", **{"num-server-rounds": 4})
    inprocess.run(config)
    kept = tmp_path / "parts" / "checkpoints"
    for path in sorted(kept.iterdir())[-2:]:  # as if it had been killed after its second round
        path.rename(tmp_path / path.name)
    (tmp_path / "parts" / "summary.json").unlink()
    again = inprocess.run(config.replace(resume=True))
    figures = ("test_mse_mean", "test_mse_std", "last_round_test_mse_mean", "train_loss", "score")
    assert {name: again[name] for name in figures} == {name: whole[name] for name in figures}
    rows = list(csv.DictReader((tmp_path / "whole" / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert whole["test_mse_mean"] <= max(float(row["test_mse_mean"]) for row in rows)
    assert whole["score"] == {"name": "mse", "higher_is_better": False, "fraction": False}


def test_a_report_names_the_score_and_ranks_the_lowest_error_first(tmp_path: Path) -> None:
    inprocess.run(task("regression", tmp_path / "slow", **{"client-lr": 1e-6}))
    summary = inprocess.run(task("regression", tmp_path / "fast"))
    built = report.build([tmp_path / "slow", tmp_path / "fast"])
    assert built.groups[0].runs[0].path == tmp_path / "fast"
    text = tables.to_markdown(built)
    assert "the lowest test mse is that of client-lr 0.01" in text
    assert f"{summary['test_mse_mean']:.4g} ± " in text
    assert "accuracy" not in text
    (tmp_path / "fast" / "summary.json").write_text(json.dumps(summary.to_json()))
    shown = [str(cell) for column in closing_table(summary, tmp_path).columns for cell in column.cells]
    assert "test mse" in shown
    assert not any("%" in cell for cell in shown[: len(shown) // 2])
    save_curves(tmp_path / "fast")
    save_partition(tmp_path / "fast")
    inprocess.run(task("table of classes", tmp_path / "classes"))
    with pytest.raises(UserError, match=r"is scored by mse and .* by accuracy: a report compares runs of one score"):
        report.build([tmp_path / "fast", tmp_path / "classes"])
    with pytest.raises(UserError, match="is for square images of classes, and dataset 'diabetes' has others"):
        network.load(tmp_path / "fast")


REFUSED = {
    "an image network for a table": ({"dataset": "wine"}, "model = 'resnet16': it is made for square images .*13"),
    "a table's network for images": ({"model": "mlp"}, "model = 'mlp': it is made for tables.* images of 16 x 16"),
    "classes' loss for values": (
        {"dataset": "diabetes", "model": "mlp"},
        "loss = 'cross-entropy': it is for classes.*mse or l1 is for values",
    ),
    "classes by a table of values": ({**TASKS["regression"], "partition": "shards:2"}, "shards:2'.* has none: take"),
    "augmented numbers": ({"dataset": "wine", "model": "mlp", "augment": "standard"}, "augment = 'standard': it is"),
    "a resized table": ({"dataset": "wine", "model": "mlp", "image-size": 16}, "image-size = 16: it must be 0"),
    "no score of several targets": ({**TASKS["several targets"], "score": ""}, "score = '': with several targets"),
    "a loss that fails": (
        {**TASKS["regression"], "loss": "torch.nn.functional:cosine_embedding_loss"},
        "loss = 'torch.nn.functional:cosine_embedding_loss'.*fail",
    ),
    "a wrong loss": ({"loss": "hinge"}, "loss = 'hinge': it must be one of cross-entropy"),
    "no function": ({"dataset": "own_sources:nothing"}, "dataset = 'own_sources:nothing'.*has no 'nothing'"),
    "no data": ({"dataset": "own_sources:off_by"}, "may take the parameters data_dir and seed and no others"),
    "an unknown one": ({"dataset": "wines"}, "dataset = 'wines': it must be one of .*diabetes, hf:NAME, or package"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_sentence_before_anything_starts(name: str) -> None:
    values, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence) as caught:
        checks.check(RunConfig.parse({"num-clients": 2, "samples-per-client": 0, **values}))
    assert "\n" not in str(caught.value)


def test_partitions_without_classes(tmp_path: Path) -> None:
    for spec in ("balanced", "iid", "linear", "square"):
        config = task("regression", tmp_path, partition=spec)
        data = assembly.client_data(config, range(CLIENTS))
        indices = torch.cat([share.indices for share in data.values()])
        assert len(set(indices.tolist())) == len(indices) == len(assembly.splits(config).train)
        sizes = [len(share) for share in data.values()]
        assert (max(sizes) - min(sizes) <= 1) == (spec in ("balanced", "iid"))
    names, counts = assembly.class_counts(config)
    assert (names, counts) == (("samples",), [[size] for size in sizes])


def test_the_tables_are_scikit_learns_standardised_by_their_train_samples() -> None:
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

    makers = {"breast-cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
    for name, maker in makers.items():
        x, y = maker(return_X_y=True, **({"scaled": False} if name == "diabetes" else {}))
        source = assembly.splits(RunConfig.parse({"dataset": name, "model": "mlp"}))
        parts = [source.train, source.validation, source.test]
        assert sum(map(len, parts)) == len(x)
        train = source.train.images
        torch.testing.assert_close(train.mean(0), torch.zeros_like(train[0]), rtol=0, atol=1e-12)
        torch.testing.assert_close(train.std(0, correction=0), torch.ones_like(train[0]), rtol=0, atol=1e-12)
        # Each row is one of scikit-learn's, by a line for every feature: the ranks are the same.
        ours = torch.cat([part.images for part in parts])[:, 1].sort().values
        theirs = torch.from_numpy(x)[:, 1].sort().values
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 1 - 1e-12
        wanted = torch.cat([part.labels for part in parts]).flatten().sort().values.double()
        answers = torch.from_numpy(y).double().sort().values
        assert torch.corrcoef(torch.stack([wanted, answers]))[0, 1] > 1 - 1e-12
        assert source.classes == (tuple(map(str, maker().target_names)) if name != "diabetes" else ())


def test_the_error_of_a_regression_is_told_in_nats_of_nothing_else(tmp_path: Path) -> None:
    """The evaluation's loss is the run's own: of a mean over unequal batches the mean over samples."""
    config = task("regression", tmp_path)
    outputs, targets = torch.randn(7, 1), torch.randn(7, 1)
    scores, losses = assembly.scoring(config).values(outputs, targets, (3, 4))
    assert losses.sum().item() == pytest.approx(7 * F.mse_loss(outputs, targets).item())
    assert scores.mean().item() == pytest.approx(F.mse_loss(outputs, targets).item())
