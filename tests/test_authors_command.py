"""The authors' published command: every argument of it is explained, and our configuration is that run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig, keys
from sglr_flower.run.settings import read_config
from sglr_flower.split import splitavg

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    "--dataset fmnist --model resnet --layers 16 --droprate 0.0 --local_module_num 2 --local_loss_mode contrast "
    "--aux_net_widen 1 --aux_net_feature_dim 128 --skewness_ratio 0.5 --aux_net_config 1c2f --no-augment --workers 9 "
    "--epoch 250 --batch_size 64 --local_label_size 500 --mixing_mode concat_batch --lr 1e-3 --lr_pow 1.0 "
    "--comm_flag 0.6"
)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return RunConfig.parse(read_config(ROOT / "configs" / "authors_command.toml"))


@pytest.fixture(scope="module")
def document() -> str:
    return (ROOT / "docs" / "authors-code.md").read_text(encoding="utf-8")


def test_every_argument_has_a_line(document: str) -> None:
    """With the value that it has in the command."""
    explained = re.findall(r"`(--[^`]+)`", "".join(line for line in document.splitlines(True) if line.startswith("|")))
    arguments = ["--" + argument.strip() for argument in COMMAND.split("--")[1:]]
    assert len(arguments) == 19
    assert set(arguments) <= set(explained)


def test_the_documents_values_are_the_configurations(document: str, config: RunConfig) -> None:
    """Each ``key = value`` of its tables, but for the seed, which theirs has none of."""
    tables = "".join(line for line in document.splitlines(True) if line.startswith("|"))
    named = dict(re.findall(r"`([a-z-]+) = ([^`]+)`", tables))
    assert set(named) <= set(keys())
    values = config.values()
    stated = {key: RunConfig.parse({**values, key: _read(text)}).values()[key] for key, text in named.items()}
    stated["splitavg-phi"] = 1.0  # stated for --comm_flag 0 too
    assert {key: values[key] for key in stated} == stated
    assert set(read_config(ROOT / "configs" / "authors_command.toml")) <= {*named, "splitavg-phi", "checkpoint-every"}


def _read(text: str) -> str | float | int:
    if text.startswith('"'):
        return text.strip('"')
    return int(text) if text.isdigit() else float(text)


def test_it_is_that_run(config: RunConfig) -> None:
    """9 clients: a server rate of 9e-3; the average of all in rounds 1 to 150."""
    early, late = assembly.plan(config, 1), assembly.plan(config, 151)
    assert early.step_lr == pytest.approx(9e-3)
    assert early.client_rate() == pytest.approx(1e-3)
    assert splitavg.in_phase(config.splitavg_phase, 150, 250)
    assert not splitavg.in_phase(config.splitavg_phase, 151, 250)
    assert (len(early.clients), len(late.clients)) == (9, 9)
    rates = [assembly.plan(config, server_round).client_rate() for server_round in (200, 201)]
    assert rates == pytest.approx([1e-3, 1e-4])  # what the document says of the step


@pytest.mark.data
@pytest.mark.skipif("SGLR_DATA_DIR" not in os.environ, reason="SGLR_DATA_DIR does not say where the data sets are")
def test_nine_clients_of_5000_images_can_be_dealt(config: RunConfig) -> None:
    _, counts = assembly.class_counts(config)
    assert [list(row) for row in counts] == [[500] * 10] * 9
