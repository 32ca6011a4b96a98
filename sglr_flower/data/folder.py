"""The data set ``folder``: one's own images, ``data-dir/train/CLASS/*.jpg`` and, if there is one, ``data-dir/test``.

Its folders are those of torchvision's ImageFolder: a class for each folder, in the order of their names, and in it
images of any size and of any format that PIL reads, in folders of their own too.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data.classfolders import class_folders, find, text
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


def class_names(root: Path, classes: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of the classes by class number: those given, else those of the folders in ``root/train``.

    Raises
    ------
    UserError
        There is no such folder, or it has fewer than two.
    """
    if classes:
        return classes
    names = tuple(_class_folders(root / "train"))
    if len(names) < 2:
        raise UserError(
            f"data-dir is {str(root)!r}, but with dataset 'folder' its folder train must have a folder of images for "
            f"each of two or more classes: it has {', '.join(names) if names else 'none'}."
        )
    return names


def read(root: Path, size: int, classes: tuple[str, ...] = ()) -> tuple[Part, Part]:
    """Read all images as RGB.

    Parameters
    ----------
    root : pathlib.Path
        The folder that has ``train`` and perhaps ``test``.
    size : int
        Height and width that every image is resized to.
    classes : tuple of str
        The classes by class number, of which the folder may have any part then; empty: those of its train folder.

    Returns
    -------
    tuple of tuple of torch.Tensor
        Train and test: images uint8 [n, 3, size, size] and labels int64 [n], in the order of class folders and
        files. Without a test folder test is a stratified fifth of train, the same one in every run; of fewer than six
        images, which only a part of given classes may be, it has none.

    Raises
    ------
    UserError
        The folders are not as they should be, a class has no image or too few, or a file cannot be read.
    """
    names = class_names(root, classes)
    # Everything that names alone tell is checked before the first of maybe a hundred thousand images is read.
    train_files = _files(root / "train", names, _class_folders(root / "train"), partial=bool(classes))
    test_folder = root / "test"
    test_files = (
        _files(test_folder, names, _class_folders(test_folder), partial=bool(classes)) if test_folder.exists() else []
    )
    if not classes:
        _check_enough(root, train_files, names, divided=not test_files)
    elif not train_files:
        raise UserError(f"Folder {text(str(root / 'train'))} has no image of any class ({', '.join(classes)}).")
    train, test = _read_files(train_files, size), _read_files(test_files, size)
    return (train, test) if test_files or len(train_files) < _LEAST_TRAIN_IMAGES else _divided(*train)


def _class_folders(folder: Path) -> dict[str, str]:
    """As `classfolders.class_folders`, with a sentence where there is no such folder."""
    try:
        return class_folders(folder)
    except OSError as error:
        raise UserError(
            f"data-dir is {str(folder.parent)!r}, but with dataset 'folder' it must have a folder {folder.name} with a "
            f"folder of images for every class ({error.strerror})."
        ) from error


def _files(folder: Path, names: tuple[str, ...], own: dict[str, str], *, partial: bool) -> list[tuple[str, int]]:
    """Path and class number of every image file below the class folders ``own``; of ``partial`` ones any may lack."""
    where = text(str(folder))
    if unknown := [name for name in own if name not in names]:
        if partial:
            raise UserError(
                f"Folder {where} has the class {unknown[0]!r}, which is none of the run's: {', '.join(names)}."
            )
        raise UserError(
            f"Folder {where} has the class {unknown[0]!r}, which {text(str(folder.parent / 'train'))} does not have: "
            "every test class must be one of train's."
        )
    if not own and not partial:
        raise UserError(
            f"Folder {where} has no folder of images: add one for every class, or remove {where} to have a fifth "
            "of the train images held out."
        )
    found = find(folder, {own[name]: names.index(name) for name in own})
    present = {number for _, number in found.files}
    if not partial and (empty := [name for name in own if names.index(name) not in present]):
        raise UserError(
            f"Folder {where}{os.sep}{empty[0]} has no image: add some (.jpg, .png, .tif or any other format that "
            "Pillow reads) or remove the folder."
        )
    return list(found.files)


def _check_enough(root: Path, files: list[tuple[str, int]], names: tuple[str, ...], *, divided: bool) -> None:
    """With a fifth of every class's images for test, each class needs five to be in it."""
    train = text(str(root / "train"))
    counts = np.bincount([number for _, number in files])
    smallest = int(counts.argmin())
    if divided and counts[smallest] < _TEST_SHARE:
        raise UserError(
            f"Folder {train}{os.sep}{names[smallest]} has {counts[smallest]} of the at least {_TEST_SHARE} images "
            f"that every class needs when a fifth is held out for test: add some, or add a folder {root / 'test'}."
        )
    if len(files) < _LEAST_TRAIN_IMAGES:
        raise UserError(f"Folder {train} has {len(files)} images, but at least {_LEAST_TRAIN_IMAGES} are needed.")


def _read_files(files: list[tuple[str, int]], size: int) -> Part:
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for index, (path, _) in enumerate(files):
        images[index] = read_image(Path(path), 3, size)
    return images, torch.tensor([number for _, number in files], dtype=torch.int64)


def _divided(images: Tensor, labels: Tensor) -> tuple[Part, Part]:
    """Hold a stratified fifth out as test images."""
    train, test = map(torch.from_numpy, held_out(labels.numpy(), math.ceil(len(labels) / _TEST_SHARE)))
    return (images[train], labels[train]), (images[test], labels[test])
