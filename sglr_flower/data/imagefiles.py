"""Labelled image files that are not a run's own, read as a run's data were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sglr_flower.data import pictures
from sglr_flower.data.classfolders import class_folders, find
from sglr_flower.data.options import DEFAULT, Options
from sglr_flower.data.samples import Batch
from sglr_flower.errors import UserError


def class_folder(name: str) -> str:
    """The folder name of a class: its own name, with ``-`` for the ``/`` that no folder name can have."""
    return name.replace("/", "-")


def read_folder(folder: Path, classes: Sequence[str], channels: int, size: int, options: Options = DEFAULT) -> Batch:
    """Read ``folder/CLASS/*.png`` and other image files, in folders of folders too.

    Parameters
    ----------
    folder : Path
        Has a folder for each class that it has images of (see `class_folder`).
    classes : Sequence[str]
        The classes that the model knows.
    channels, size, options
        As of `data.pictures.read`.

    Returns
    -------
    Batch
        Labels are positions in ``classes``; in the order of class folders' and files' names.

    Raises
    ------
    UserError
        If there is no image, a folder is of an unknown class, or files cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    numbers = {class_folder(name): number for number, name in enumerate(classes)}
    found = class_folders(folder)
    if unknown := [name for name in found if name not in numbers]:
        raise UserError(f"--images {folder}: {unknown[0]!r} is no class of the model; they are {', '.join(numbers)}")
    files = find(folder, {own: numbers[name] for name, own in found.items()}).files
    if not files:
        raise UserError(f"--images {folder}: it must hold CLASS/IMAGE files; the classes are {', '.join(numbers)}")
    read = pictures.read(files, size, options, channels=channels)
    return Batch(read.images, read.labels)
