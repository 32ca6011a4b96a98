"""Data sets of four idx files, Fashion-MNIST and MNIST, and their reading.

They lie as torchvision lays them out, ``FashionMNIST/raw/train-images-idx3-ubyte`` and so on, as they are or
with gzip (``.gz``).
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data.download import Part, Source
from sglr_flower.errors import UserError

_INPUT_SIZE = 32  # the authors' code resizes the 28x28 images to 32x32

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class IdxSource(Source):
    """A data set of idx files."""

    def raw(self, root: Path) -> Path:
        """Folder of the files below the data folder `root`."""
        return root / self.name / "raw"

    def is_present(self, root: Path) -> bool:
        """Whether all four files lie below `root`, with gzip or without; looks at names only."""
        return all((root / file).is_file() or (root / f"{file}.gz").is_file() for file in self.files)

    def urls(self) -> list[str]:
        """The mirrors."""
        return list(self.torchvision_class().mirrors)

    def fetch(self, folder: Path) -> None:
        """Download the files into `folder`."""
        self.torchvision_class()(folder, download=True)

    def read(self, root: Path) -> tuple[Part, Part]:
        """Read train and test images, one channel of 28x28 pixels; a UserError names a damaged file."""
        (train, train_labels), (test, test_labels) = (read(self, root, part) for part in ("train", "t10k"))
        return (train[:, None], train_labels), (test[:, None], test_labels)


def _source(name: str, classes: tuple[str, ...], flips: bool) -> IdxSource:
    return IdxSource(name, classes, _INPUT_SIZE, flips, tuple(f"{name}/raw/{file}" for file in _FILES))


SOURCES = {
    "fashion-mnist": _source(
        "FashionMNIST",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        flips=True,
    ),
    "mnist": _source("MNIST", tuple(str(digit) for digit in range(10)), flips=False),
}


def read(source: IdxSource, root: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read the images and labels of a part of a data set.

    Parameters
    ----------
    source : IdxSource
        The data set.
    root : pathlib.Path
        The data folder.
    part : str
        ``train`` or ``t10k``, as the files are called.

    Returns
    -------
    tuple of torch.Tensor
        Images uint8 [n, height, width] and labels int64 [n].

    Raises
    ------
    UserError
        A file is damaged.
    """
    images_file = source.raw(root) / f"{part}-images-idx3-ubyte"
    labels_file = source.raw(root) / f"{part}-labels-idx1-ubyte"
    images, labels = _read_file(images_file), _read_file(labels_file)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise UserError(
            f"Data files {images_file} {tuple(images.shape)} and {labels_file} {tuple(labels.shape)} do not belong "
            "together: delete them, then start again to download them."
        )
    if int(labels.max()) >= len(source.classes):
        raise UserError(
            f"Data file {labels_file} has the label {int(labels.max())}, but there are {len(source.classes)} classes: "
            "delete it, then start again to download it."
        )
    return images, labels.long()


def _read_file(file: Path) -> Tensor:
    """Read an idx file of bytes: 2 zero bytes, type, number of axes, the axes as big-endian int32, the bytes.

    Not left to torchvision, whose import would cost every node's process more than a second.
    """
    try:
        with _open(file) as stream:
            content = bytearray(stream.read())  # not bytes, as torch wants memory that it may write to
        axes = content[3]
        shape = np.frombuffer(content, ">i4", count=axes, offset=4)
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape))
    # The file ends within its header or its bytes, or gzip says so in its own ways.
    except (IndexError, ValueError, EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"Data file {file} cannot be read ({error}): delete it, then start again to download it."
        ) from error


def _open(file: Path) -> BinaryIO:
    return file.open("rb") if file.exists() else cast(BinaryIO, gzip.open(f"{file}.gz"))
