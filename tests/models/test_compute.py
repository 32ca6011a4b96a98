"""FLOPs of a client segment and of the whole network, as really computed."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sglr_flower import models
from sglr_flower.data.inputs import rgb
from sglr_flower.models.compute import Compute, segment_flops, training_flops

ROOT = Path(__file__).resolve().parents[2]


def test_each_product_is_counted_as_often_as_it_is_computed() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )
    convolution = 2 * (3 * 9) * (4 * 8 * 8)
    linear = 2 * 64 * 10
    # The convolution: forward and the weights' gradient, nobody needs the images'. The linear layer: its input's too.
    assert training_flops(network, 1, rgb(8)) == Compute(client=2 * convolution, whole=2 * convolution + 3 * linear)
    assert training_flops(network, 4, rgb(8)).client == 2 * convolution


def test_within_the_client_segment_all_but_the_images_gradient_is_counted() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Linear(5, 7), nn.Linear(7, 10))
    counted = training_flops(network, 3, rgb(4))
    assert counted == Compute(client=2 * (2 * 48 * 5 + 3 * 5 * 7), whole=2 * (2 * 48 * 5 + 3 * 5 * 7 + 3 * 7 * 10))
    assert counted.ratio == counted.client / counted.whole


@pytest.mark.parametrize(
    ("name", "ratio"), [("resnet16", 0.5803), ("alexnet", 0.0685), ("resnet18", 0.2743), ("vit", 0.3354)]
)
def test_the_clients_share_at_each_models_own_cut(name: str, ratio: float) -> None:
    model = models.get(name)
    network = model.build(10, 32)
    assert training_flops(network, models.cut_index(network, model.cut), rgb(32)).ratio == pytest.approx(
        ratio, abs=5e-5
    )


def test_alexnets_share_is_near_table_4_and_that_of_torchvisions_network() -> None:
    ours = training_flops(models.get("alexnet").build(10, 32), 1, rgb(32))
    theirs = torchvision.models.alexnet(num_classes=10)
    pieces = nn.Sequential(theirs.features[:3], theirs.features[3:], theirs.avgpool, nn.Flatten(), theirs.classifier)
    assert ours == Compute(client=5_947_392, whole=86_768_640)
    assert training_flops(pieces, 1, rgb(224)).ratio == pytest.approx(0.0682, abs=5e-5)
    # Table 4 has 0.031 / 0.588 PFLOPs; what its AlexNet's sizes are and what was counted, the paper does not say.
    assert ours.ratio / (0.031 / 0.588) == pytest.approx(1.300, abs=5e-4)


def test_forward_and_backward_of_a_segment_by_hand() -> None:
    segment = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 7))
    # Backward: the weights' gradients of both layers, and of the inputs only the second one's.
    assert segment_flops(segment, rgb(4)) == (2 * (48 * 5 + 5 * 7), 2 * (48 * 5 + 2 * 5 * 7))


@pytest.mark.parametrize("name", ["resnet16", "alexnet", "resnet18"])
def test_without_attention_and_groups_they_are_what_pytorchs_own_counter_counts(name: str) -> None:
    model = models.get(name)
    network = model.build(10, 32)
    segment = network[: models.cut_index(network, model.cut)]
    forward, backward = segment_flops(segment, rgb(32))
    images = torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        smashed = segment.train()(images)
    assert forward == counter.get_total_flops() // 2
    with FlopCounterMode(display=False) as counter:
        smashed.backward(torch.ones_like(smashed))
    assert backward == counter.get_total_flops() // 2
    assert forward + backward == training_flops(network, models.cut_index(network, model.cut), rgb(32)).client


def test_counting_does_not_import_the_compiler() -> None:
    """A second, and 150 MB, in the server's process."""
    code = "import sys; from torch import nn; from sglr_flower.models.compute import segment_flops; "
    code += "from sglr_flower.data.inputs import rgb; "
    code += "segment_flops(nn.Sequential(nn.Conv2d(3, 4, 3)), rgb(8)); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_attention_is_counted() -> None:
    network = models.get("vit").build(10, 16)
    tokens, width = 17, 128
    block = tokens * (4 + 8) * width**2  # multiply-adds of query, key, value and output projections, and of the MLP
    attention = 2 * tokens**2 * width
    one_more = training_flops(network, 3, rgb(16)).client - training_flops(network, 2, rgb(16)).client
    # Forward, and twice as much backward; the fused attention computes its scores once more for the backward pass.
    assert one_more == 2 * (3 * block + attention + 5 * attention // 2)


def test_a_block_of_the_vision_transformer_by_hand() -> None:
    network = models.get("vit").build(10, 32)
    tokens, width = 1 + (32 // 4) ** 2, 128
    projections = 2 * tokens * 12 * width**2  # query, key, value, output: 4 width^2; the MLP: 8 width^2
    scores = 2 * tokens**2 * width  # of all heads together; as many operations again for scores times values
    assert projections + 2 * scores == 27_722_240
    one_less, one_more = segment_flops(network[:2], rgb(32)), segment_flops(network[:3], rgb(32))
    # Backward: both gradients of each projection; the scores, and both gradients of scores and of scores times values.
    assert one_more[0] - one_less[0] == projections + 2 * scores
    assert one_more[1] - one_less[1] == 2 * projections + 5 * scores


def test_counting_leaves_the_network_and_the_callers_random_numbers_alone() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), *models.get("vit").build(10, 16)).eval()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    training_flops(network, 2, rgb(16))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network[1].training


def test_the_same_is_counted_in_float64() -> None:
    network = models.get("alexnet").build(10, 16)
    assert training_flops(network.double(), 1, rgb(16)) == training_flops(network.float(), 1, rgb(16))
