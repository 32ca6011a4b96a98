"""The image data sets, read, resized to the model's input and split into train, validation and test.

Fashion-MNIST and MNIST are files (`idx`); "digits" comes with scikit-learn and needs no disk and no network.
Images stay uint8, a quarter of the memory of float32, until `to_input` makes a model's input of a batch.
"""

import http.client
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sglr_flower.data import idx
from sglr_flower.data.draw import balanced_order, generator
from sglr_flower.errors import UserError

_IDX_INPUT_SIZE = 32  # the authors' code resizes the 28x28 images to 32x32

# 8x8 would be 2x2 after ResNet16's two strides, nothing left for a convolution to look at; 16x16 still costs
# a quarter of 32x32, and a quick run is what the digits are for.
_DIGITS_INPUT_SIZE = 16
_DIGITS_TEST_SIZE = 297  # leaves a round 1,500 of the 1,797
_DIGITS_CLASSES = tuple(str(digit) for digit in range(10))

_VALIDATION_SHARE = 6  # one sixth of train: the paper's 10,000 of 60,000


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, shared by every client that reads them: never modify the tensors in place.

    Attributes
    ----------
    images : torch.Tensor
        uint8 [n, channels, height, width], already of the model's input size.
    labels : torch.Tensor
        int64 [n], class numbers from 0 up.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "ImageSet":
        """Copy the images at `indices` (int64 [k]), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set as a run uses it.

    Attributes
    ----------
    train, validation, test : ImageSet
        Disjoint. The clients hold parts of `train`; `validation` was held out of it for the server.
    classes : tuple of str
        The name of each class, by class number.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Name the data sets that `load` knows."""
    return (*idx.SOURCES, "digits")


def classes(dataset: str) -> tuple[str, ...]:
    """Name a data set's classes, by class number, without reading it.

    Raises
    ------
    UserError
        The data set is unknown.
    """
    _check_known(dataset)
    return _DIGITS_CLASSES if dataset == "digits" else idx.SOURCES[dataset].classes


def load(dataset: str, data_dir: str, seed: int) -> Splits:
    """Read a data set, downloading it first where it is missing.

    Parameters
    ----------
    dataset : str
        One of `names`.
    data_dir : str
        The folder that holds, or shall hold, the data set's folder; empty for the one named by the environment
        variable SGLR_DATA_DIR, or else for the user's data folder of this program.
    seed : int
        Draws the sixth of the training images that is held out for validation (i.i.d., as in the paper); at
        least 0.

    Returns
    -------
    Splits
        Remembered for the next call with the same arguments. The test set is the data set's own; digits has
        none, and gets a stratified one that does not depend on `seed`.

    Raises
    ------
    UserError
        The data set is unknown, or missing and not to be had, or a file of it is damaged.
    """
    ensure_present(dataset, data_dir)
    if dataset == "digits":
        return _load_digits(seed)
    # Resolved here, so that what is remembered depends on arguments alone and not on the environment.
    return _load_idx(dataset, idx.data_folder(data_dir).path, seed)


def ensure_present(dataset: str, data_dir: str) -> None:
    """Download a data set unless its files are there.

    Several processes may call this at once; one of them downloads and the others wait for it.

    Parameters
    ----------
    dataset, data_dir : str
        As in `load`.

    Raises
    ------
    UserError
        The data set is unknown, or it is missing and cannot be downloaded into the folder.
    """
    _check_known(dataset)
    if dataset == "digits":
        return
    source, folder = idx.SOURCES[dataset], idx.data_folder(data_dir)
    if source.is_present(folder.path):
        return
    try:
        idx.download(source, folder.path)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Data set {dataset} is not in {folder.path} ({folder.origin}) and could not be downloaded there "
            f"({reason}): put its idx files into {source.raw(folder.path)}, or set data-dir in the run-config "
            f"or the environment variable {idx.DATA_DIR_VARIABLE} to a folder that has them."
        ) from error


