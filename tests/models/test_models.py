"""The models as their sources have them, cutting, and initial weights."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from sglr_flower import models
from sglr_flower.data.inputs import rgb
from sglr_flower.errors import UserError
from sglr_flower.models import SplitModel

NAMES = ["resnet16", "alexnet", "resnet18", "vit"]
STAGES = {
    "resnet16": ["stem", "stage1", "stage2", "stage3", "head"],
    "alexnet": ["conv1", "conv2", "conv3", "conv4", "conv5", "head"],
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4", "head"],
    "vit": ["embedding", "block1", "block2", "block3", "block4", "block5", "block6", "head"],
}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The state with the prefixes that ``names`` lists replaced."""
    found = {}
    for key, tensor in state.items():
        ours = next((prefix for prefix in names if key.startswith(prefix)), "")
        found[names.get(ours, "") + key.removeprefix(ours)] = tensor
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("image_size", "num_classes"), [(16, 10), (28, 100), (32, 10)])
def test_every_model_maps_images_of_every_size_to_logits(name: str, image_size: int, num_classes: int) -> None:
    network = models.get(name).build(num_classes, image_size)
    assert network(torch.zeros(2, 3, image_size, image_size)).shape == (2, num_classes)
    assert [stage for stage, _ in network.named_children()] == STAGES[name]


@pytest.mark.parametrize(
    ("name", "image_size", "below", "above", "smashed"),
    [
        ("resnet16", 32, 42_896, 206_346, (32, 16, 16)),  # the paper's: 32 KiB of smashed data per sample
        ("alexnet", 32, 23_296, 2_448_970, (64, 4, 4)),
        ("alexnet", 16, 23_296, 2_448_970, (64, 2, 2)),
        ("resnet18", 32, 149_824, 11_024_138, (64, 32, 32)),
        ("resnet18", 224, 157_504, 11_024_138, (64, 56, 56)),
        ("vit", 32, 411_264, 794_634, (65, 128)),
        ("vit", 16, 405_120, 794_634, (17, 128)),
    ],
)
def test_each_models_own_cut_has_these_parameters_and_smashed_data(
    name: str, image_size: int, below: int, above: int, smashed: tuple[int, ...]
) -> None:
    model = SplitModel(name, "", 10, inputs=rgb(image_size), seed=0)
    client, server = model.client_segment(0), model.server_segment()
    assert (parameters(client), parameters(server)) == (below, above)
    with torch.no_grad():
        found = client(torch.zeros(1, 3, image_size, image_size))
    assert found.shape[1:] == smashed


@pytest.mark.parametrize("name", NAMES)
def test_any_cut_composes_to_the_unsplit_model(name: str) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = SplitModel(name, "", 10, inputs=rgb(16), seed=0).whole().eval()(x)
        assert logits.std() > 1e-3
        for count, cut in enumerate(STAGES[name][:-1], start=1):
            model = SplitModel(name, cut, 10, inputs=rgb(16), seed=0)
            client, server = model.client_segment(0).eval(), model.server_segment().eval()
            assert len(client) == count
            assert torch.equal(server(client(x)), logits)


@pytest.mark.parametrize("cut", ["1", "4"])
def test_a_cut_can_be_a_number_of_stages(cut: str) -> None:
    model = SplitModel("resnet16", cut, 10, seed=0)
    assert len(model.client_segment(0)) == int(cut)
    assert len(model.client_segment(0)) + len(model.server_segment()) == 5


@pytest.mark.parametrize("cut", ["head", "0", "5", "layer9", "-1"])
def test_a_wrong_cut_lists_the_right_ones(cut: str) -> None:
    with pytest.raises(UserError, match=r"cut = .*stem, stage1, stage2, stage3.*1 to 4"):
        SplitModel("resnet16", cut, 10, seed=0).client_segment(0)


def test_convolutions_of_resnet16_are_drawn_as_the_authors_draw_them() -> None:
    weight = SplitModel("resnet16", "", 10, seed=0).whole().stage3[2].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)


def test_resnet18_is_torchvisions_function_at_its_image_size() -> None:
    ours = models.get("resnet18").build(10, 224).eval()
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    names = {"stem.0": "conv1", "stem.1": "bn1", "head.2": "fc"}
    theirs.load_state_dict(renamed(ours.state_dict(), names))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_the_first_convolution_of_resnet18_for_small_images_is_drawn_like_the_others() -> None:
    weight = models.get("resnet18").build(10, 32).stem[0].weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.1)


