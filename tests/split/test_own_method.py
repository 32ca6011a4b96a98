"""A method by import path trains by its own rules; every mistake in the path is a sentence."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from integration.runs import final_weights, largest_difference

from sglr_flower.errors import UserError
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import methods

SETTINGS = {
    "num-clients": 3,
    "samples-per-client": 16,
    "num-server-rounds": 1,
    "splitavg-phi": 1.0,
    "evaluate-samples": 10,
}


def test_its_rules_are_the_ones_that_train(tmp_path: Path) -> None:
    for name in ("own_method:robust", "sglr"):
        folder = tmp_path / name.replace(":", "-")
        inprocess.run(RunConfig.parse({**SETTINGS, "method": name, "run-dir": str(folder)}))
    own, sglr = tmp_path / "own_method-robust", tmp_path / "sglr"
    rates = [float(next(csv.DictReader((folder / "metrics.csv").open()))["server_lr"]) for folder in (own, sglr)]

    assert rates[0] == rates[1] / 2
    assert largest_difference(final_weights(own), final_weights(sglr)) > 1e-4


def test_the_rule_sees_the_gradients_of_the_active_clients() -> None:
    gradients = {i: torch.full((2, 1), float(value)) for i, value in enumerate((1, 2, 9))}

    assert methods.get("own_method:robust").cut_gradient(gradients, (0, 1, 2), "clients").tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fedavgg", "it must be one of sglr, slr, sgl, psl, sfl, sfl-v1, sfl-v2, ssl, fedavg, centralized"),
        ("own_method:nothing", "module 'own_method' has no 'nothing'"),
        ("no_such_module:robust", "module 'no_such_module' cannot be imported"),
        ("own_method:not_a_method", "it must be a sglr_flower.methods.Method"),
        (":", "it must be one of sglr"),
        (".own_method:robust", "or package.module:name"),
        ("broken_module:robust", "cannot be imported: RuntimeError: not today (tests/broken_module.py:"),
    ],
)
def test_a_wrong_name_is_a_sentence_with_the_key_and_the_value(name: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        inprocess.run(RunConfig.parse({"method": name}))

    assert said in str(raised.value)
    assert f"run-config key method = {name!r}" in str(raised.value)