def _check_known(dataset: str) -> None:
    if dataset not in names():
        raise UserError(f"dataset is {dataset!r}, which is not one of {', '.join(names())}.")


def to_input(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn stored images into what a model reads, as the authors' code does.

    Parameters
    ----------
    images : torch.Tensor
        uint8 [batch, 1 or 3, height, width].
    dtype : torch.dtype
        Floating point type of the result.

    Returns
    -------
    torch.Tensor
        `dtype` [batch, 3, height, width] on the same device: 0..255 scaled to -1..1, grey repeated to three
        channels.
    """
    # Scaled in float32 at least: a half type would round twice.
    scaled = images.to(torch.promote_types(dtype, torch.float32)).div_(127.5).sub_(1.0)
    return scaled.to(dtype).expand(-1, 3, -1, -1).contiguous()


def subset(images: ImageSet, size: int, seed: int) -> ImageSet:
    """Draw a class-balanced sample, for example to evaluate on fewer images.

    Parameters
    ----------
    images : ImageSet
        What to draw from, without replacement.
    size : int
        How many images; 0, or as many as there are or more, for all of them.
    seed : int
        Decides the draw; at least 0.

    Returns
    -------
    ImageSet
        `size` images in their original order, the same number of every class as far as size and classes
        allow (a class that is too small is made up for by the others); `images` itself when all are asked for.
    """
    if size == 0 or size >= len(images):
        return images
    drawn = balanced_order(images.labels.numpy(), generator(seed, "subset"))[:size]
    return images.take(torch.from_numpy(np.sort(drawn)))


# Both loads are remembered in the process: a node's process is handed one message per round and would read the
# data set anew each time. Two at most, because more would keep in memory what nobody asks for again.
@lru_cache(maxsize=2)
def _load_idx(dataset: str, root: Path, seed: int) -> Splits:
    source = idx.SOURCES[dataset]
    (train, train_labels), (test, test_labels) = (idx.read(source, root, part) for part in ("train", "t10k"))
    return _held_out(
        ImageSet(_resize(train, _IDX_INPUT_SIZE), train_labels),
        ImageSet(_resize(test, _IDX_INPUT_SIZE), test_labels),
        source.classes,
        seed,
    )


@lru_cache(maxsize=2)
def _load_digits(seed: int) -> Splits:
    """Load scikit-learn's digits, 8x8 images of levels 0..16."""
    # Imported here because scikit-learn takes nearly 2 s, which the other data sets need not wait for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    levels, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(levels.reshape(-1, 8, 8) * (255 / 16)).round_().to(torch.uint8)
    everything = ImageSet(_resize(pixels, _DIGITS_INPUT_SIZE), torch.from_numpy(labels.astype(np.int64)))
    # A constant seed: scores of two runs can be compared only on the same test set.
    train, test = train_test_split(
        torch.arange(len(everything)), test_size=_DIGITS_TEST_SIZE, stratify=labels, random_state=0
    )
    return _held_out(everything.take(train), everything.take(test), _DIGITS_CLASSES, seed)


def _held_out(train: ImageSet, test: ImageSet, classes: tuple[str, ...], seed: int) -> Splits:
    """Hold the validation set out of the training images."""
    order = torch.from_numpy(generator(seed, "validation").permutation(len(train)))
    size = len(train) // _VALIDATION_SHARE
    validation, rest = order[:size].sort().values, order[size:].sort().values
    return Splits(train.take(rest), train.take(validation), test, classes)


def _resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [n, height, width] to uint8 [n, 1, size, size], as torchvision's Resize does on PIL images.

    PIL always antialiases (which changes nothing when enlarging); on uint8 torch computes with Pillow's own
    fixed-point arithmetic, so the levels are the same ones.
    """
    return interpolate(images[:, None], size=(size, size), mode="bilinear", antialias=True)
