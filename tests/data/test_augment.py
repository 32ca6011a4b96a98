"""Augmentation: every result is a crop of the padded image, and the generator alone decides which."""

import pytest
import torch
from torch.nn.functional import pad

from sglr_flower.data.augment import augment


def images(count=200, channels=3, height=16, width=24):
    # No level is 0, so that the border can be told from the image.
    draw = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (count, channels, height, width), generator=draw, dtype=torch.uint8)


def crops_of(image, flip):
    """Every image that augmentation may make of one, by (top, left, mirrored)."""
    _, height, width = image.shape
    padded = pad(image, (width // 8, width // 8, height // 8, height // 8))
    return {
        (top, left, mirrored): crop.flip(-1) if mirrored else crop
        for top in range(2 * (height // 8) + 1)
        for left in range(2 * (width // 8) + 1)
        for mirrored in ([False, True] if flip else [False])
        for crop in [padded[:, top : top + height, left : left + width]]
    }


def which(before, after, flip):
    """For every image what was done to it; each must be found exactly once."""
    done = []
    for image, result in zip(before, after, strict=True):
        [choice] = [choice for choice, crop in crops_of(image, flip).items() if torch.equal(crop, result)]
        done.append(choice)
    return done


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_result_is_a_crop_of_its_image_and_every_crop_occurs(flip, channels):
    before = images(channels=channels)
    after = augment(before, torch.Generator().manual_seed(0), flip)
    assert after.shape == before.shape
    assert after.dtype == torch.uint8
    done = which(before, after, flip)
    assert {top for top, _, _ in done} == set(range(5))
    assert {left for _, left, _ in done} == set(range(7))
    mirrored = sum(mirrored for _, _, mirrored in done)
    assert 70 < mirrored < 130 if flip else mirrored == 0


def test_the_border_is_black():
    after = augment(images(), torch.Generator().manual_seed(0), flip=False)
    assert (after == 0).any()


def test_the_generator_alone_decides():
    before = images()
    kept = before.clone()
    torch.manual_seed(1)
    first = augment(before, torch.Generator().manual_seed(7), flip=True)
    torch.manual_seed(2)
    assert torch.equal(first, augment(before, torch.Generator().manual_seed(7), flip=True))
    assert not torch.equal(first, augment(before, torch.Generator().manual_seed(8), flip=True))
    assert torch.equal(before, kept)


def test_the_global_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    augment(images(), torch.Generator().manual_seed(0), flip=True)
    assert torch.equal(torch.rand(1), expected)


def test_images_too_small_for_a_border_stay_in_place():
    before = images(height=7, width=7)
    assert torch.equal(augment(before, torch.Generator().manual_seed(0), flip=False), before)


def test_a_single_image():
    assert augment(images(count=1), torch.Generator().manual_seed(0), flip=True).shape == (1, 3, 16, 24)
