"""Data that are no classified images, over real Flower: from a module outside the repository, and a table."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from integration.runs import final_weights, largest_difference
from integration.simulation import simulate

from sglr_flower.flower.server import serve
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig

pytestmark = pytest.mark.flower

OWN = {
    "dataset": "somebodys_data:pairs",
    "model": "somebodys_data:recurrent",
    "loss": "somebodys_data:pair_loss",
    "score": "somebodys_data:off_by",
}
TABLE = {"dataset": "diabetes", "model": "mlp", "loss": "torch.nn.functional:mse_loss"}
RUNS = {
    "own-stream": {**OWN, "exchange": "stream", "evaluate": "client"},
    "own-grid": {**OWN, "exchange": "grid", "evaluate": "server"},
    "table-stream": {**TABLE, "exchange": "stream", "evaluate": "server"},
    "table-grid": {**TABLE, "exchange": "grid", "evaluate": "client"},
    "task-stream": {"task": "somebodys_task:task", "partition": "own", "exchange": "stream", "evaluate": "server"},
}


def settings(name: str) -> dict[str, object]:
    common = {"num-clients": 3, "samples-per-client": 0, "num-server-rounds": 2, "dtype": "float64"}
    return {**common, "batch-size": 64 if "table" in name else 4, **RUNS[name]}


def test_weights_scores_and_losses_are_those_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for own, name in (("own_sources.py", "somebodys_data.py"), ("own_task.py", "somebodys_task.py")):
        shutil.copy(Path(__file__).parents[1] / own, outside / name)
    monkeypatch.syspath_prepend(str(outside))
    monkeypatch.setenv("PYTHONPATH", f"{outside}:{':'.join(sys.path)}")

    def body(grid):
        for name in RUNS:
            serve(grid, {**settings(name), "run-dir": str(tmp_path / name)})

    simulate(body, nodes=2, workers=2)
    for name in RUNS:
        expected = inprocess.run(RunConfig.parse({**settings(name), "run-dir": str(tmp_path / f"{name}-here")}), 2)
        found = json.loads((tmp_path / name / "summary.json").read_text())
        assert found["exchange"] == RUNS[name]["exchange"]
        assert largest_difference(final_weights(tmp_path / name), final_weights(tmp_path / f"{name}-here")) < 1e-9
        score = expected.get("score", {"name": "accuracy"})["name"]
        assert score == {"own": "off_by", "table": "mse", "task": "accuracy"}[name.partition("-")[0]]
        for figure in (f"test_{score}_mean", f"last_round_test_{score}_std", "train_loss"):
            assert found[figure] == pytest.approx(expected[figure], abs=1e-9)
        for part in ("bytes_smashed", "bytes_labels", "bytes_unicast", "bytes_broadcast"):
            assert found[part] == expected[part]
