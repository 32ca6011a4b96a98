"""The data sets as a run uses them."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.datasets import MNIST, FashionMNIST

from sglr_flower.data import datasets, tables
from sglr_flower.data.datasets import ensure_present, flips, inputs, load, names, targets
from sglr_flower.data.inputs import to_input
from sglr_flower.data.samples import Batch
from sglr_flower.data.source import subset
from sglr_flower.errors import UserError


@pytest.fixture(scope="module")
def data_dir():
    folder = os.environ.get("SGLR_DATA_DIR", "")
    if not folder:
        pytest.skip("real data not tested: set SGLR_DATA_DIR to a folder with FashionMNIST/raw and MNIST/raw")
    return folder


def image_set(labels):
    """One image of one pixel for each label, the pixel saying which image it is."""
    return Batch(torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None], torch.tensor(labels))


def as_rows(images):
    return {image.numpy().tobytes() for image in images.images}


def test_names():
    assert names() == (
        "fashion-mnist",
        "mnist",
        "cifar-10",
        "cifar-100",
        "svhn",
        "stl-10",
        "digits",
        "folder",
        *tables.NAMES,
    )


def test_unknown_data_set():
    for use in (
        lambda: load("cifar", "", 0),
        lambda: ensure_present("cifar", ""),
        lambda: targets("cifar").names,
        lambda: inputs("cifar").image_size,
        lambda: flips("cifar"),
    ):
        with pytest.raises(UserError, match="dataset = 'cifar': it must be one of fashion-mnist, mnist, cifar-10, "):
            use()


def test_importing_and_looking_are_light(tmp_path):
    code = (
        "import sys; from sglr_flower.data import augment, datasets, download, partition;"
        f"root = download.data_folder({str(tmp_path)!r}).path;"
        "[source.is_present(root) for source in datasets._SOURCES.values()];"
        "print([name for name in ('torchvision', 'sklearn', 'datasets', 'flwr_datasets') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# --- sizes and flips ---


@pytest.mark.parametrize(
    ("dataset", "size"), [("fashion-mnist", 32), ("cifar-100", 32), ("stl-10", 48), ("digits", 16), ("folder", 32)]
)
def test_input_size_is_the_data_sets_own_unless_one_is_asked_for(dataset, size):
    assert inputs(dataset).image_size == size
    assert inputs(dataset, image_size=20).image_size == 20


def test_a_negative_size_is_the_users_mistake():
    with pytest.raises(UserError, match="image-size = -1: it must be at least 0 "):
        load("digits", "", 0, -1)


def test_digits_of_any_kind_are_not_mirrored():
    assert [name for name in names() if not flips(name)] == ["mnist", "svhn", "digits", *tables.NAMES]


def test_classes_have_a_name_each():
    numbers = {name: len(set(targets(name).names)) for name in names() if name not in ("folder", *tables.NAMES)}
    assert numbers == dict.fromkeys(numbers, 10) | {"cifar-100": 100}


# --- Batch, subset ---


def test_take_keeps_the_order_asked_for():
    taken = image_set([5, 6, 7]).take(torch.tensor([2, 0]))
    assert len(taken) == 2
    assert taken.labels.tolist() == [7, 5]
    assert taken.images.flatten().tolist() == [2, 0]


def test_subset_is_balanced_ascending_and_deterministic():
    images = image_set([0, 1, 2] * 20)
    drawn = subset(images, 12, seed=3)
    assert torch.bincount(drawn.labels).tolist() == [4, 4, 4]
    which = drawn.images.flatten().tolist()
    assert which == sorted(set(which))
    assert which == subset(images, 12, seed=3).images.flatten().tolist()
    assert which != subset(images, 12, seed=4).images.flatten().tolist()


@pytest.mark.parametrize("size", [0, 6, 7])
def test_subset_of_all_is_the_same_object(size):
    images = image_set([0, 1, 2] * 2)
    assert subset(images, size, seed=0) is images


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), size=st.integers(1, 39), seed=st.integers(0, 9))
def test_subset_has_its_size_and_fills_small_classes_up(labels, size, seed):
    drawn = subset(image_set(labels), size, seed)
    assert len(drawn) == min(size, len(labels))
    counts, available = (np.bincount(values, minlength=4) for values in (drawn.labels.numpy(), labels))
    assert all((counts >= counts.max() - 1) | (counts == available))


# --- to_input ---


def test_to_input_values_and_shape():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3).expand(2, 1, 4, 3)
    batch = to_input(images, torch.float32)
    assert batch.shape == (2, 3, 4, 3)
    assert batch.is_contiguous()
    torch.testing.assert_close(batch, torch.tensor([-1.0, -0.6, 1.0]).expand(2, 3, 4, 3))


def test_to_input_keeps_three_channels_apart():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    torch.testing.assert_close(to_input(images, torch.float64).flatten().tolist(), [-1.0, -0.6, 1.0])
    assert images.flatten().tolist() == [0, 51, 255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_to_input_rounds_once(dtype):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    batch = to_input(levels, dtype)
    assert batch.dtype == dtype
    exact = to_input(levels, torch.float64)
    torch.testing.assert_close(batch, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_to_input_is_the_authors_transform():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    theirs = transforms.Compose(
        [transforms.Grayscale(3), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )
    torch.testing.assert_close(to_input(levels, torch.float32)[0], theirs(Image.fromarray(levels[0, 0].numpy())))


# --- digits ---


def test_digits():
    splits = load("digits", "", 0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1250, 250, 297]
    assert splits.train.images.shape == (1250, 1, 16, 16)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.dtype == torch.int64
    assert splits.train.images.max() == 255
    assert splits.classes == tuple("0123456789")
    counts = torch.bincount(splits.test.labels)
    assert counts.max() - counts.min() <= 2  # stratified


def test_digits_validation_follows_the_seed_and_the_test_set_does_not():
    first, second = load("digits", "", 0), load("digits", "", 1)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    assert as_rows(first.train) | as_rows(first.validation) == as_rows(second.train) | as_rows(second.validation)


def test_digits_of_another_size_are_the_same_images():
    small, large = load("digits", "", 0).test, load("digits", "", 0, 24).test
    assert large.images.shape == (297, 1, 24, 24)
    assert torch.equal(small.labels, large.labels)
    assert load("digits", "", 0, 16) is load("digits", "", 0)


# The figures published so far rest on these images and splits: a change of the code must not change one level.
PUBLISHED = {
    "digits": "70c200565a6254ab",
    "fashion-mnist": "96c18279c43d7e5e",
    "mnist": "3d6159598b81ff49",
}


def fingerprint(splits):
    digest = hashlib.sha256()
    for part in (splits.train, splits.validation, splits.test):
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def test_digits_are_as_published():
    assert fingerprint(load("digits", "", 0)) == PUBLISHED["digits"]


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["fashion-mnist", "mnist"])
def test_real_data_are_as_published(dataset, data_dir):
    assert fingerprint(load(dataset, data_dir, 0)) == PUBLISHED[dataset]


def test_load_is_remembered():
    assert load("digits", "", 0) is load("digits", "/nowhere", 0)


def test_load_depends_on_its_arguments_alone():
    again = datasets._load_digits.__wrapped__(0, 16)
    assert torch.equal(again.train.images, load("digits", "", 0).train.images)
    assert torch.equal(again.validation.labels, load("digits", "", 0).validation.labels)


# --- real data ---


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["fashion-mnist", "mnist"])
def test_real_sizes(dataset, data_dir):
    splits = load(dataset, data_dir, 0)
    assert splits.train.images.shape == (50_000, 1, 32, 32)
    assert splits.validation.images.shape == (10_000, 1, 32, 32)
    assert splits.test.images.shape == (10_000, 1, 32, 32)
    assert torch.bincount(splits.test.labels).sum() == 10_000
    assert len(splits.classes) == 10
    # i.i.d., so near a thousand of every class but not exactly (the standard deviation is 30).
    counts = torch.bincount(splits.validation.labels)
    assert (counts - 1000).abs().max() < 200


@pytest.mark.data
def test_real_train_and_validation_are_the_train_images(data_dir):
    splits = load("fashion-mnist", data_dir, 0)
    theirs = torch.bincount(FashionMNIST(data_dir).targets)
    assert torch.equal(torch.bincount(splits.train.labels) + torch.bincount(splits.validation.labels), theirs)


@pytest.mark.data
@pytest.mark.parametrize(("dataset", "torchvision_class"), [("fashion-mnist", FashionMNIST), ("mnist", MNIST)])
def test_real_images_are_resized_as_pil_does(dataset, torchvision_class, data_dir):
    ours = load(dataset, data_dir, 0).test
    theirs = torchvision_class(data_dir, train=False, transform=transforms.Resize((32, 32)))
    for index in range(0, 10_000, 50):
        image, label = theirs[index]
        assert np.array_equal(ours.images[index, 0].numpy(), np.asarray(image))
        assert ours.labels[index] == label
