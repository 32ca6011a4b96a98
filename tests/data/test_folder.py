"""One's own images as a data set."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from sglr_flower.data.datasets import ensure_present, load, targets
from sglr_flower.data.options import Options
from sglr_flower.data.targets import Classes
from sglr_flower.errors import UserError


def write(root, part, counts, level=40):
    """Write so many images of each class, every class with a level of its own."""
    for number, (name, count) in enumerate(counts.items()):
        folder = root / part / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (10 + index, 12), (level * number, index, 255)).save(folder / f"{index:03}.png")


def check_labels_fit_images(images, level=40):
    assert torch.equal(images.images[:, 0, 0, 0].long(), level * images.labels)


def test_train_and_test_folders(tmp_path):
    write(tmp_path, "train", {"cat": 12, "dog": 9, "eel": 3})
    write(tmp_path, "test", {"cat": 2, "dog": 1, "eel": 4})
    splits = load("folder", str(tmp_path), 0)
    assert splits.classes == targets("folder", str(tmp_path)).names == ("cat", "dog", "eel")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 4, 7]
    assert splits.train.images.shape == (20, 3, 32, 32)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.dtype == torch.int64
    assert splits.test.labels.tolist() == [0, 0, 1, 2, 2, 2, 2]
    for part in (splits.train, splits.validation, splits.test):
        check_labels_fit_images(part)


def test_test_images_keep_trains_class_numbers_where_test_lacks_a_class(tmp_path):
    write(tmp_path, "train", {"cat": 6, "dog": 6, "eel": 6})
    (tmp_path / "test" / "eel").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "eel" / "x.JPG")
    assert load("folder", str(tmp_path), 0).test.labels.tolist() == [2]


def test_without_a_test_folder_a_stratified_fifth_is_held_out_whatever_the_seed(tmp_path):
    write(tmp_path, "train", {"cat": 20, "dog": 10})
    first, second = load("folder", str(tmp_path), 0), load("folder", str(tmp_path), 1)
    assert torch.bincount(first.test.labels).tolist() == [4, 2]
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    check_labels_fit_images(first.test)
    seen = [
        tuple(image[:2, 0, 0].tolist()) for part in (first.train, first.validation, first.test) for image in part.images
    ]
    assert len(seen) == len(set(seen)) == 30


def test_images_of_the_size_asked_for(tmp_path):
    write(tmp_path, "train", {"cat": 5, "dog": 5})
    assert load("folder", str(tmp_path), 0, 20).test.images.shape == (2, 3, 20, 20)


def test_hidden_folders_and_other_files_are_no_classes_and_sub_folders_are_searched(tmp_path):
    write(tmp_path, "train", {"cat": 5, "dog": 5})
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "README.md").write_text("")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("")
    (tmp_path / "train" / "cat" / "more").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "train" / "cat" / "more" / "x.bmp")
    splits = load("folder", str(tmp_path), 0)
    assert splits.classes == ("cat", "dog")
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 11


CLASSES = Options(classes=("cat", "dog", "eel"))


@pytest.mark.parametrize(
    ("train", "test", "sizes"),
    [
        ({"cat": 12, "eel": 12}, {}, [16, 3, 5]),  # no folder of a class
        ({"cat": 12, "dog": 0, "eel": 12}, {}, [16, 3, 5]),  # an empty one
        ({"cat": 12, "dog": 12, "eel": 3}, {}, [18, 3, 6]),  # too few to have one of each in test
        ({"dog": 7}, {}, [5, 0, 2]),  # one class alone
        ({"dog": 5}, {}, [5, 0, 0]),  # nothing to spare
        ({"eel": 1}, {}, [1, 0, 0]),
        ({"cat": 12}, {"eel": 2}, [10, 2, 2]),
        ({"cat": 12}, {"eel": 0}, [8, 1, 3]),
    ],
)
def test_with_classes_given_a_folder_has_any_part_of_them(tmp_path, train, test, sizes):
    write(tmp_path, "train", train)
    write(tmp_path, "test", test)
    splits = load("folder", str(tmp_path), 0, options=CLASSES)
    assert targets("folder", "/nowhere", options=CLASSES) == Classes(("cat", "dog", "eel"))
    assert splits.classes == ("cat", "dog", "eel")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == sizes
    numbers = {"cat": 0, "dog": 1, "eel": 2}
    counts = torch.bincount(torch.cat([splits.train.labels, splits.validation.labels, splits.test.labels]), minlength=3)
    assert counts.tolist() == [train.get(name, 0) + test.get(name, 0) for name in numbers]
    assert splits.test.images.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"cat": 3, "fox": 1}, "has the class 'fox', which is none of the run's: cat, dog, eel"),
        ({"cat": 0}, "has no image of any class (cat, dog, eel)"),
    ],
)
def test_with_classes_given_a_folder_has_none_beside_them(tmp_path, train, sentence):
    write(tmp_path, "train", train)
    with pytest.raises(UserError, match=re.escape(sentence)):
        load("folder", str(tmp_path), 0, options=CLASSES)


@pytest.mark.parametrize("use", [targets, ensure_present, lambda *arguments: load(*arguments, 0)])
def test_data_dir_is_needed(use, monkeypatch, tmp_path):
    monkeypatch.setenv("SGLR_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="data-dir = '': dataset 'folder' needs it"):
        use("folder", "")


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        ({}, "it must have a folder train with a folder of images for every class (No such file or directory)"),
        ({"train": {}}, "for each of two or more classes: it has none"),
        ({"train": {"cat": 5}}, "for each of two or more classes: it has cat"),
        ({"train": {"cat": 9, "dog": 0}}, "train/dog has no image: add some (.jpg, .png, .tif or any other format"),
        (
            {"train": {"cat": 9, "dog": 4}},
            "train/dog has 4 of the at least 5 images that every class needs",
        ),
        ({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1}}, "train has 4 images, but at least 6 are needed"),
        ({"train": {"cat": 9, "dog": 9}, "test": {"cats": 1}}, "has the class 'cats', which"),
        ({"train": {"cat": 9, "dog": 9}, "test": {"cat": 1, "dog": 0}}, "test/dog has no image"),
        ({"train": {"cat": 9, "dog": 9}, "test": {}}, "test has no folder of images"),
    ],
)
def test_folders_that_are_not_as_they_should_be(tmp_path, folders, sentence):
    for part, counts in folders.items():
        (tmp_path / part).mkdir()
        write(tmp_path, part, counts)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        load("folder", str(tmp_path), 0)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_image_is_named(tmp_path):
    write(tmp_path, "train", {"cat": 5, "dog": 5})
    (tmp_path / "train" / "dog" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train/dog/bad\.png is not an image that can be read: mend or remove it"):
        load("folder", str(tmp_path), 0)
