"""The image data sets, read, resized to the model's input and split into train, validation and test.

Published data sets are files, downloaded where they are missing and read by us (`idx`) or by torchvision (`vision`);
"digits" comes with scikit-learn and needs no disk and no network; "folder" is the user's own images (`folder`).
Images stay uint8, a quarter of the memory of float32, until `to_input` makes a model's input of a batch.
"""

import http.client
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data import folder, idx, vision
from sglr_flower.data.download import DATA_DIR_VARIABLE, Part, Source, data_folder, download
from sglr_flower.data.draw import balanced_order, held_out
from sglr_flower.data.images import resize
from sglr_flower.errors import UserError
from sglr_flower.seeds import numpy_generator as generator

_SOURCES: dict[str, Source] = {**idx.SOURCES, **vision.SOURCES}

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
class Share:
    """A client's part of a set: the set that all clients share, and which of its images are this one's.

    Attributes
    ----------
    whole : ImageSet
        With other clients' images too.
    indices : torch.Tensor
        int64 [n], positions in ``whole``.
    """

    whole: ImageSet
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> ImageSet:
        """Copy the client's images at `indices` (int64 [k], from 0 to n - 1), in that order."""
        return self.whole.take(self.indices[indices])


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
    return (*_SOURCES, "digits", "folder")


def classes(dataset: str, data_dir: str = "") -> tuple[str, ...]:
    """Name a data set's classes, by class number, without reading its images.

    Parameters
    ----------
    dataset, data_dir : str
        As in `load`. The classes of "folder" are the names of the folders in ``data_dir/train``; the others' do not
        depend on `data_dir`.

    Raises
    ------
    UserError
        The data set is unknown, or "folder" has no folder or fewer than two classes.
    """
    _check_known(dataset)
    match dataset:
        case "digits":
            return _DIGITS_CLASSES
        case "folder":
            return folder.class_names(folder.root(data_dir))
    return _SOURCES[dataset].classes


def input_size(dataset: str, image_size: int = 0) -> int:
    """The side in pixels that a data set's images are resized to.

    Parameters
    ----------
    dataset : str
        One of `names`.
    image_size : int
        The run-config's ``image-size``: 0 for the data set's own default, which is 16 for digits (of 8), 48 for
        stl-10 (of 96), and 32 for all others.

    Raises
    ------
    UserError
        The data set is unknown, or `image_size` is negative.
    """
    _check_known(dataset)
    if image_size < 0:
        raise UserError(f"image-size is {image_size}, but must be 0 (the data set's default) or more.")
    if image_size:
        return image_size
    match dataset:
        case "digits":
            return _DIGITS_INPUT_SIZE
        case "folder":
            return folder.INPUT_SIZE
    return _SOURCES[dataset].input_size


def channels(dataset: str) -> int:
    """The channels of a data set's stored images: 1 for grey ones, else 3.

    Raises
    ------
    UserError
        The data set is unknown.
    """
    _check_known(dataset)
    return 1 if dataset == "digits" or isinstance(_SOURCES.get(dataset), idx.IdxSource) else 3


def flips(dataset: str) -> bool:
    """Whether augmentation may mirror a data set's images: not where they are digits, which it would garble.

    "folder" is taken for photographs, which show the same in a mirror.

    Raises
    ------
    UserError
        The data set is unknown.
    """
    _check_known(dataset)
    match dataset:
        case "digits":
            return False
        case "folder":
            return True
    return _SOURCES[dataset].flips


def load(dataset: str, data_dir: str, seed: int, image_size: int = 0) -> Splits:
    """Read a data set, downloading it first where it is missing.

    Parameters
    ----------
    dataset : str
        One of `names`.
    data_dir : str
        The folder that holds, or shall hold, the data set's files; empty for the one named by the environment
        variable SGLR_DATA_DIR, or else for the user's data folder of this program. For "folder" it must be given
        and is the folder that has ``train`` and perhaps ``test``.
    seed : int
        Draws the sixth of the training images that is held out for validation (i.i.d., as in the paper); at
        least 0.
    image_size : int
        As in `input_size`.

    Returns
    -------
    Splits
        Remembered for the next call with the same arguments. The test set is the data set's own; digits, and
        "folder" where it has none, get a stratified one that does not depend on `seed`.

    Raises
    ------
    UserError
        The data set is unknown, or missing and not to be had, or a file of it is damaged.
    """
    ensure_present(dataset, data_dir)
    size = input_size(dataset, image_size)
    match dataset:
        case "digits":
            return _load_digits(seed, size)
        case "folder":
            return _load_folder(folder.root(data_dir), seed, size)
    # Resolved here, so that what is remembered depends on arguments alone and not on the environment.
    return _load_published(dataset, data_folder(data_dir).path, seed, size)


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
    if dataset == "folder":
        folder.class_names(folder.root(data_dir))
        return
    source, where = _SOURCES[dataset], data_folder(data_dir)
    if source.is_present(where.path):
        return
    try:
        download(source, where.path)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Data set {dataset} is not in {where.path} ({where.origin}) and could not be downloaded there "
            f"({reason}): put its files there ({', '.join(source.files)}), or set data-dir in the run-config "
            f"or the environment variable {DATA_DIR_VARIABLE} to a folder that has them."
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


# What is read is remembered in the process: a node's process is handed one message per round and would read the
# data set anew each time. Two at most, because more would keep in memory what nobody asks for again.
@lru_cache(maxsize=2)
def _load_published(dataset: str, root: Path, seed: int, size: int) -> Splits:
    source = _SOURCES[dataset]
    train, test = source.read(root)
    return _held_out(_resized(train, size), _resized(test, size), source.classes, seed)


@lru_cache(maxsize=2)
def _load_folder(root: Path, seed: int, size: int) -> Splits:
    train, test = folder.read(root, size)
    return _held_out(ImageSet(*train), ImageSet(*test), folder.class_names(root), seed)


@lru_cache(maxsize=2)
def _load_digits(seed: int, size: int) -> Splits:
    """Load scikit-learn's digits, 8x8 images of levels 0..16."""
    rows = np.loadtxt(_digits_file(), delimiter=",")  # an image's 64 levels and its label
    pixels = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round_().to(torch.uint8)
    labels = rows[:, -1].astype(np.int64)
    everything = _resized((pixels, torch.from_numpy(labels)), size)
    train, test = (everything.take(torch.from_numpy(part)) for part in held_out(labels, _DIGITS_TEST_SIZE))
    return _held_out(train, test, _DIGITS_CLASSES, seed)


def _digits_file() -> Path:
    """The file that scikit-learn's ``load_digits`` reads; found without importing it, which would take over a second.

    Raises
    ------
    UserError
        If scikit-learn is not installed, or a version of it that has the file elsewhere.
    """
    spec = importlib.util.find_spec("sklearn")
    for place in (spec and spec.submodule_search_locations) or ():
        if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            return file
    raise UserError("Data set digits is not there: it comes with scikit-learn, so install that again.")


def _held_out(train: ImageSet, test: ImageSet, classes: tuple[str, ...], seed: int) -> Splits:
    """Hold the validation set out of the training images."""
    order = torch.from_numpy(generator(seed, "validation").permutation(len(train)))
    size = len(train) // _VALIDATION_SHARE
    validation, rest = order[:size].sort().values, order[size:].sort().values
    return Splits(train.take(rest), train.take(validation), test, classes)


def _resized(part: Part, size: int) -> ImageSet:
    images, labels = part
    return ImageSet(resize(images, size), labels)
