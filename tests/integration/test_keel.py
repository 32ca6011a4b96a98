"""The keel: any exchange, any number of nodes and any spread of clients gives the weights of a plain PyTorch loop.

4 clients, 10 steps (2 rounds of 5, the last batch of each ragged), ResNet16, on real Flower simulations.

Tolerances. In float64 1e-9: both sides do the same sums, at most in another order. In float32 there is no such bound:
rounding in another order flips a ReLU here and there, and an early Adam step is lr * g / (|g| + 1e-8), so a weight
whose gradient is rounding noise around zero moves by up to a whole step of either sign. How far that leads shows the
plain loop itself: run in float32 and in float64 it ends 0.14 to 0.20 of its whole way apart. An exchange must not end
further from the float32 loop than 1.5 times that (measured: 0.002 to 0.07 of the way); with phi or alpha set otherwise
it ends 0.5 and more of the way apart.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
from integration.runs import distance, final_weights, largest_difference
from integration.simulation import simulate
from reference import Weights, plain_loop

from sglr_flower import inprocess
from sglr_flower.config import RunConfig
from sglr_flower.strategy import serve

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
CASES += [(0.5, 1.0, dtype, "cyclic") for dtype in ("float32", "float64")]
CASES += [(0.5, 1.0, "bfloat16", "constant")]  # float32 with autocast
LAYOUTS = {1: "1 x 4", 2: "2 x 2", 4: "4 x 1"}
EXCHANGES = ("in-process", "stream", "grid")


def settings(case: Case) -> dict[str, object]:
    phi, alpha, dtype, schedule = case
    return {
        **SCHEDULES[schedule],
        "num-clients": 4,
        "samples-per-client": 36,
        "num-server-rounds": 2,
        "splitavg-phi": phi,
        "splitlr-alpha": alpha,
        "dtype": "float64" if dtype == "float64" else "float32",
        "autocast": "bfloat16" if dtype == "bfloat16" else "none",
        "evaluate-every": 0,
        "evaluate-samples": 10,
        "checkpoint-every": 2,
        "seed": 3,
    }


@functools.cache
def expected(case: Case) -> Weights:
    return plain_loop(RunConfig.parse(settings(case)))


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
    phi, alpha, dtype, schedule = case
    weights = final_weights(run_dir(trained, exchange, case))
    if dtype == "float64":
        assert largest_difference(weights, expected(case)) < 1e-9
    else:
        rounding = distance(expected(case), expected((phi, alpha, "float64", schedule)))
        assert distance(weights, expected(case)) < 1.5 * rounding


def test_the_cases_differ_from_each_other() -> None:
    """Otherwise agreement with the plain loop would say nothing about phi, alpha and schedules."""
    for left, right in itertools.combinations([case for case in CASES if case[2] == "float64"], 2):
        rounding = distance(expected(left), expected((*left[:2], "float32", left[3])))
        assert distance(expected(left), expected(right)) > 1.5 * rounding
