"""An attack on a small run: what it is given, whom it attacks, what it finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trained_runs

from sglr_flower.data.inputs import to_input
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.studies.leakage import attack as attack_module
from sglr_flower.studies.leakage.attack import Settings, attacks, clients, images, threat
from sglr_flower.studies.leakage.smashed import smashed
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.network import Trained

QUICK = Settings(client=1, auxiliary=200, samples=20, decoder_steps=80)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("attack") / "run"
    trained_runs.run(path, num_clients=3, samples_per_client=30)
    return trained.load(path)


def test_smashed_data_are_what_the_clients_segment_makes_of_the_images(model: Trained) -> None:
    pictures = assembly.splits(model.config).test.images  # more than one chunk
    with torch.no_grad():
        expected = model.network(2)[:3](to_input(pictures, torch.float32))
    found = smashed(model, 2, pictures, "a test")
    assert found.shape == (297, 32, 8, 8)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_client_segment_is_the_lower_part_of_its_network(model: Trained) -> None:
    segment, network = model.client_segment(1).state_dict(), model.network(1).state_dict()
    assert segment
    assert len(segment) < len(network)
    assert all(torch.equal(tensor, network[name]) for name, tensor in segment.items())


def test_the_reconstruction_is_nearer_than_the_mean_image_and_not_below_the_floor(model: Trained) -> None:
    (found,) = attacks(model, QUICK)
    assert (found.client, found.images, found.auxiliary) == (1, 20, 200)
    ours, mean = found.reconstruction, found.mean_image
    assert ours.entropy == mean.entropy < ours.cross_entropy < mean.cross_entropy
    assert ours.mse < 0.5 * mean.mse
    assert ours.psnr > mean.psnr
    assert ours.ssim is not None
    assert mean.ssim is not None
    assert ours.ssim > mean.ssim
    assert found.dependence.corrected_distance_correlation > 0.3
    assert found.examples.shape == found.reconstructed.shape == (8, 1, 16, 16)
    assert found.feature_maps.shape == (8, 32, 8, 8)
    assert torch.allclose(found.feature_maps, smashed(model, 1, found.examples, "a test"), atol=1e-5)


def test_the_same_settings_give_the_same_figures_and_a_repeat_another_decoder(model: Trained) -> None:
    quick = Settings(client=0, auxiliary=50, samples=10, decoder_steps=4, repeats=2)
    first, second = attacks(model, quick)
    again = next(attacks(model, quick))
    assert first.measures() == again.measures()
    assert first.reconstruction != second.reconstruction
    assert first.dependence == second.dependence


@pytest.mark.parametrize("on", ["train", "test"])
def test_auxiliary_and_attacked_images_have_none_in_common(model: Trained, on: str) -> None:
    auxiliary, attacked = images(model, Settings(client=1, on=on, auxiliary=250, samples=25))
    known = {image.numpy().tobytes() for image in auxiliary.images}
    assert len(auxiliary) == len(known) > 200
    assert len(attacked) == 25
    assert not known & {image.numpy().tobytes() for image in attacked.images}


def test_by_default_the_clients_own_images_are_attacked(model: Trained) -> None:
    _, attacked = images(model, Settings(client=2, samples=1000))
    own = assembly.client_data(model.config, [2])[2].take(torch.arange(30))
    assert torch.equal(attacked.images, own.images)


def test_who_knows_the_others_alone_never_uses_the_attacked_clients_segment(
    model: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder is trained on smashed data of clients 0 and 2, half of the images each, in the images' order."""
    trained_on: list[torch.Tensor] = []

    def train(known: torch.Tensor, *_: object) -> torch.nn.Module:
        trained_on.append(known)
        raise StopIteration

    monkeypatch.setattr(attack_module.inversion, "train", train)
    settings = Settings(client=1, knows="others", auxiliary=21)
    with pytest.raises(StopIteration):
        attack_module.attack(model, settings, 0)
    auxiliary, _ = images(model, settings)
    for position, pixels in enumerate(auxiliary.images):
        expected = smashed(model, (0, 2)[position % 2], pixels[None], "a test")
        assert torch.allclose(trained_on[0][position], expected[0], atol=1e-5)


def test_clients_are_drawn_by_the_seed_each_once_before_one_comes_again(model: Trained) -> None:
    drawn = clients(model, Settings(repeats=6, seed=4))
    assert sorted(drawn[:3]) == [0, 1, 2]
    assert drawn[:3] == drawn[3:]
    assert drawn == clients(model, Settings(repeats=6, seed=4))
    assert len({clients(model, Settings(seed=seed))[0] for seed in range(20)}) == 3
    assert clients(model, Settings(client=2, repeats=2)) == [2, 2]


def test_an_attack_is_named_by_what_is_not_the_default() -> None:
    assert Settings(seed=5).name(run_seed=5) == ""
    assert Settings(seed=5).name(run_seed=0) == "seed-5"
    assert Settings(client=0, knows="others", decoder_steps=9).name(0) == "client-0_knows-others_decoder-steps-9"


def test_the_threat_is_said_in_words(model: Trained) -> None:
    settings = Settings(client=1, knows="others", on="test", auxiliary=30, samples=7, decoder_steps=2)
    (found,) = attacks(model, settings)
    assert threat(settings, found, 3) == (
        "The attacker trained a decoder on 30 validation images and their smashed data from the other 2 clients' "
        "segments, each a part of them. It decoded smashed data of 7 images that it had not seen: test images through "
        "the client's segment."
    )


def test_what_cannot_be_attacked_is_a_users_mistake(model: Trained, tmp_path: Path) -> None:
    for settings, sentence in (
        (Settings(client=3), "--client 3: .* has no such client, it has 0 to 2"),
        (Settings(knows="all"), "--knows all: it must be one of client, others"),
        (Settings(on="validation"), "--on validation: it must be one of train, test"),
    ):
        with pytest.raises(UserError, match=sentence):
            attacks(model, settings)
    trained_runs.run(tmp_path / "fedavg", method="fedavg")
    with pytest.raises(UserError, match="method = 'fedavg', which does not cut the network"):
        attacks(trained.load(tmp_path / "fedavg"), Settings())


def test_a_vision_transformers_tokens_are_decoded_too(tmp_path: Path) -> None:
    trained_runs.run(tmp_path / "vit", model="vit", cut="embedding")
    found = next(attacks(trained.load(tmp_path / "vit"), Settings(auxiliary=200, decoder_steps=60)))
    assert found.feature_maps.shape[1:] == (17, 128)
    assert found.reconstruction.mse < 0.7 * found.mean_image.mse
