"""A run of any method that is resumed from a checkpoint ends with exactly the weights of an uninterrupted one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from integration.runs import final_weights, largest_difference

from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig


@pytest.mark.parametrize("method", ["sfl", "sfl-v1", "sfl-v2", "ssl", "fedavg", "centralized"])
def test_resuming_changes_nothing(tmp_path: Path, method: str) -> None:
    config = RunConfig.parse(
        {
            "method": method,
            "num-clients": 4,
            "image-size": 8,
            "samples-per-client": 16,
            "num-server-rounds": 4,
            "fraction-train": 0.75,  # a client that did not train in the last round before has no newer moments
            "evaluate-every": 2,
            "evaluate-samples": 20,
            "checkpoint-every": 2,
            "augment": "standard",
            "run-dir": str(tmp_path / "whole"),
        }
    )
    whole = inprocess.run(config, 2)
    # As if killed in round 3: the last checkpoint is round 2's.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "round-0004")
    (tmp_path / "killed" / "summary.json").unlink()

    resumed = inprocess.run(config.replace(resume=True, run_dir=str(tmp_path / "killed")), 2)

    assert largest_difference(final_weights(tmp_path / "killed"), final_weights(tmp_path / "whole")) == 0.0
    figures = ("test_accuracy_mean", "train_loss", "steps", "bytes_up", "bytes_down")
    assert [resumed[name] for name in figures] == [whole[name] for name in figures]
