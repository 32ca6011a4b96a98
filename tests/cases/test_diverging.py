"""A run whose rate is far too large: said while it trains, and ended where its numbers are none any more."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sglr_flower as sglr
from sglr_flower.data.samples import Batch
from sglr_flower.data.targets import Classes, MultiLabel, Values
from sglr_flower.errors import Diverged, UserError
from sglr_flower.run import inprocess, watch
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import History, RoundMetrics
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.view import closing_table
from sglr_flower.split import loss as losses
from sglr_flower.split.score import ACCURACY
from sglr_flower.studies.report import groups, page

FAR_TOO_LARGE: dict[str, Any] = {
    **{"model": "case_models:tied", "cut": "low", "optimizer": "sgd", "client-lr": 1e15, "evaluate-samples": 20},
    **{"num-clients": 2, "samples-per-client": 16, "num-server-rounds": 3},
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"evaluate": "client"}, {"cohort": "graph"}, {"method": "sfl-v2"}, {"method": "sfl"}, {"method": "fedavg"}],
    ids=str,
)
def test_in_one_process_a_run_ends_where_its_numbers_are_not_finite(changes: dict[str, Any], tmp_path: Path) -> None:
    """As over Flower, where the check of a frame has the same words; without a network that is not a number."""
    config = RunConfig.parse({**FAR_TOO_LARGE, **changes, "run-dir": str(tmp_path)})
    with pytest.raises(
        Diverged, match=r"^round \d.*: .* not finite: the training may be diverging \(a smaller client-lr"
    ):
        inprocess.run(config)

    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert "not finite" in status["error"]
    assert not (tmp_path / "summary.json").exists()


def test_from_python_it_ends_too() -> None:
    run = sglr.SplitLearning(
        lower=lambda: nn.Linear(4, 8),
        upper=lambda: nn.Linear(8, 3),
        clients=[(torch.ones(16, 4), torch.arange(16) % 3)],
        optimizer=lambda weights: torch.optim.SGD(weights, lr=1e20),
    )
    with pytest.raises(UserError, match="that are not finite: the training may be diverging"):
        list(run.rounds(5))
    assert run.round < 5


TOO_LARGE: dict[str, Any] = {**FAR_TOO_LARGE, "client-lr": 100.0, "optimizer": "adam", "num-server-rounds": 4}
"""Finite, and accuracy by chance."""
FAR_ABOVE = r"round 1: the training loss is \S+, and without any learning it would be 2\.303: the training diverges"


def test_it_is_said_once_in_the_log_the_summary_the_table_and_the_report(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level("WARNING", "flwr.sglr"):
        summary = inprocess.run(RunConfig.parse({**TOO_LARGE, "run-dir": str(tmp_path)}))

    first, second = summary["warnings"]
    assert re.match(FAR_ABOVE, first)
    assert re.match(r"round 3 of 4: the test accuracy is .* as by chance with 10 classes", second)
    assert [record.getMessage() for record in caplog.records if "round" in record.getMessage()] == [first, second]
    assert json.loads((tmp_path / "status.json").read_text())["warnings"] == [first, second]
    stored = RunDirectory(tmp_path).summary()
    assert stored.warnings == (first, second)
    assert f"{first}\n{second}" in list(closing_table(stored, tmp_path).columns[1].cells)
    html = page.to_html(groups.build([tmp_path]))
    assert all(sentence in html for sentence in (first, second))


def test_a_run_that_is_resumed_says_all_that_was_said(tmp_path: Path) -> None:
    config = RunConfig.parse({**TOO_LARGE, "run-dir": str(tmp_path)})
    inprocess.run(config.replace(num_server_rounds=2))
    (tmp_path / "config.toml").write_text(config.to_toml())
    (tmp_path / "summary.json").unlink()
    summary = inprocess.run(config.replace(resume=True))

    assert [sentence.partition(":")[0] for sentence in summary["warnings"]] == ["round 1", "round 3 of 4"]


def test_a_key_ends_it_and_keeps_what_was_before(tmp_path: Path) -> None:
    good = {**TOO_LARGE, "client-lr": 1e-3, "lr-schedule": "constant", "stop-if-diverged": True}
    config = RunConfig.parse({**good, "run-dir": str(tmp_path)})
    inprocess.run(config.replace(num_server_rounds=1))
    for name in ("config.toml", "summary.json"):
        (tmp_path / name).unlink()
    config = config.replace(client_lr=100.0)
    (tmp_path / "config.toml").write_text(config.to_toml())
    with pytest.raises(Diverged, match=r"round 2: the training loss is .*; the run ends \(stop-if-diverged\)"):
        inprocess.run(config.replace(resume=True))

    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], len(status["warnings"])) == ("failed", 1)
    assert not (tmp_path / "summary.json").exists()
    newest = RunDirectory(tmp_path).latest_checkpoint()
    assert newest is not None
    assert newest.server_round == 1


def test_a_run_that_learns_is_left_alone(tmp_path: Path) -> None:
    values = {**TOO_LARGE, "client-lr": 0.01, "samples-per-client": 100, "evaluate-samples": 200, "local-epochs": 3}
    summary = inprocess.run(RunConfig.parse({**values, "run-dir": str(tmp_path)}))

    assert summary["test_accuracy_mean"] > 0.2
    assert "warnings" not in summary


def test_clients_with_one_sample_and_probabilities_are_said_in_the_summary(tmp_path: Path) -> None:
    common = {"cut": "first", "num-server-rounds": 1, "evaluate-samples": 20, "num-clients": 2}
    for model, samples, said in (
        ("batch_norm_2d", 1, "client(s) 0, 1: all batches are of"),
        ("probabilities", 8, "run-"),
    ):
        where = {"run-dir": str(tmp_path / model), "samples-per-client": samples}
        (sentence,) = inprocess.run(RunConfig.parse({**common, **where, "model": f"case_models:{model}"}))["warnings"]
        assert sentence.startswith(said)


TEN = Classes(tuple("0123456789"))


@pytest.mark.parametrize(
    ("kind", "name", "chance"),
    [
        (TEN, "cross-entropy", math.log(10)),
        (TEN, "binary-cross-entropy", -(math.log(0.1) + 9 * math.log(0.9)) / 10),
        (MultiLabel(("a", "b")), "bce-with-logits", math.log(2)),
        (Values((1,)), "mse", (1 + 9 + 25) / 3),
        (Values((1,)), "l1", 3.0),
        (TEN, "torch.nn:NLLLoss", None),  # of zeros it is zero
        (TEN, "torch.nn:L1Loss", None),
    ],
)
def test_what_the_loss_is_by_chance(kind: Any, name: str, chance: float | None) -> None:
    samples = Batch(torch.zeros(3, 1), torch.tensor([[1.0], [-3.0], [5.0]]))
    assert watch.loss_by_chance(kind, losses.get(name), samples) == (None if chance is None else pytest.approx(chance))


def row(number: int, loss: float, score: float | None = None, test_loss: float | None = None) -> RoundMetrics:
    scores = dict.fromkeys(("validation_score_mean", "validation_score_std", "validation_loss_mean", "test_score_std"))
    counts = dict.fromkeys(("steps", "clients", "bytes_up", "bytes_down", "evaluation_bytes"), 1)
    rest = dict.fromkeys(("client_lr", "server_lr", "seconds", "step_seconds_median"), 1.0)
    known = {"train_loss": loss, "test_score_mean": score, "test_loss_mean": test_loss, "evaluated_images": 1000}
    return RoundMetrics(round=number, **scores, **counts, **rest, **known)  # type: ignore[arg-type]


def looking(rounds: int = 30) -> watch.Watch:
    return watch.begin(rounds, TEN, losses.get("cross-entropy"), ACCURACY, None, [])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_said_once(loss: float) -> None:
    own = looking()
    assert own.look(row(1, loss)) == [own.diverged]
    assert own.diverged.startswith("round 1: the training loss is not finite")
    assert not own.look(row(2, loss))
    assert looking().look(row(1, 2.0, 0.5, loss))[0].startswith("round 1: the test loss is not finite")


@pytest.mark.parametrize(("loss", "far"), [(2.3, False), (9.2, False), (9.3, True), (1e6, True)])
def test_far_above_chance_is_four_times_it(loss: float, far: bool) -> None:
    assert len(looking().look(row(1, loss))) == far


@pytest.mark.parametrize(
    ("rounds", "number", "score", "said"),
    [
        (30, 9, 0.1, False),  # not yet a third
        (30, 10, 0.1, True),
        (30, 10, 0.109, True),  # a standard deviation of 1,000 images is 0.0095
        (30, 10, 0.11, False),
        (30, 10, None, False),
        (3, 1, 0.1, False),
        (3, 3, 0.1, True),
    ],
)
def test_accuracy_by_chance_is_said_after_a_third_of_the_rounds(
    rounds: int, number: int, score: float | None, said: bool
) -> None:
    own = looking(rounds)
    assert len(own.look(row(number, 2.0, score))) == said
    assert not own.look(row(number + 1, 2.0, 0.1)) or not said


def test_what_a_run_said_before_it_was_resumed_is_known() -> None:
    rows = [row(1, 1e6), *(row(number, 2.3, 0.1) for number in range(2, 12))]
    own = looking()
    for each in rows:
        own.look(each)
    history = History.from_json(History(rows).to_json())
    again = watch.begin(30, TEN, losses.get("cross-entropy"), ACCURACY, None, history.rows)
    assert again.sentences == own.sentences
    assert len(again.sentences) == 2


@pytest.mark.parametrize(
    ("loss", "said"), [(2.2, "nothing has been learnt yet"), (0.1, "what is learnt (the training loss is 0.1)")]
)
def test_what_is_learnt_and_does_not_hold_is_not_called_nothing(loss: float, said: str) -> None:
    own = looking(9)
    (sentence,) = own.look(row(3, loss, 0.1))
    assert said in sentence


@pytest.mark.parametrize(
    ("score", "loss", "said"),
    [
        (0.7, 0.65, r"no more than always answering '3' gives \(70% of them\): nothing has been learnt"),
        (0.7, 0.2, r"\(70% of them\): what is learnt \(the training loss is 0.2\) does not hold"),
        (0.72, 0.65, None),  # a standard deviation of 1,000 images is 0.0145
    ],
)
def test_where_one_class_is_frequent_its_share_is_what_is_had_without_learning(
    score: float, loss: float, said: str | None
) -> None:
    samples = Batch(torch.zeros(10, 1), torch.tensor([3] * 7 + [0, 1, 2]))
    own = watch.begin(9, TEN, losses.get("cross-entropy"), ACCURACY, samples, [])
    assert own.most == ("3", 0.7)
    found = own.look(row(3, loss, score))
    assert bool(found) == bool(said)
    assert not said or re.search(said, found[0])
