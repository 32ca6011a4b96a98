"""Every method over real Flower gives the weights of the in-process driver, which `tests/split/test_methods.py` checks.

The keel test covers the parallel methods; here are those that move weights, train in turns or have no server segment.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from integration.runs import final_weights, largest_difference
from integration.simulation import simulate

from sglr_flower.flower.server import serve
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig

pytestmark = pytest.mark.flower

METHODS = ("sfl", "sfl-v1", "sfl-v2", "ssl", "fedavg", "centralized")
WAYS = {"stream": "server", "grid": "client"}
"""Exchange -> evaluate: both kinds of evaluation on the way."""


def settings(method: str) -> dict[str, object]:
    return {
        "method": method,
        "num-clients": 3,  # on two nodes: of two clients and of one
        "partition": "linear",
        "samples-per-client": 24,
        "num-server-rounds": 2,
        "dtype": "float64",
        "evaluate-every": 0,
        "evaluate-samples": 20,
        "checkpoint-every": 2,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All methods over both exchanges in one simulation of two nodes, and in-process."""
    root = tmp_path_factory.mktemp("methods")

    def body(grid):
        for exchange, evaluate in WAYS.items():
            for method in METHODS:
                where = {"exchange": exchange, "evaluate": evaluate, "run-dir": str(root / f"{method}-{exchange}")}
                serve(grid, {**settings(method), **where})

    simulate(body, nodes=2, workers=2)
    for method in METHODS:
        inprocess.run(RunConfig.parse({**settings(method), "run-dir": str(root / method)}), 1)
    return root


@pytest.mark.parametrize("exchange", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_gives_the_weights_and_the_score_of_one_process(trained: Path, method: str, exchange: str) -> None:
    on_flower, in_process = trained / f"{method}-{exchange}", trained / method
    weights, expected = final_weights(on_flower), final_weights(in_process)
    if exchange == "grid":  # the nodes keep their clients' states: what they trained, not yet what they share
        weights, expected = {"server": weights["server"]}, {"server": expected["server"]}
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (on_flower, in_process)]

    assert largest_difference(weights, expected) < 1e-9
    assert summaries[0]["test_accuracy_mean"] == summaries[1]["test_accuracy_mean"]
    assert summaries[0]["train_loss"] == pytest.approx(summaries[1]["train_loss"], abs=1e-9)
    assert summaries[0]["exchange"] == ("none" if method in ("fedavg", "centralized") else exchange)
    # A node's mean of its clients goes up, not every client's segment: with two nodes, two of them a round.
    assert (summaries[0]["bytes_up"] == 0) == (method == "centralized")
