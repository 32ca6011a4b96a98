"""With a codec the exchange still changes nothing: stream, grid and one process end with the same weights and bytes."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from integration.runs import distance, final_weights, largest_difference
from integration.simulation import simulate

from sglr_flower.flower.server import serve
from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split.codecs import Form

pytestmark = pytest.mark.flower

CASES = (
    ("int8-channel", "bfloat16"),
    ("randtopk:0.2:0.1", "int8"),
    ("float16", "randtopk:0.2:0.1"),
    ("none", "topk:0.1"),
)
WAYS = {"stream": "server", "grid": "client"}
"""Exchange -> evaluate: both kinds of evaluation on the way."""
ROUNDS, SAMPLES = 2, 20


def settings(case: tuple[str, str]) -> dict[str, object]:
    up, down = case
    return {
        "wire-up": up,
        "wire-down": down,
        "num-clients": 3,  # on two nodes: of two clients and of one
        "samples-per-client": SAMPLES,
        "num-server-rounds": ROUNDS,
        "splitavg-phi": 0.67,
        "dtype": "float64",
        "evaluate-every": 0,
        "evaluate-samples": 30,
        "checkpoint-every": ROUNDS,
    }


def run_dir(root: Path, case: tuple[str, str], way: str) -> Path:
    return root / "-".join([*case, way]).replace(":", "_")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All cases over both exchanges in one simulation of two nodes, and in one process as one node."""
    root = tmp_path_factory.mktemp("codecs")

    def body(grid):
        for case, (exchange, evaluate) in itertools.product(CASES, WAYS.items()):
            where = {"exchange": exchange, "evaluate": evaluate, "run-dir": str(run_dir(root, case, exchange))}
            serve(grid, {**settings(case), **where})

    simulate(body, nodes=2, workers=2)
    for case in (*CASES, ("none", "none")):
        inprocess.run(RunConfig.parse({**settings(case), "run-dir": str(run_dir(root, case, "local"))}), 1)
    return root


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("exchange", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_the_weights_and_the_score_of_one_process(trained: Path, case: tuple[str, str], exchange: str) -> None:
    on_flower, local = run_dir(trained, case, exchange), run_dir(trained, case, "local")
    expected = final_weights(local)
    assert largest_difference(final_weights(on_flower), expected) < 1e-9
    assert summary(on_flower)["test_accuracy_mean"] == summary(local)["test_accuracy_mean"]
    assert distance(expected, final_weights(run_dir(trained, ("none", "none"), "local"))) > 1e-3  # the codec is at work


@pytest.mark.parametrize("exchange", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_are_those_of_the_codecs(trained: Path, case: tuple[str, str], exchange: str) -> None:
    folder = run_dir(trained, case, exchange)
    config, found = RunDirectory(folder).read_config(), summary(folder)
    shape = assembly.model(config).smashed_shape()
    up, down = (Form(codec, shape, assembly.dtype(config)).sample_bytes() for codec in assembly.wire_codecs(config))
    samples = ROUNDS * 3 * SAMPLES
    assert found["bytes_smashed"] == samples * up
    assert found["bytes_labels"] == samples * 8
    # Two of the three clients are active in every step: a third of the gradients is the others' own.
    assert found["bytes_unicast"] == samples // 3 * down
    plain = 8 * math.prod(shape)
    assert (up < plain / 1.9) == (case[0] != "none")
    assert 0 < found["bytes_framing_up"] < 0.1 * found["bytes_up"]
    same = run_dir(trained, case, "grid" if exchange == "stream" else "stream")
    assert (found["bytes_up"], found["bytes_down"]) == tuple(summary(same)[f"bytes_{way}"] for way in ("up", "down"))
