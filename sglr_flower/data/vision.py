"""CIFAR-10, CIFAR-100, SVHN and STL-10, read by torchvision.

CIFAR's files are Python pickles, which run code when they are opened. torchvision compares every one of them with the
MD5 sum of the published file, held in its source, before it unpickles any; this holds for files that the user put
there as well as for downloaded ones. The files of the others hold numbers only, and are compared just the same.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglr_flower.data.download import Part, Source
from sglr_flower.errors import UserError

_DIGITS = tuple(str(digit) for digit in range(10))

# fmt: off
_CIFAR_100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on


@dataclass(frozen=True)
class VisionSource(Source):
    """A data set that torchvision reads."""

    def fetch(self, folder: Path) -> None:
        """Download the files into `folder`."""
        for train in (True, False):
            self._open(folder, train, download=True)

    def read(self, root: Path) -> tuple[Part, Part]:
        """Read train and test images, three channels in their own size.

        Raises
        ------
        UserError
            A file is not the published one.
        """
        return self._part(root, train=True), self._part(root, train=False)

    def _part(self, root: Path, train: bool) -> Part:
        try:
            data_set = self._open(root, train, download=False)
        except (RuntimeError, OSError) as error:  # RuntimeError: an MD5 sum differs
            raise UserError(
                f"Data set {self.name} in {root} is damaged (a file of it is not the published one, or cannot be "
                f"read): delete {', '.join(self.files)} there, then start again to download them."
            ) from error
        images, labels = self._arrays(data_set)
        return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))

    @abstractmethod
    def _open(self, root: Path, train: bool, download: bool) -> Any:
        """Let torchvision read a part, downloading it first if so told; RuntimeError if an MD5 sum differs."""

    @abstractmethod
    def _arrays(self, data_set: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        """Images [n, 3, height, width] and labels [n] of what `_open` returns."""


class _Cifar(VisionSource):
    def urls(self) -> list[str]:
        return [self.torchvision_class().url]

    def _open(self, root: Path, train: bool, download: bool) -> Any:
        return self.torchvision_class()(root, train=train, download=download)

    def _arrays(self, data_set: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        return data_set.data.transpose(0, 3, 1, 2), np.asarray(data_set.targets)


class _Stl(VisionSource):
    def urls(self) -> list[str]:
        return [self.torchvision_class().url]

    def _open(self, root: Path, train: bool, download: bool) -> Any:
        return self.torchvision_class()(root, split="train" if train else "test", download=download)

    def _arrays(self, data_set: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        return data_set.data, data_set.labels


class _Svhn(_Stl):
    def urls(self) -> list[str]:
        return [self.torchvision_class().split_list[split][0] for split in ("train", "test")]


SOURCES: dict[str, VisionSource] = {
    "cifar-10": _Cifar(
        "CIFAR10",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        input_size=32,
        flips=True,
        files=(
            *(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
            "cifar-10-batches-py/test_batch",
            "cifar-10-batches-py/batches.meta",
        ),
    ),
    "cifar-100": _Cifar(
        "CIFAR100",
        _CIFAR_100_CLASSES,
        input_size=32,
        flips=True,
        files=("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
    ),
    "svhn": _Svhn("SVHN", _DIGITS, input_size=32, flips=False, files=("train_32x32.mat", "test_32x32.mat")),
    "stl-10": _Stl(
        "STL10",
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        # Half of its 96: a step costs twice that of 32x32 and not nine times, and the small networks here, made
        # for 32x32, still see whole objects.
        input_size=48,
        flips=True,
        # Without the 2.8 GB of unlabeled images, which nothing here reads, torchvision takes it for damaged.
        files=tuple(f"stl10_binary/{part}.bin" for part in ("train_X", "train_y", "unlabeled_X", "test_X", "test_y")),
    ),
}
