"""A user's own image files, converted as a run's data were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sglr_flower.data.datasets import ImageSet
from sglr_flower.errors import UserError


def read_image(path: Path, channels: int, size: int) -> Tensor:
    """Read an image file as an image of a run's data set.

    Parameters
    ----------
    path : Path
        Anything that PIL reads.
    channels : int
        1: converted to grey, 3: to RGB.
    size : int
        Height and width of the result; an image that is not square is stretched.

    Returns
    -------
    Tensor
        uint8 (channels, size, size).

    Raises
    ------
    UserError
        If the file is missing or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # PIL would clip 16 bits to 8 and leave a white image.
            source = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if "16" in image.mode else image
            pixels = np.array(source.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image that can be read") from None
    # SyntaxError is what PIL raises for a broken PNG.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is not an image that can be read: {reason}") from None
    planes = torch.from_numpy(pixels).reshape(1, *pixels.shape[:2], channels).permute(0, 3, 1, 2)
    return as_stored(planes, channels, size)[0]


def as_stored(images: Tensor, channels: int, size: int) -> Tensor:
    """Convert images of another data set to a run's channels and size.

    Parameters
    ----------
    images : Tensor
        uint8 (n, 1 or 3, h, w).
    channels, size : int
        As in `read_image`.

    Returns
    -------
    Tensor
        uint8 (n, channels, size, size); bilinear as PIL does it (see `data.datasets`).
    """
    if images.shape[1] > channels:
        from torchvision.transforms.functional import rgb_to_grayscale  # a second to import

        images = rgb_to_grayscale(images)
    if images.shape[-2:] != (size, size):
        images = interpolate(images.contiguous(), size=(size, size), mode="bilinear", antialias=True)
    return images.expand(-1, channels, -1, -1)


def class_folder(name: str) -> str:
    """The folder name of a class: its own name, with ``-`` for the ``/`` that no folder name can have."""
    return name.replace("/", "-")


def read_folder(folder: Path, classes: Sequence[str], channels: int, size: int) -> ImageSet:
    """Read ``folder/CLASS/*.png`` and other image files, in folders of folders too.

    Parameters
    ----------
    folder : Path
        Has a folder for each class that it has images of (see `class_folder`).
    classes : Sequence[str]
        The classes that the model knows.
    channels, size : int
        As in `read_image`.

    Returns
    -------
    ImageSet
        Labels are positions in ``classes``; in the order of class folders' and files' names.

    Raises
    ------
    UserError
        If there is no image, a folder is of an unknown class, or a file cannot be read.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # a second to import

    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    numbers = {class_folder(name): number for number, name in enumerate(classes)}
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if unknown := [name for name in found if name not in numbers]:
        raise UserError(f"--images {folder}: {unknown[0]!r} is no class of the model; they are {', '.join(numbers)}")
    files = make_dataset(folder, {name: numbers[name] for name in found}, IMG_EXTENSIONS, allow_empty=True)
    if not files:
        raise UserError(f"--images {folder}: it must hold CLASS/IMAGE files; the classes are {', '.join(numbers)}")
    images = torch.stack([read_image(Path(path), channels, size) for path, _ in files])
    return ImageSet(images, torch.tensor([number for _, number in files]))
