"""Training a decoder on a few digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sglr_flower.data import datasets
from sglr_flower.data.inputs import rgb, to_input
from sglr_flower.models import SplitModel
from sglr_flower.studies.leakage import inversion
from sglr_flower.studies.leakage.reconstruction import fidelity


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """32 digits, uint8 (32, 1, 16, 16), and smashed data of a segment that has not been trained."""
    images = datasets.load("digits", "", 0).train.images[:32]
    segment = SplitModel("resnet16", "", 10, inputs=rgb(16), seed=0).client_segment(0).eval()
    with torch.no_grad():
        return images, segment(to_input(images, torch.float32))


def test_a_decoder_learns_a_few_digits(digits: tuple[Tensor, Tensor]) -> None:
    images, smashed = digits
    decoder = inversion.train(smashed, images, 150, 0, 0)
    target = inversion.as_target(images)
    guess = inversion.reconstruct(decoder, smashed)
    learnt, mean = fidelity(target, guess), fidelity(target, target.mean(0).expand_as(target))
    assert guess.dtype == torch.float32
    assert guess.min() >= 0
    assert guess.max() <= 1
    assert learnt.mse < 0.1 * mean.mse
    assert learnt.cross_entropy - learnt.entropy < 0.1 * (mean.cross_entropy - mean.entropy)


def test_the_same_seed_gives_the_same_decoder_and_moves_no_other_random_number(digits: tuple[Tensor, Tensor]) -> None:
    images, smashed = digits
    state = torch.random.get_rng_state()
    once, again, other, repeat = (
        inversion.reconstruct(inversion.train(smashed, images, 4, seed, number), smashed)
        for seed, number in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, repeat)


def test_batches_have_one_size_and_each_image_at_most_once_in_an_epoch() -> None:
    batches = inversion._batches(150, 0, 0)
    first, second, third = (next(batches) for _ in range(3))
    assert len(first) == len(second) == len(third) == 64
    assert len(set(first.tolist()) | set(second.tolist())) == 128
    assert not torch.equal(first, third)
    assert len(next(inversion._batches(20, 0, 0))) == 20
