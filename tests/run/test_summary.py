"""What a run came to: written and read back, of this version and of earlier ones, and what is wrong as a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import summaries
import trained_runs

from sglr_flower.errors import UserError
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.summary import Client, ClientCost, Departures, Spent, Summary
from sglr_flower.split.score import Score

FIRST = {
    **{"method": "sglr", "model": "resnet16", "dataset": "digits", "clients": 4, "nodes": 2, "exchange": "stream"},
    **{"rounds": 30, "steps": 450, "seconds": 118.4, "step_seconds_median": 0.19},
    **{"test_accuracy_mean": 0.9, "test_accuracy_std": 0.01},
    **{"last_round_test_accuracy_mean": 0.8, "last_round_test_accuracy_std": 0.02},
    **{"train_loss": None, "bytes_up": 20, "bytes_down": 10, "evaluation_bytes": 0, "seed": 0},
}
"""All that the first version wrote."""

WHOLE = dataclasses.replace(
    summaries.summary(train_loss=0.25, score=Score("mse", higher_is_better=False, fraction=False)),
    left=Departures(2, 1),
    client=Client(ClientCost(1, 2, 3, 4, 5, 6), 8.5, 0.1),
    spent=Spent(1.5, 1e-5, ended_by_privacy_budget=True),
    warnings=("the loss is not a number from round 3 on",),
)


def written(folder: Path, values: Any) -> RunDirectory:
    (folder / "summary.json").write_text(json.dumps(values))
    return RunDirectory(folder)


@pytest.mark.parametrize(
    "summary",
    [
        WHOLE,
        dataclasses.replace(WHOLE, client=Client(None, 8.5), spent=Spent(None, 1e-5, False), warnings=()),
        summaries.summary(train_loss=0.5, bytes_smashed=None),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, summary: Summary) -> None:
    RunDirectory(tmp_path).finish(summary)
    assert RunDirectory(tmp_path).summary() == summary
    assert json.loads((tmp_path / "summary.json").read_text()) == dict(summary)


def test_it_is_a_mapping_by_the_names_that_the_file_has() -> None:
    assert WHOLE["test_mse_mean"] == WHOLE.totals.test_score_mean == 0.5
    assert WHOLE["bytes_up_per_client"] == 7 / 4
    assert (WHOLE["client"]["samples"], WHOLE["epsilon"], WHOLE["departed_nodes"]) == (8.5, 1.5, 1)
    assert "warnings" not in summaries.summary()
    assert "client" not in summaries.summary()


def test_what_is_not_finite_is_null_in_the_file_and_nan_in_what_is_read(tmp_path: Path) -> None:
    RunDirectory(tmp_path).finish(summaries.summary(train_loss=math.inf))
    assert json.loads((tmp_path / "summary.json").read_text())["train_loss"] is None
    assert math.isnan(RunDirectory(tmp_path).summary().totals.train_loss)


def test_one_of_the_first_version_has_what_it_counted(tmp_path: Path) -> None:
    summary = written(tmp_path, FIRST).summary()
    assert (summary.totals.bytes_smashed, summary.left, summary.client, summary.spent) == (None,) * 4
    assert {name: summary.to_json()[name] for name in FIRST} == FIRST
    assert set(summary) - set(FIRST) == {"one_network", "bytes_up_per_client", "bytes_down_per_client"}


def test_a_trained_run_has_no_other_keys_than_before(tmp_path: Path) -> None:
    summary = trained_runs.run(tmp_path / "run")
    ways = ("up", "down")
    sent = ("smashed", "labels", "unicast", "broadcast", "segments_up", "segments_down", "framing_up", "framing_down")
    assert list(summary) == [
        *("method", "model", "dataset", "clients", "one_network", "nodes", "exchange"),
        *("rounds", "steps", "seconds", "step_seconds_median"),
        *(f"{when}test_accuracy_{of}" for when in ("", "last_round_") for of in ("mean", "std")),
        *("evaluated_images", "train_loss", *(f"bytes_{part}" for part in (*ways, *sent)), "evaluation_bytes"),
        *(*(f"bytes_{way}_per_client" for way in ways), "departures", "departed_nodes", "client", "seed"),
    ]
    assert RunDirectory(tmp_path / "run").summary() == summary


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": "many"}, "it has steps = 'many', but it should be a valid integer, unable to parse string"),
        ({"test_accuracy_mean": 77}, "it has test_accuracy_mean = 77, but it should be less than or equal to 1"),
        ({"test_accuracy_std": -1}, "it has test_accuracy_std = -1, but it should be greater than or equal to 0"),
        ({"client": {"samples": -1}}, "it has client.samples = -1, but it should be greater than or equal to 0"),
        ({"client": {}}, "it has no client.samples"),
        ({"client": 5}, "it has client = 5, but it should be"),
        ({"score": 5}, "it has content = 5, but it should be"),
        ({"epsilon": 1.0}, "it has no delta"),
        ({"warnings": "one"}, "it has warnings = 'one', but it should be a valid tuple"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        written(tmp_path, {**FIRST, **changes}).summary()
    assert str(raised.value).startswith(f"{tmp_path / 'summary.json'} is damaged: {sentence}")
    assert not RunDirectory(tmp_path).is_finished()


def test_what_all_versions_wrote_must_be_there(tmp_path: Path) -> None:
    for name in FIRST:
        values = {key: value for key, value in FIRST.items() if key != name}
        with pytest.raises(UserError, match=rf"is damaged: it has no {name}$"):
            written(tmp_path, values).summary()
    with pytest.raises(UserError, match=r"is damaged: it has content = \[\], but it should be an object$"):
        written(tmp_path, []).summary()


def test_a_file_that_is_cut_short_or_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json cannot be read: No such file or directory$"):
        RunDirectory(tmp_path).summary()
    (tmp_path / "summary.json").write_text('{"method": "sg')
    with pytest.raises(UserError, match=r"summary\.json is damaged: EOF"):
        RunDirectory(tmp_path).summary()
    assert not RunDirectory(tmp_path).is_finished()
    assert written(tmp_path, FIRST).is_finished()
