"""Where two methods are one and the same by their equations, the engine's two ways must end in the same weights.

float64 and 1e-9, without a plain loop in between: what both a method and its loop get wrong alike shows here.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from integration.runs import distance, final_weights, largest_difference
from reference import METHODS, Weights
from torch import Tensor
from torch.nn import functional as F

from sglr_flower.data import partition
from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig, Scalar

SETTINGS: dict[str, Scalar] = {
    "num-clients": 4,
    "image-size": 8,
    "samples-per-client": 9,
    "batch-size": 2,
    "num-server-rounds": 2,
    "evaluate-every": 0,
    "evaluate-samples": 10,
    "checkpoint-every": 10,
    "dtype": "float64",
    "seed": 5,
}
UNLIKE: dict[str, Scalar] = {
    "num-clients": 7,
    "partition": "square",
    "samples-per-client": 12,  # 8 images, and then this cap for the others
    "batch-size": 5,
}
ALONE: dict[str, Scalar] = {"num-clients": 1, "num-server-rounds": 3}


def engine(method: str, changes: Mapping[str, Scalar]) -> Weights:
    """The final weights of a run of `SETTINGS` with changes."""
    return _trained(tuple((SETTINGS | changes | {"method": method}).items()))


@functools.cache
def _trained(settings: tuple[tuple[str, Scalar], ...]) -> Weights:
    with tempfile.TemporaryDirectory() as folder:
        inprocess.run(RunConfig.parse(dict(settings) | {"run-dir": f"{folder}/run"}))
        return final_weights(Path(folder) / "run")


def whole(weights: Weights, client: int = 0) -> Weights:
    """A client's network, put together where it is cut: slicing leaves the names as they were."""
    return {"whole": weights[f"client-{client}"] | weights["server"]}


@pytest.mark.parametrize(
    ("alpha", "phi", "method"),
    [(0.0, 0.5, "sgl"), (1.0, 0.0, "slr"), (0.0, 0.0, "psl")],
)
def test_sglr_without_a_remedy_is_the_method_that_never_had_it(alpha: float, phi: float, method: str) -> None:
    without = engine("sglr", {"splitlr-alpha": alpha, "splitavg-phi": phi})

    # What is set for a remedy that the method does not have must not matter.
    assert largest_difference(without, engine(method, {"splitlr-alpha": 1.0, "splitavg-phi": 0.5})) < 1e-9


@pytest.mark.parametrize("method", [method for method in METHODS if method != "centralized"])
def test_with_one_client_every_method_is_centralized_training(method: str) -> None:
    """With Adam over three rounds: averaging one client, or handing it its own segment, must not touch its moments."""
    alone = ALONE | {"splitlr-alpha": 1.0, "splitavg-phi": 1.0}
    split, joined = engine(method, alone), engine("centralized", alone)

    assert split.keys() == joined.keys() == {"server", "client-0"}
    assert bool(split["server"]) == (method != "fedavg")
    assert largest_difference(whole(split), whole(joined)) < 1e-9


def test_with_one_client_sequential_split_learning_is_parallel() -> None:
    twice = ALONE | {"local-epochs": 2}

    assert largest_difference(engine("ssl", twice), engine("psl", twice)) < 1e-9


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 1e-3), ("sgd", 0.05)])
def test_splitfed_v1_is_federated_averaging_of_the_whole_network(optimizer: str, rate: float) -> None:
    """Batch norm's statistics included: where a client's network is cut does not touch what it learns."""
    settings = UNLIKE | {"optimizer": optimizer, "client-lr": rate}
    cut, uncut = engine("sfl-v1", settings), engine("fedavg", settings)

    for client in range(7):
        assert largest_difference(whole(cut, client), whole(uncut, client)) < 1e-9


@pytest.mark.parametrize("method", ["sfl", "sfl-v1", "sfl-v2", "ssl", "fedavg"])
def test_after_a_round_all_clients_hold_the_same_participants_or_not(method: str) -> None:
    ends = engine(method, {"fraction-train": 0.5})

    for client in (1, 2, 3):
        assert largest_difference(whole(ends), whole(ends, client)) == 0


def test_sfl_with_one_step_of_sgd_per_round_is_fedsgd() -> None:
    """The server segment, pool and linear, has no batch norm, so a joint batch is the sum of the clients' own."""
    settings = UNLIKE | {
        "batch-size": 12,  # a client's whole share
        "cut": "stage3",
        "optimizer": "sgd",
        "client-lr": 0.05,
        "num-server-rounds": 3,
    }
    config = RunConfig.parse(SETTINGS | settings)
    expected = fed_sgd(config)
    start = {"whole": assembly.model(config).whole(0).state_dict()}

    assert distance(expected, start) > 0.01
    assert largest_difference(whole(engine("sfl", settings)), expected) < 1e-9


def fed_sgd(config: RunConfig) -> Weights:
    """FedSGD: w <- w - eta * d/dw sum_i delta_i F_i(w), F_i the loss on all of client i's data (arXiv 1602.05629)."""
    train = assembly.splits(config).train
    shares = partition.partition(
        train.labels, config.partition, config.num_clients, config.samples_per_client, config.seed
    )
    total = sum(len(share) for share in shares)
    network = assembly.model(config).whole(0)
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    for _ in range(config.num_server_rounds):
        objective: Tensor = torch.zeros((), dtype=torch.float64)
        mean = {name: torch.zeros_like(buffer, dtype=torch.float64) for name, buffer in buffers.items()}
        for share in shares:
            images = (train.images[share].double() / 127.5 - 1).repeat(1, 3, 1, 1)
            moved = {name: buffer.clone() for name, buffer in buffers.items()}
            logits = torch.func.functional_call(network, parameters | moved, (images,))
            objective = objective + len(share) / total * F.cross_entropy(logits, train.labels[share])
            mean = {name: mean[name] + len(share) / total * moved[name] for name in mean}
        gradients = torch.autograd.grad(objective, list(parameters.values()))
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter -= config.client_lr * gradient
        buffers = {name: averaged(mean[name], buffer) for name, buffer in buffers.items()}
    return {"whole": {name: tensor.detach() for name, tensor in (parameters | buffers).items()}}


def averaged(mean: Tensor, like: Tensor) -> Tensor:
    """A buffer's mean in the buffer's own type; a count's is rounded."""
    return (mean if like.is_floating_point() else mean.round()).to(like.dtype)
