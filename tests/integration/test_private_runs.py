"""Defences and differential privacy over real Flower: the weights of one process, and a run that ends at its budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from integration.runs import final_weights, largest_difference
from integration.simulation import simulate

from sglr_flower.errors import UserError
from sglr_flower.flower.server import serve
from sglr_flower.run import inprocess
from sglr_flower.run.accounting import LEDGER, epsilon
from sglr_flower.run.config import RunConfig

ALL = {
    "num-clients": 4,
    "samples-per-client": 20,
    "num-server-rounds": 2,
    "evaluate-every": 0,
    "evaluate-samples": 20,
    "dtype": "float64",
    "nopeek-weight": 0.2,
    "smashed-clip": 20,
    "smashed-noise": 0.05,
    "dp-noise": 0.01,
    "wire-up": "randtopk:0.5:0.2",
    "wire-down": "int8",
    "noise-seed": 7,
}
LIMITED = {
    **ALL,
    "num-server-rounds": 5,
    "noise-seed": -1,
    "dp-noise": 20.0,
    "dp-epsilon-budget": epsilon(20.0, 12, 1e-5) * 1.01,
    "evaluate": "client",
}
"""Three steps in a round, two releases in each."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root, said = tmp_path_factory.mktemp("privacy"), dict[str, str]()

    def body(grid):
        for exchange in ("stream", "grid"):
            serve(grid, {**ALL, "exchange": exchange, "run-dir": str(root / exchange)})
        serve(grid, {**LIMITED, "run-dir": str(root / "limited")})
        try:
            serve(grid, {**LIMITED, "dp-epsilon-budget": 0.01, "run-dir": str(root / "none")})
        except UserError as error:
            said["none"] = str(error)

    simulate(body, nodes=2, workers=2)
    return root, said


@pytest.mark.flower
@pytest.mark.parametrize("exchange", ["stream", "grid"])
def test_over_flower_it_is_the_training_of_one_process(trained, exchange: str, tmp_path: Path) -> None:
    inprocess.run(RunConfig.parse({**ALL, "run-dir": str(tmp_path / "run")}))
    assert largest_difference(final_weights(trained[0] / exchange), final_weights(tmp_path / "run")) < 1e-9


@pytest.mark.flower
def test_a_run_ends_at_its_budget(trained) -> None:
    summary, status = (
        json.loads((trained[0] / "limited" / f"{name}.json").read_text()) for name in ("summary", "status")
    )
    assert (summary["rounds"], summary["ended_by_privacy_budget"], status["state"]) == (2, True, "finished")
    assert summary["epsilon"] == epsilon(20.0, 12, 1e-5)
    assert summary["evaluated_images"] == 20


@pytest.mark.flower
def test_a_budget_for_no_round_sends_nothing(trained) -> None:
    root, said = trained
    assert said["none"].startswith("run-config key dp-epsilon-budget = 0.01: round 1 would bring epsilon to")
    assert not (root / "none" / LEDGER).exists()


def test_sglr_says_that_the_budget_ended_the_run_and_ends_well(tmp_path: Path) -> None:
    settings = [part for key, value in LIMITED.items() for part in ("-s", f"{key}={value}")]
    for arguments in (["run", "--in-process", "--run-dir", "run", *settings], ["resume", "run"]):
        command = [sys.executable, "-m", "sglr_flower.cli", *arguments]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "at delta 1e-05; the budget allowed no further round" in done.stdout