def test_vit_is_torchvisions_function() -> None:
    ours = models.get("vit").build(10, 16).eval()
    theirs = VisionTransformer(16, 4, 6, 4, 128, 512, num_classes=10).eval()
    names = {
        "embedding.patches": "conv_proj",
        "embedding.position": "encoder.pos_embedding",
        "embedding.": "",
        "head.0": "encoder.ln",
        "head.2": "heads.head",
    } | {f"block{number + 1}": f"encoder.layers.encoder_layer_{number}" for number in range(6)}
    theirs.load_state_dict(renamed(ours.state_dict(), names))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_the_dropout_of_vit_is_the_seeds() -> None:
    segment = SplitModel("vit", "", 10, inputs=rgb(16), seed=0).client_segment(0).train()
    x = torch.zeros(2, 3, 16, 16)

    def smashed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return segment(x)

    assert torch.equal(smashed(1), smashed(1))
    assert not torch.equal(smashed(1), smashed(2))


def test_alexnets_last_pool_is_2x2_for_32_pixels() -> None:
    network = models.get("alexnet").build(10, 32)
    before = network[:5][:-1](torch.zeros(1, 3, 32, 32))
    assert network.conv5[:-1](before).shape == (1, 256, 2, 2)


@pytest.mark.parametrize(
    ("name", "image_size", "allowed"), [("alexnet", 12, "at least 13"), ("vit", 30, "multiple of 4")]
)
def test_a_size_that_a_model_cannot_take_is_the_users_mistake(name: str, image_size: int, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"model = '{name}'.*{allowed}.*{image_size} x {image_size}"):
        SplitModel(name, "", 10, inputs=rgb(image_size), seed=0).server_segment()


def test_the_smallest_image_that_alexnet_says_it_takes_it_takes() -> None:
    assert models.get("alexnet").build(10, 13)(torch.zeros(1, 3, 13, 13)).shape == (1, 10)


@pytest.mark.parametrize("name", NAMES)
def test_clients_start_from_their_own_weights_or_from_the_same(name: str) -> None:
    def weights(client: int, seed: int = 0, shared: bool = False) -> Tensor:
        segment = SplitModel(name, "", 10, inputs=rgb(16), seed=seed, shared=shared).client_segment(client)
        return torch.cat([parameter.detach().flatten() for parameter in segment.parameters()])

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # where the caller's random numbers stand must not matter
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    assert not torch.equal(first, weights(0, seed=1))
    assert torch.equal(first, weights(1, shared=True))


def test_no_stage_writes_into_the_smashed_data() -> None:
    for name in NAMES:
        network = SplitModel(name, "", 10, seed=0).whole()
        assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_weights_have_the_runs_dtype() -> None:
    network = SplitModel("vit", "", 10, seed=0, dtype=torch.float64).whole()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_multiplies_in_bfloat16_and_leaves_the_rest_as_it_is(name: str) -> None:
    plain, mixed = (SplitModel(name, "", 10, seed=0, mixed=mixed) for mixed in (False, True))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for build in (lambda model: model.client_segment(0), lambda model: model.server_segment()):
        ours, theirs = build(mixed).eval(), build(plain).eval()
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert {weight.dtype for weight in ours.parameters()} == {torch.float32}
        inputs = [images.clone().requires_grad_() for _ in range(2)]
        outputs = [segment(batch) for segment, batch in zip((ours, theirs), inputs, strict=True)]
        assert outputs[0].dtype == torch.float32
        seen = [output.detach() for output in outputs]
        # bfloat16 has 8 bits: other numbers, but not by much.
        assert 0 < (seen[0] - seen[1]).norm() < 0.05 * seen[1].norm()
        for output, batch in zip(outputs, inputs, strict=True):
            output.square().mean().backward()
            assert batch.grad.dtype == torch.float32
        gradients = [batch.grad for batch in inputs]
        assert (gradients[0] - gradients[1]).norm() < 0.2 * gradients[1].norm()
        images = seen[1]


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"model = 'vgg'.*resnet16, alexnet, resnet18, vit.*package\.module:function"):
        models.get("vgg")
