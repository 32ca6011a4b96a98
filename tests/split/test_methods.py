"""Every method, trained by the engine in one process, against its plain PyTorch loop.

float64 and 1e-9: both sides make the same sums, at most in another order.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from integration.runs import distance, final_weights, largest_difference
from reference import METHODS, Weights, plain_loop

from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig, Scalar

ALIKE: dict[str, Scalar] = {
    "num-clients": 4,
    "image-size": 8,
    "samples-per-client": 9,
    "batch-size": 2,  # 10 steps: 2 rounds of 2, 2, 2, 2 and 1 images
    "num-server-rounds": 2,
    "splitavg-phi": 0.5,
    "splitlr-alpha": 1.0,
    "evaluate-every": 0,
    "evaluate-samples": 10,
    "checkpoint-every": 10,
    "dtype": "float64",
    "seed": 3,
}
UNLIKE: dict[str, Scalar] = ALIKE | {
    "num-clients": 7,
    "partition": "square",
    "samples-per-client": 12,  # 8 images, and then this cap for the others
    "batch-size": 5,
    "optimizer": "sgd",
    "client-lr": 0.05,
}
UNUSUAL: dict[str, Scalar] = UNLIKE | {
    "fraction-train": 0.3,  # 2 of the 7; client 0 always, 2 and 5 by turns
    "splitavg-phi": 1.0,
    "local-epochs": 2,
    "num-server-rounds": 3,
    "optimizer": "adam",
    "client-lr": 1e-3,
    "lr-schedule": "cosine",
    "sample-order": "once",
    "loss": "binary-cross-entropy",
    "seed": 5,
}

CYCLIC: dict[str, Scalar] = UNLIKE | {
    "num-server-rounds": 3,
    "lr-schedule": "cyclic:low=0.5,high=1.5,period=1.7,phase=0.3",
    "server-lr-schedule": "one-cycle:low=0.4,high=1.2,length=0.6,start=0.2",
}

Items = tuple[tuple[str, Scalar], ...]


def items(settings: Mapping[str, Scalar], method: str) -> Items:
    return tuple((settings | {"method": method}).items())


@functools.cache
def loop(settings: Items) -> Weights:
    return plain_loop(RunConfig.parse(dict(settings)))


def engine(settings: Items, num_nodes: int) -> Weights:
    with tempfile.TemporaryDirectory() as folder:
        inprocess.run(RunConfig.parse(dict(settings) | {"run-dir": f"{folder}/run"}), num_nodes)
        return final_weights(Path(folder) / "run")


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_as_its_plain_loop(method: str, nodes: int) -> None:
    case = items(ALIKE, method)

    assert largest_difference(engine(case, nodes), loop(case)) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_clients_of_different_sizes_as_its_plain_loop(method: str) -> None:
    """With SGD: Adam hides a gradient's scale. Clients leave the steps when their images are used up."""
    case = items(UNLIKE, method)

    assert largest_difference(engine(case, 3), loop(case)) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_to_participation_epochs_schedule_order_and_loss(method: str) -> None:
    """With Adam, whose moments a client keeps over the rounds in which it idles."""
    case = items(UNUSUAL, method)

    assert largest_difference(engine(case, 3), loop(case)) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_rates_cycle_with_every_step_on_each_side_by_its_own_schedule(method: str) -> None:
    """Clients of different sizes: each one's cycle runs by its own batches, the server's by all steps of the round."""
    case = items(CYCLIC, method)

    assert largest_difference(engine(case, 3), loop(case)) < 1e-9


@pytest.mark.parametrize("method", ["sglr", "fedavg"])
def test_stacked_clients_cycle_too(method: str) -> None:
    case = items(CYCLIC | {"cohort": "stacked"}, method)

    assert largest_difference(engine(case, 2), loop(case)) < 1e-9


def test_the_cycles_of_the_two_sides_and_their_steps_matter() -> None:
    others = {
        "cyclic": CYCLIC,
        "server as clients": CYCLIC | {"server-lr-schedule": ""},
        "another phase": CYCLIC | {"lr-schedule": "cyclic:low=0.5,high=1.5,period=1.7,phase=0.8"},
        "constant": CYCLIC | {"lr-schedule": "constant"},
    }
    ends = {name: one_network(loop(items(settings, "sglr"))) for name, settings in others.items()}

    assert_apart(CYCLIC, ends, set())


@pytest.mark.parametrize("phase", ["first:0.5", "last:0.5"])
def test_while_splitavg_is_out_of_phase_every_client_gets_its_own_gradient(phase: str) -> None:
    case = items(ALIKE | {"splitavg-phase": phase, "splitavg-phi": 1.0}, "sgl")

    assert largest_difference(engine(case, 1), loop(case)) < 1e-9


def test_the_phases_of_splitavg_differ_from_each_other() -> None:
    phases = ("all", "first:0.5", "last:0.5")
    larger = ALIKE | {"image-size": 16}  # of images as small as the others' the phases' ends are nearer
    ends = {p: loop(items(larger | {"splitavg-phase": p, "splitavg-phi": 1.0}, "sgl")) for p in phases}
    ends["never"] = loop(items(larger, "psl"))

    assert_apart(larger, {name: one_network(weights) for name, weights in ends.items()}, set())


@pytest.mark.parametrize("settings", [ALIKE, UNLIKE, UNUSUAL], ids=["alike", "unlike", "unusual"])
def test_the_methods_differ_from_each_other(settings: dict[str, Scalar]) -> None:
    """Otherwise agreement with a plain loop would say nothing. SplitFed V1 alone is an old friend: FedAvg, cut."""
    ends = {method: one_network(loop(items(settings, method))) for method in METHODS}

    assert_apart(settings, ends, {("sfl-v1", "fedavg")})


def one_network(weights: Weights) -> Weights:
    """Client 0's network, put together where it is cut."""
    return {"whole": weights["client-0"] | weights["server"]}


def assert_apart(settings: Mapping[str, Scalar], ends: Mapping[str, Weights], same: set[tuple[str, str]]) -> None:
    """Any two ends are further apart than a tenth of the shorter way from the initial weights to one of them."""
    start: Weights = {"whole": assembly.model(RunConfig.parse(settings)).whole(0).state_dict()}
    for left, right in itertools.combinations(ends, 2):
        way = min(distance(start, ends[left]), distance(start, ends[right]))
        assert (distance(ends[left], ends[right]) < 0.1 * way) == ((left, right) in same), (left, right)


@pytest.mark.parametrize("method", ["sglr", "slr", "sgl", "psl"])
def test_clients_that_are_never_averaged_start_apart(method: str) -> None:
    """The loops take initial weights from the package, so a mistake there would be theirs too."""
    model = assembly.model(RunConfig.parse(ALIKE | {"method": method}))
    first, second = ({"client": model.client_segment(client).state_dict()} for client in (0, 1))

    assert distance(first, second) > 1
