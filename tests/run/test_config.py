"""The run-config: defaults, ranges, and one clear sentence for everything that is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sglr_flower.errors import UserError
from sglr_flower.run.config import RunConfig, documentation, keys, listed_classes
from sglr_flower.run.settings import read_config

ROOT = Path(__file__).parents[2]


def test_flowers_defaults_are_ours() -> None:
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert app == RunConfig.parse({}).values()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid(path: Path) -> None:
    RunConfig.parse(read_config(path))


def test_every_key_is_there_and_documented() -> None:
    wanted = """method model cut dataset data-dir partition num-clients samples-per-client batch-size num-server-rounds
    local-epochs fraction-train optimizer client-lr splitlr-alpha lr-schedule splitavg-phi splitavg-phase exchange
    evaluate evaluate-every evaluate-samples checkpoint-every seed run-dir splitavg-over cut-gradient-scale loss
    initial-segments sample-order"""
    assert set(wanted.split()) <= set(keys())
    rows = {key: (default, allowed, meaning) for key, default, allowed, meaning in documentation()}
    assert tuple(rows) == keys()
    assert all(meaning for _, _, meaning in rows.values())
    assert rows["splitavg-phi"][:2] == ("0.5", "≥ 0, ≤ 1")
    assert rows["exchange"][:2] == ("'auto'", "auto, stream, grid")


def test_trackers_are_listed_with_commas() -> None:
    assert RunConfig.parse({}).trackers == ()
    assert RunConfig.parse({"track": "wandb"}).trackers == ("wandb",)
    assert RunConfig.parse({"track": "trackio, mlflow"}).trackers == ("trackio", "mlflow")


def test_it_survives_toml() -> None:
    config = RunConfig.parse({"splitavg-phi": 0.25, "seed": 7})
    assert RunConfig.parse(tomllib.loads(config.to_toml())) == config


def test_a_whole_number_is_a_rate() -> None:
    assert RunConfig.parse({"splitlr-alpha": 1}).splitlr_alpha == 1.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"splitlr-alhpa": 1.0}, ["splitlr-alhpa", "splitlr-alpha"]),
        ({"unheard-of": 1}, ["unheard-of", "num-clients"]),
        ({"num-clients": "many"}, ["num-clients", "'many'", "integer"]),
        ({"num-clients": 2.5}, ["num-clients", "2.5", "integer"]),
        ({"num-clients": True}, ["num-clients", "True", "integer"]),
        ({"splitavg-phi": True}, ["splitavg-phi", "True", "number"]),
        ({"seed": -1}, ["seed", "-1", "greater than or equal to 0"]),
        ({"num-clients": 0}, ["num-clients", "0", "greater than or equal to 1"]),
        ({"splitlr-alpha": 2.5}, ["splitlr-alpha", "2.5", "less than or equal to 2"]),
        ({"splitlr-alpha": -0.5}, ["splitlr-alpha", "-0.5", "greater than or equal to 0"]),
        ({"splitavg-phi": 1.5}, ["splitavg-phi", "1.5", "less than or equal to 1"]),
        ({"splitavg-phi": float("nan")}, ["splitavg-phi", "nan"]),
        ({"client-lr": float("inf")}, ["client-lr", "inf"]),
        ({"method": "fedsgd"}, ["method", "'fedsgd'", "sglr, slr, sgl, psl"]),
        ({"lr-schedule": "warm"}, ["lr-schedule", "'warm'", "constant, step, cosine, cyclic:low="]),
        ({"lr-schedule": ""}, ["lr-schedule", "''", "constant, step, cosine"]),
        ({"server-lr-schedule": "warm"}, ["server-lr-schedule", "'warm'", "constant, step, cosine"]),
        ({"server-lr-schedule": "cyclic:low=1,high=0.5,period=4"}, ["server-lr-schedule", "low = 1", "high = 0.5"]),
        ({"splitavg-phase": "first:2"}, ["splitavg-phase", "'first:2'", "(0, 1]"]),
        ({"exchange": "pigeon"}, ["exchange", "'pigeon'", "'stream'"]),
        ({"evaluate": "never"}, ["evaluate", "'never'", "'client'"]),
        ({"optimizer": "adagrad"}, ["optimizer", "'adagrad'", "sgd"]),
        ({"server-device": "cuda:200"}, ["server-device", "'cuda:200'", "cpu, cuda, cuda:N, or empty"]),
        ({"server-device": "cuda:01"}, ["server-device", "'cuda:01'", "cpu, cuda, cuda:N, or empty"]),
        ({"server-device": "gpu"}, ["server-device", "'gpu'", "cpu, cuda, cuda:N, or empty"]),
        (
            {"dtype": "float64", "autocast": "bfloat16"},
            ["autocast", "'bfloat16'", "it must be none with dtype = 'float64'"],
        ),
        ({"track": "tensorboard"}, ["track", "'tensorboard'", "mlflow, wandb, trackio, package.module:name, several"]),
        ({"track": "wandb,wandb"}, ["track", "'wandb,wandb'", "several of them with commas, or empty"]),
        ({"track": "mlflow,"}, ["track", "'mlflow,'", "or empty"]),
        ({"autocast": "float16"}, ["autocast", "'float16'", "'none' or 'bfloat16'"]),
        ({"method": "fedavg", "wire-up": "int8"}, ["wire-up", "'int8'", "it must be none with method fedavg"]),
    ],
)
def test_a_mistake_is_one_sentence_with_key_value_and_what_is_allowed(values: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        RunConfig.parse(values)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    "names", [("cat", "dog"), ("cat, grey", 'say "dog"', "eel"), (" cat", "dog"), ("caf\u00e9", "\\xe9")]
)
def test_class_names_are_read_back_as_they_were_written(names: tuple[str, ...]) -> None:
    assert RunConfig.parse({"dataset": "folder", "classes": listed_classes(names)}).class_names == names


@pytest.mark.parametrize("text", ["cat", "cat,cat", "cat,,dog", "cat,"])
def test_classes_are_two_or_more_different_names(text: str) -> None:
    with pytest.raises(UserError, match=r"run-config key classes = .*: it must be two or more different names"):
        RunConfig.parse({"dataset": "folder", "classes": text})


def test_how_class_names_are_written_by_hand() -> None:
    assert RunConfig.parse({"dataset": "folder", "classes": "cat, dog , eel"}).class_names == ("cat", "dog", "eel")
    with pytest.raises(UserError, match="classes = 'cat,dog': it must be empty where dataset is not folder"):
        RunConfig.parse({"classes": "cat,dog"})


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("levels", "12 bits", "it must be auto, a number of bits from 8 to 32, or LOW:HIGH"),
        ("levels", "7", "it must be auto, a number of bits from 8 to 32, or LOW:HIGH"),
        ("levels", "3:1", "it must be auto, a number of bits from 8 to 32, or LOW:HIGH"),
        ("ground", "whitish", "it must be a colour such as white or #80ff00, or none"),
    ],
)
def test_how_images_are_read_is_checked(key: str, value: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"run-config key {key} = {value!r}: {sentence}"):
        RunConfig.parse({"dataset": "folder", key: value})
