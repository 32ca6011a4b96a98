"""The keel: any exchange, any number of nodes and any spread of clients gives the weights of a plain PyTorch loop.

ResNet16 and 4 clients, on real Flower simulations.

In float64 they train 10 steps (2 rounds of 5, the last batch of each ragged) with Adam and must agree to 1e-9: both
sides do the same sums, at most in another order.

In float32 no such bound holds over steps. Rounding in another order puts a ReLU's input across zero here and there, and
Adam's early step is lr * g / (|g| + 1e-8), so a weight whose gradient is small moves by a whole step of either sign.
How many are hit depends on the CPU: runs with one and with two threads end up to 0.2 of their way apart. So in float32,
and in bfloat16, one step of gradient descent is compared: by how much the two sides' gradients differ, relative to
their norm. Measured: 2e-6, and 6e-3 where a ReLU is hit; in bfloat16, where many are, 0.12 to 0.17. With phi or alpha
set otherwise it is 0.4 and more.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
from integration.runs import distance, final_weights, largest_difference
from integration.simulation import simulate
from reference import Weights, plain_loop

from sglr_flower.flower.server import serve
from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig

pytestmark = pytest.mark.flower

Case = tuple[float, float, str, str]
PHIS, ALPHAS = (0.0, 0.5, 1.0), (0.0, 1.0)
SCHEDULES = {
    "constant": {},
    "cyclic": {
        "lr-schedule": "cyclic:low=0.2,high=2,period=1.5",
        "server-lr-schedule": "cyclic:low=0.5,high=3,period=0.7,phase=0.5",
    },
}
CASES: list[Case] = list(itertools.product(PHIS, ALPHAS, ("float32", "float64"), ("constant",)))
CASES += [(0.5, 1.0, "float64", "cyclic")]
CASES += [(0.5, 1.0, "bfloat16", "constant")]  # float32 with autocast
TOLERANCES = {"float32": 0.05, "bfloat16": 0.3}  # of the gradients' norm
LAYOUTS = {1: "1 x 4", 2: "2 x 2", 4: "4 x 1"}
EXCHANGES = ("in-process", "stream", "grid")

TEN_STEPS = {"samples-per-client": 36, "num-server-rounds": 2, "checkpoint-every": 2}
ONE_STEP = {
    "samples-per-client": 8,
    "num-server-rounds": 1,
    "checkpoint-every": 1,
    "optimizer": "sgd",
    "client-lr": 1.0,
}


def settings(case: Case) -> dict[str, object]:
    phi, alpha, dtype, schedule = case
    return {
        **(TEN_STEPS if dtype == "float64" else ONE_STEP),
        **SCHEDULES[schedule],
        "num-clients": 4,
        "splitavg-phi": phi,
        "splitlr-alpha": alpha,
        "dtype": "float64" if dtype == "float64" else "float32",
        "autocast": "bfloat16" if dtype == "bfloat16" else "none",
        "evaluate-every": 0,
        "evaluate-samples": 10,
        "seed": 3,
    }


@functools.cache
def expected(case: Case) -> Weights:
    return plain_loop(RunConfig.parse(settings(case)))


def relative_difference(weights: Weights, case: Case) -> float:
    """How far they lie from where the plain loop ends, relative to how far from there it began."""
    config = RunConfig.parse(settings(case))
    model = assembly.model(config)
    initial = {f"client-{i}": model.client_segment(i).state_dict() for i in assembly.clients(config)}
    way = distance({"server": model.server_segment().state_dict(), **initial}, expected(case))
    return distance(weights, expected(case)) / way


def run_dir(root: Path, exchange: str, case: Case) -> Path:
    return root / f"{exchange}-{'-'.join(str(part) for part in case)}"


@pytest.fixture(scope="module", params=list(LAYOUTS), ids=list(LAYOUTS.values()))
def trained(request, tmp_path_factory) -> Path:
    """All cases trained over both exchanges in one simulation of this many nodes, and in-process."""
    root, nodes = tmp_path_factory.mktemp("keel"), request.param

    def body(grid):
        for exchange, case in itertools.product(("stream", "grid"), CASES):
            serve(grid, {**settings(case), "exchange": exchange, "run-dir": str(run_dir(root, exchange, case))})

    simulate(body, nodes, workers=nodes)
    for case in CASES:
        inprocess.run(RunConfig.parse({**settings(case), "run-dir": str(run_dir(root, "in-process", case))}), nodes)
    return root


@pytest.mark.timeout(600)
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"phi={case[0]}-alpha={case[1]}-{case[2]}-{case[3]}")
def test_gives_the_weights_of_a_plain_loop(trained: Path, exchange: str, case: Case) -> None:
    weights, dtype = final_weights(run_dir(trained, exchange, case)), case[2]
    if dtype == "float64":
        assert largest_difference(weights, expected(case)) < 1e-9
    else:
        assert relative_difference(weights, case) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_cases_differ_from_each_other(dtype: str) -> None:
    """Otherwise agreement with the plain loop would say nothing about phi, alpha and schedules."""
    for left, right in itertools.permutations([case for case in CASES if case[2] == dtype], 2):
        assert relative_difference(expected(left), right) > max(TOLERANCES.values())
