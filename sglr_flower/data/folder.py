"""The data set ``folder``: one's own images, ``data-dir/train/CLASS/*.jpg`` and, if there is one, ``data-dir/test``.

Its folders are those of torchvision's ImageFolder: a class for each folder, in the order of their names, and in it
images of any size and of any format that PIL reads, in folders of their own too.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data import imagecache, pinned
from sglr_flower.data.classfolders import Found, class_folders, endings, find, text
from sglr_flower.data.draw import held_out
from sglr_flower.data.levels import AUTO
from sglr_flower.data.options import Options
from sglr_flower.data.pictures import Pictures
from sglr_flower.data.pinned import File, Pinned
from sglr_flower.data.samples import Batch
from sglr_flower.data.source import Source, validation_split
from sglr_flower.data.targets import Classes
from sglr_flower.errors import UserError

INPUT_SIZE = 32
"""What the small networks here are made for; photographs of a scene may want more."""

_PARTS = frozenset({"train", "val", "valid", "validation", "dev", "test"})
"""What people call the parts of their data, in small letters."""
_TEST_SHARE = 5  # one fifth of train becomes test where there is no test folder
_LEAST_TRAIN_IMAGES = 6  # of which one is held out for validation


@dataclass(frozen=True, eq=False)
class Folder:
    """The images of a folder as a run has them.

    Attributes
    ----------
    classes : tuple of str
        By class number.
    pictures : Pictures
        All that were read.
    parts : dict of str to torch.Tensor
        Of train, validation and test the positions in ``pictures``, int64 [n].
    passed_over : Found
        What else lies there.
    marked : tuple of File
        The files of ``pictures`` as `pinned` has them.
    beside : tuple of str
        Folders of images beside train and test, which are not read, and files beside the class folders.
    """

    classes: tuple[str, ...]
    pictures: Pictures
    parts: dict[str, Tensor]
    passed_over: Found
    marked: tuple[File, ...]
    beside: tuple[str, ...] = ()

    def source(self) -> Source:
        """The images as a run's data."""
        images, labels = self.pictures.images, self.pictures.labels
        train, validation, test = (
            Batch(images[own], labels[own]) for own in map(self.parts.__getitem__, ("train", "validation", "test"))
        )
        return Source(train, validation, test, Classes(self.classes), flips=True)


def root(data_dir: str) -> Path:
    """The absolute path of the run-config's ``data-dir``, which this data set needs.

    Raises
    ------
    UserError
        `data_dir` is empty.
    """
    if not data_dir:
        raise UserError(
            "run-config key data-dir = '': dataset 'folder' needs it: a folder that has train/CLASS/IMAGE files, and "
            "test/CLASS/IMAGE files if test images of your own shall be used"
        )
    return Path(data_dir).expanduser().absolute()


def class_names(data_dir: str, options: Options) -> tuple[str, ...]:
    """The classes by number: those that the run began with, or are given, else the folders in ``root/train``.

    Raises
    ------
    UserError
        There is no such folder, or it has fewer than two.
    """
    if kept := pinned.read(options.kept):
        return kept.classes
    if options.classes:
        return options.classes
    names = tuple(_class_folders(root(data_dir) / "train"))
    if len(names) < 2:
        raise UserError(
            f"run-config key data-dir = {data_dir!r}: with dataset 'folder' its folder train must have a folder of "
            f"images for each of two or more classes: it has {', '.join(names) if names else 'none'}"
        )
    return names


# Remembered as `datasets.load` remembers.
@lru_cache(maxsize=2)
def load(root: Path, seed: int, size: int, options: Options) -> Folder:
    """Read all images, as RGB or, where one channel is asked for, as grey ones.

    Parameters
    ----------
    root : pathlib.Path
        The folder that has ``train`` and perhaps ``test``.
    seed : int
        Draws the sixth of train that is held out for validation.
    size : int
        Height and width that every image is resized to.
    options : Options
        Where it gives classes the folder may have any part of them.

    Returns
    -------
    Folder
        In the order of class folders and files. Without a test folder test is a stratified fifth of train, the same
        one in every run; of fewer than six images, which only a part of given classes may be, there is none.

    Raises
    ------
    UserError
        The folders are not as they should be, a class has no image or too few, or files cannot be read.
    """
    classes = class_names(str(root), options)
    if kept := pinned.read(options.kept):
        return _as_pinned(kept, root, size, options)
    # Everything that names alone tell is checked before the first of maybe a hundred thousand images is read.
    train = _find(root / "train", classes, partial=bool(options.classes))
    test = _find(root / "test", classes, partial=bool(options.classes)) if (root / "test").exists() else Found()
    if not options.classes:
        _check_enough(root, train.files, classes, divided=not test.files)
    files = (*train.files, *test.files)
    marked = {path: pinned.marked(root, os.path.relpath(path, root), number) for path, number in files}
    marks = {path: file.mark for path, file in marked.items()}
    read = imagecache.read(files, size, options, marks, trained=len(train.files), channels=options.channels or 3)
    of_train = frozenset(train.files)
    left = [file for file in read.files if file in of_train]
    if not options.classes and read.left_out:
        _check_enough(root, left, classes, divided=not test.files)
    if not left:
        raise UserError(f"Folder {text(str(root / 'train'))} has no image of any class ({', '.join(classes)}).")
    parts = _parts(read.labels, len(read) - len(left), seed, divided=not test.files)
    over = Found((), train.hidden + test.hidden, train.others + test.others)
    return Folder(classes, read, parts, over, tuple(marked[path] for path, _ in read.files), tuple(_beside(root)))


