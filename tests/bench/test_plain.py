"""What steps are compared with trains the same: else a ratio of times would say nothing."""

from __future__ import annotations

from pathlib import Path

from integration.runs import final_weights, largest_difference

from benchmarks.plain import PlainLoop, weights
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig


def test_the_plain_loop_has_the_weights_of_a_run(tmp_path: Path) -> None:
    config = RunConfig.parse(
        {
            "num-clients": 3,
            "samples-per-client": 16,
            "num-server-rounds": 2,
            "evaluate-every": 0,
            "evaluate-samples": 10,
            "dtype": "float64",
            "run-dir": str(tmp_path / "run"),
        }
    )
    loop = PlainLoop(config)
    for server_round in (1, 2):
        loop.round(server_round)
    inprocess.run(config)

    assert len(loop.step_seconds) == 4
    assert largest_difference(final_weights(tmp_path / "run"), weights(loop)) < 1e-9
