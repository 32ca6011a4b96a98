"""What `sglr` does about a simulation that does not start, a GPU or a benchmark that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglr_flower.cli import bench, training
from sglr_flower.cli.launch import Launch
from sglr_flower.errors import UserError
from sglr_flower.federation.client import Outcome
from sglr_flower.federation.simulation import Resources, Simulation
from sglr_flower.run import checks
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory

LATE = Outcome(
    False, "RuntimeError: The current node timed out during startup. This could happen because the raylet failed"
)
NO_GCS = Outcome(False, "RuntimeError: Timed out waiting for file /tmp/ray/session_1/gcs_server_port_99109aa0")


def train(outcomes: list[Outcome], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let simulations end like this; how many were started."""
    started = 0

    def run(*_: Any) -> Outcome:
        nonlocal started
        outcome = outcomes[started]
        started += 1
        status = {"state": "finished"} if outcome.succeeded else {"state": "failed"}
        (folder / "status.json").write_text(json.dumps(status))
        return outcome

    simulation = Simulation()
    monkeypatch.setattr(simulation, "run", run)
    monkeypatch.setattr(simulation, "restart", lambda: None)
    size = Resources(2, 1, 0)
    checked = training.Checked(RunConfig.parse({}), RunDirectory(folder), Launch(), size, simulation)
    training.through_flower(checked, None)  # type: ignore[arg-type]
    return started


@pytest.mark.parametrize("late", [LATE, NO_GCS])
def test_ray_that_is_late_is_started_once_more(late: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train([late, Outcome(True, "")], tmp_path, monkeypatch) == 2


def test_ray_that_is_late_again_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="The current node timed out during startup"):
        train([LATE, LATE, Outcome(True, "")], tmp_path, monkeypatch)


@pytest.mark.parametrize("reason", ["another one", LATE.reason])
def test_a_run_that_has_begun_is_not_begun_again(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == LATE.reason:
        (tmp_path / "metrics.csv").write_text("round\n1\n")
    with pytest.raises(UserError, match=reason):
        train([Outcome(False, reason), Outcome(True, "")], tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"server-device": "cuda:7"}, r"server-device = 'cuda:7': torch sees \d GPU\(s\)"), ({}, "")],
)
def test_a_gpu_for_the_server_that_is_not_there_is_refused(values: dict[str, Any], said: str) -> None:
    config = RunConfig.parse(values)
    if said:
        with pytest.raises(UserError, match=said):
            checks.check(config)
    else:
        checks.check(config)


def test_a_benchmark_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="benchmark 'steps': it must be one of step, exchange, scale"):
        bench.command("steps", quick=False, out=None)