def _as_pinned(kept: Pinned, root: Path, size: int, options: Options) -> Folder:
    """The images that the run began with, whatever else lies in the folder now, or in the place of some of them."""
    marked = tuple(kept.files.values())
    paths = [os.path.join(root, file.path) for file in marked]
    read = imagecache.read(
        [(path, file.number) for path, file in zip(paths, marked, strict=True)],
        size,
        replace(options, skip_unreadable=False),
        {path: file.mark for path, file in zip(paths, marked, strict=True)},
        trained=len(kept.parts["train"].files),
        channels=options.channels or 3,
        lost={os.path.join(root, path) for path in pinned.lost(kept, root, options.kept)},
    )
    sizes = [len(part.files) for part in kept.parts.values()]
    parts = dict(zip(kept.parts, torch.arange(len(marked)).split(sizes), strict=True))
    return Folder(kept.classes, read, parts, Found(), marked)


def pin(folder: Folder, root: Path) -> Pinned:
    """What is to be kept of a folder's images, so that a run has the same ones when it goes on."""
    parts = {
        name: pinned.part_of([folder.marked[index] for index in own.tolist()], folder.classes)
        for name, own in folder.parts.items()
    }
    levels = folder.pictures.options.levels if folder.pictures.deep else AUTO
    left_out = tuple(os.path.relpath(path, root) for path in folder.pictures.left_out)
    return Pinned("folder", folder.classes, parts, levels, left_out)


def _beside(root: Path) -> Iterator[str]:
    """What lies where images are not looked for, in words: such as a folder val, or images in train itself."""
    others = (text(path.name) for path in sorted(root.iterdir()) if path.is_dir())
    if named := [name for name in others if name.lower() in _PARTS and name not in ("train", "test")]:
        yield f"folder {', '.join(named)} beside train (of which validation is drawn)"
    for part in ("train", "test"):
        nowhere = [text(path.name) for path in sorted((root / part).glob("*")) if not path.exists()]
        if nowhere:
            yield f"link {', '.join(nowhere)} in {part}, which leads nowhere"
        loose = Counter(path.suffix.lower() for path in (root / part).glob("[!.]*") if path.is_file())
        if count := sum(loose[ending] for ending in endings()):
            yield f"{count} image(s) in {part} itself, in no class folder"


def _parts(labels: Tensor, tested: int, seed: int, *, divided: bool) -> dict[str, Tensor]:
    """Which images are for train, validation and test, of which the last ``tested`` are the test folder's."""
    every = torch.arange(len(labels))
    train, test = every[: len(labels) - tested], every[len(labels) - tested :]
    if divided and len(train) >= _LEAST_TRAIN_IMAGES:
        train, test = map(torch.from_numpy, held_out(labels.numpy(), math.ceil(len(labels) / _TEST_SHARE)))
    rest, validation = validation_split(len(train), seed)
    return {"train": train[rest], "validation": train[validation], "test": test}


def _class_folders(folder: Path) -> dict[str, str]:
    """As `classfolders.class_folders`, with a sentence where there is no such folder."""
    try:
        return class_folders(folder)
    except OSError as error:
        there = sorted(text(path.name) for path in folder.parent.glob("[!.]*") if path.is_dir())
        raise UserError(
            f"run-config key data-dir = {str(folder.parent)!r}: with dataset 'folder' it must have a folder "
            f"{folder.name} with a folder of images for every class ({error.strerror})"
            + (f"; it has the folders {', '.join(there[:5])}{', ...' * (len(there) > 5)}" if there else "")
        ) from error


def _find(folder: Path, names: tuple[str, ...], *, partial: bool) -> Found:
    """The image files below the class folders of train or test; where they are ``partial`` any class may lack."""
    own, where = _class_folders(folder), text(str(folder))
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
        lie = find(folder, {own[empty[0]]: 0}).others
        beside = f" ({', '.join(f'{ending} {count}' for ending, count in lie.items())} file(s))" if lie else ""
        raise UserError(
            f"Folder {where}{os.sep}{empty[0]} has no image{beside}: add some (.jpg, .png, .tif or any other format "
            "that Pillow reads) or remove the folder."
        )
    return found


def _check_enough(root: Path, files: Sequence[tuple[str, int]], names: tuple[str, ...], *, divided: bool) -> None:
    """With a fifth of every class's images for test, each class needs five to be in it."""
    train = text(str(root / "train"))
    counts = np.bincount([number for _, number in files], minlength=len(names))
    smallest = int(counts.argmin())
    if divided and counts[smallest] < _TEST_SHARE:
        raise UserError(
            f"Folder {train}{os.sep}{names[smallest]} has {counts[smallest]} of the at least {_TEST_SHARE} images "
            f"that every class needs when a fifth is held out for test: add some, or add a folder {root / 'test'}."
        )
    if len(files) < _LEAST_TRAIN_IMAGES:
        raise UserError(f"Folder {train} has {len(files)} images, but at least {_LEAST_TRAIN_IMAGES} are needed.")
