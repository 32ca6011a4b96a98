"""`sglr estimate`: what an epoch would cost, and the sentence where it cannot be known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sglr_flower.data.inputs import rgb
from sglr_flower.errors import UserError
from sglr_flower.models.footprint import training_bytes, weight_bytes
from sglr_flower.run.config import RunConfig
from sglr_flower.split.methods import METHODS
from sglr_flower.split.optimizers import ADAM, SGD
from sglr_flower.studies.costs.estimate import Device, Estimator, command

CONFIG = RunConfig.parse({"num-clients": 5, "samples-per-client": 40, "splitavg-phi": 1.0})


def test_time_is_bytes_over_rates_and_operations_over_speed() -> None:
    slow, fast = (Estimator(CONFIG, Device(1e6 * k, 2e6 * k, 1e9 * k)).of("sglr", "stage2") for k in (1, 10))
    assert slow.transfer == pytest.approx(slow.up / 1e6 + slow.down / 2e6)
    assert slow.compute == pytest.approx(slow.flops / 1e9)
    assert slow.seconds == pytest.approx(10 * fast.seconds)
    # With phi = 1 each client receives the average of every step, as large as its own gradients would be.
    assert slow.down == slow.up
    assert slow.total == pytest.approx(5 * slow.up + slow.down)


def test_codecs_count_in_each_direction() -> None:
    def of(**wires: str) -> tuple[float, float]:
        estimate = Estimator(CONFIG.replace(**wires), Device(1.0, 1.0, 1.0)).of("psl", "stage2")
        return estimate.up, estimate.down

    up, down = of()
    assert up == down
    assert of(wire_up="bfloat16") == (up / 2, down)
    assert of(wire_down="float16") == (up, down / 2)
    count = up / 40 / 4  # of a sample's values
    assert of(wire_down="int8") == (up, 40 * (count + 4))


def test_a_later_cut_computes_more_and_whole_networks_most() -> None:
    estimator = Estimator(CONFIG, Device(1.0, 1.0, 1.0))
    flops = [estimator.of("psl", cut).flops for cut in estimator.cuts]
    assert flops == sorted(flops)
    assert estimator.of("fedavg", "stem").flops >= flops[-1]
    assert estimator.of("centralized", "stem").flops == 5 * estimator.of("fedavg", "stem").flops


def test_the_memory_of_a_linear_layer_is_what_one_can_count() -> None:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    weights = 4 * (12 * 3 + 3)
    assert weight_bytes(layer) == weights
    images, output = 4 * 5 * 12, 4 * 5 * 3
    assert training_bytes(layer, ADAM.nbytes(layer), batch_size=5, inputs=rgb(2)) == 4 * weights + images + output
    assert training_bytes(layer, SGD.nbytes(layer), batch_size=5, inputs=rgb(2)) == 2 * weights + images + output
    random = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout())
    before = torch.random.get_rng_state()
    training_bytes(random, SGD.nbytes(random), batch_size=5, inputs=rgb(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_method_and_every_cut_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    command(None, ["samples-per-client=40"], up=20.0, down=100.0, gflops=10.0)
    shown = capsys.readouterr().out
    for name in (*METHODS, "stem", "stage1", "stage2", "stage3"):
        assert name[:5] in shown


def test_without_a_number_of_samples_it_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="samples-per-client = 0: an estimate needs the number of a client's samples"):
        command(None, ["samples-per-client=0"], up=20.0, down=100.0, gflops=10.0)
