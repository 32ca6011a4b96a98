"""SplitAvg over clients and samples in front of batch norm: the clients learn nothing, and the run says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglr_flower.run import assembly, checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory

VALUES = {
    **{"dataset": "digits", "model": "case_models:norm_first", "cut": "1", "num-clients": 3, "samples-per-client": 16},
    **{"batch-size": 8, "num-server-rounds": 1, "optimizer": "sgd", "client-lr": 0.5, "dtype": "float64"},
    **{"splitavg-phi": 1.0, "evaluate-samples": 20, "splitlr-alpha": 0.0},
}


def moved(config: RunConfig) -> float:
    """The farthest that a weight of client 0 comes in the run."""
    inprocess.run(config)
    checkpoint = RunDirectory(Path(config.run_dir)).latest_checkpoint()
    assert checkpoint is not None
    trained = checkpoint.client_states([0])[0]
    initial = assembly.cohort(config, [0]).state(0)
    return max((trained[key] - initial[key]).abs().max().item() for key in initial if initial[key].is_floating_point())


@pytest.mark.parametrize(
    ("over", "phi", "vanishes"),
    [("clients-and-samples", 1.0, True), ("clients-and-samples", 0.5, False), ("clients", 1.0, False)],
)
def test_the_clients_stand_still_and_it_is_said(tmp_path: Path, over: str, phi: float, vanishes: bool) -> None:
    values = VALUES | {"splitavg-over": over, "splitavg-phi": phi, "run-dir": str(tmp_path / "run")}
    config = RunConfig.parse(values)
    said = checks.remarks(config, {0: 16, 1: 16, 2: 16})
    assert any("the mean cut gradient is zero" in sentence for sentence in said) is vanishes
    assert (moved(config) < 1e-12) is vanishes
    summary = RunDirectory(tmp_path / "run").summary()
    assert any("the mean cut gradient is zero" in sentence for sentence in summary.warnings) is vanishes


def test_another_cut_gradient_than_the_average_is_not_spoken_of() -> None:
    psl = RunConfig.parse(VALUES | {"splitavg-over": "clients-and-samples", "method": "psl"})
    assert checks.remarks(psl, {0: 16, 1: 16, 2: 16}) == []
