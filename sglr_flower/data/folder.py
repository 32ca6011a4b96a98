"""The data set ``folder``: one's own images, ``data-dir/train/CLASS/*.jpg`` and, if there is one, ``data-dir/test``.

Its folders are those of torchvision's ImageFolder: a class for each folder, in the order of their names, and in it
images of any size and of any format that PIL reads, in folders of their own too.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data.download import Part
from sglr_flower.data.draw import held_out
from sglr_flower.data.images import read_image
from sglr_flower.errors import UserError

INPUT_SIZE = 32
"""What the small networks here are made for; photographs of a scene may want more."""

_TEST_SHARE = 5  # one fifth of train becomes test where there is no test folder
_LEAST_TRAIN_IMAGES = 6  # of which one is held out for validation


def root(data_dir: str) -> Path:
    """The absolute path of the run-config's ``data-dir``, which this data set needs.

    Raises
    ------
    UserError
        `data_dir` is empty.
    """
    if not data_dir:
        raise UserError(
            "data-dir is '', but dataset 'folder' needs it: a folder that has train/CLASS/IMAGE files, "
            "and test/CLASS/IMAGE files if test images of your own shall be used."
        )
    return Path(data_dir).expanduser().absolute()


def class_names(root: Path) -> tuple[str, ...]:
    """The names of the classes, which are those of the folders in ``root/train``, by class number.

    Raises
    ------
    UserError
        There is no such folder, or it has fewer than two.
    """
    names = _sub_folders(root / "train")
    if len(names) < 2:
        raise UserError(
            f"data-dir is {str(root)!r}, but with dataset 'folder' its folder train must have a folder of images for "
            f"each of two or more classes: it has {', '.join(names) if names else 'none'}."
        )
    return names


def read(root: Path, size: int) -> tuple[Part, Part]:
    """Read all images as RGB.

    Parameters
    ----------
    root : pathlib.Path
        The folder that has ``train`` and perhaps ``test``.
    size : int
        Height and width that every image is resized to.

    Returns
    -------
    tuple of tuple of torch.Tensor
        Train and test: images uint8 [n, 3, size, size] and labels int64 [n], in the order of class folders and
        files. Without a test folder it is a stratified fifth of train, the same one in every run.

    Raises
    ------
    UserError
        The folders are not as they should be, a class has no image or too few, or a file cannot be read.
    """
    classes = class_names(root)
    train_files = _files(root / "train", {name: number for number, name in enumerate(classes)})
    test_folder = root / "test"
    # Everything that names alone tell is checked before the first of maybe a hundred thousand images is read.
    test_files = _files(test_folder, _test_classes(test_folder, classes)) if test_folder.exists() else []
    if not test_files:
        _check_enough_to_divide(root, train_files, classes)
    if len(train_files) < _LEAST_TRAIN_IMAGES:
        raise UserError(
            f"Folder {root / 'train'} has {len(train_files)} images, but at least {_LEAST_TRAIN_IMAGES} are needed."
        )
    train = _read_files(train_files, size)
    return (train, _read_files(test_files, size)) if test_files else _divided(*train)


def _sub_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in `folder`, sorted, without hidden ones such as .ipynb_checkpoints."""
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))
    except OSError as error:
        raise UserError(
            f"data-dir is {str(folder.parent)!r}, but with dataset 'folder' it must have a folder {folder.name} with a "
            f"folder of images for every class ({error.strerror})."
        ) from error


def _test_classes(folder: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """Class numbers of the test folder's classes: some or all of train's."""
    numbers = {name: number for number, name in enumerate(classes)}
    present = _sub_folders(folder)
    if unknown := [name for name in present if name not in numbers]:
        raise UserError(
            f"Folder {folder} has the class {unknown[0]!r}, which {folder.parent / 'train'} does not have: "
            "every test class must be one of train's."
        )
    if not present:
        raise UserError(
            f"Folder {folder} has no folder of images: add one for every class, or remove {folder} to have a fifth "
            "of the train images held out."
        )
    return {name: numbers[name] for name in present}


def _files(folder: Path, numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Path and class number of every image file below the class folders, sorted."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # 2 s, for this data set alone

    files: list[tuple[str, int]] = make_dataset(folder, dict(numbers), extensions=IMG_EXTENSIONS, allow_empty=True)
    found = {number for _, number in files}
    if empty := [name for name, number in numbers.items() if number not in found]:
        raise UserError(
            f"Folder {folder / empty[0]} has no image: add some ({', '.join(IMG_EXTENSIONS)}) or remove the folder."
        )
    return files


def _check_enough_to_divide(root: Path, files: list[tuple[str, int]], classes: tuple[str, ...]) -> None:
    """With a fifth of every class's images for test, each class needs five to be in it."""
    counts = np.bincount([number for _, number in files])
    smallest = int(counts.argmin())
    if counts[smallest] < _TEST_SHARE:
        raise UserError(
            f"Folder {root / 'train' / classes[smallest]} has {counts[smallest]} of the at least {_TEST_SHARE} images "
            f"that every class needs when a fifth is held out for test: add some, or add a folder {root / 'test'}."
        )


def _read_files(files: list[tuple[str, int]], size: int) -> Part:
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for index, (path, _) in enumerate(files):
        images[index] = read_image(Path(path), 3, size)
    return images, torch.tensor([number for _, number in files])


def _divided(images: Tensor, labels: Tensor) -> tuple[Part, Part]:
    """Hold a stratified fifth out as test images."""
    train, test = map(torch.from_numpy, held_out(labels.numpy(), math.ceil(len(labels) / _TEST_SHARE)))
    return (images[train], labels[train]), (images[test], labels[test])
