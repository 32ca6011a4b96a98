"""TensorBoard's events, read back by its own reader."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sglr_flower.run import track
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import RoundMetrics, columns
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.split.score import ACCURACY


def row(number: int, loss: float) -> RoundMetrics:
    values = dict.fromkeys(columns(ACCURACY), 1)
    return RoundMetrics(**{**ACCURACY.unnamed(values), "round": number, "train_loss": loss, "test_loss_mean": None})


def claimed(folder: Path) -> RunDirectory:
    directory = RunDirectory(folder)
    directory.claim(RunConfig.parse({}))
    return directory


def test_a_round_is_a_step_and_lost_rounds_are_gone(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "run")
    with track.observers(RunConfig.parse({}), directory) as observers:
        observers.begin([])
        for number in (1, 2, 3):
            observers.round(row(number, 1 / number))
    with track.observers(RunConfig.parse({}), directory) as observers:
        observers.begin([row(1, 1.0)])  # its last checkpoint is after round 1
        observers.round(row(2, 7.0))
        observers.end({"rounds": 2})

    events = EventAccumulator(str(directory.path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(columns(ACCURACY)) - {"round", "test_loss_mean"}
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 1.0), (2, 7.0)]


def test_events_that_cannot_be_written_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = claimed(tmp_path / "run")
    (directory.path / "tensorboard").write_text("a file where the folder should be")
    with track.observers(RunConfig.parse({}), directory) as observers:
        observers.begin([])
        observers.round(row(1, 1.0))
        observers.end({})

    (warning,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert warning.startswith("TensorBoard is off: ")
    assert read_json(directory.path / "status.json")["observers"] == [{"sentence": warning, "failed": True}]
