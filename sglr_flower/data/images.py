"""Images of any size and kind as images of a data set: an image file read, images resized."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sglr_flower.data.classfolders import formats, text
from sglr_flower.data.levels import of_values, parse
from sglr_flower.data.options import DEFAULT, NO_GROUND, Options
from sglr_flower.errors import UserError

_MOST_PIXELS = 178_956_970  # what Pillow refuses above: half a gigabyte in RGB


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images, as torchvision's Resize does on PIL images; one that is not square is stretched.

    Parameters
    ----------
    images : torch.Tensor
        uint8 [n, channels, height, width].
    size : int
        Height and width of the result.

    Returns
    -------
    torch.Tensor
        uint8 [n, channels, size, size]; `images` itself where it has that size.
    """
    if images.shape[-2:] == (size, size):
        return images
    # PIL always antialiases (which changes nothing when enlarging); on uint8 torch computes with Pillow's own
    # fixed-point arithmetic, so the levels of square images are the same ones (others differ by one at most).
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Picture:
    """An image file as it was read.

    Attributes
    ----------
    pixels : torch.Tensor or None
        uint8 [channels, size, size]; None where its values have more than 8 bits and their range is not said.
    format : str
        As Pillow calls it, such as PNG.
    width, height : int
        In pixels, as it lies in the file.
    frames : bool
        Whether it has several, of which this is the first.
    extremes : tuple of float or None
        Its least and greatest value, where they have more than 8 bits.
    transparent : bool
        Whether something behind it is seen.
    """

    pixels: Tensor | None
    format: str
    width: int
    height: int
    frames: bool
    extremes: tuple[float, float] | None = None
    transparent: bool = False


def read_image(path: Path, channels: int, size: int, options: Options = DEFAULT) -> Tensor:
    """Read an image file as an image of a data set.

    Parameters
    ----------
    path : pathlib.Path
        Anything that PIL reads; it is turned upright where the camera noted how it was held (EXIF).
    channels : int
        1: converted to grey; 3: converted to RGB.
    size : int
        Height and width of the result; an image that is not square is stretched, so that nothing is cut off.
    options : Options
        Its range of values, where it has more than 8 bits, and what is seen where it is transparent. With the range
        "auto" it is this image's own.

    Returns
    -------
    torch.Tensor
        uint8 [channels, size, size].

    Raises
    ------
    UserError
        The file cannot be read.
    """
    found = read_picture(path, channels, size, options)
    if found.pixels is None and found.extremes is not None:
        found = read_picture(path, channels, size, replace(options, levels=str(of_values([found.extremes]))))
    assert found.pixels is not None
    return found.pixels


def read_picture(path: Path, channels: int, size: int, options: Options = DEFAULT) -> Picture:
    """As `read_image`, with what else is to be known of the file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _unlimited(), Image.open(path, formats=formats()) as image:
            name, (width, height) = image.format or "", image.size
            frames = bool(getattr(image, "is_animated", False))
            # Photos are large: JPEG can be decoded at 1/2, 1/4 or 1/8 of its size. Never below twice the size
            # asked for, so that the resizing after it still decides what is seen.
            image.draft(None, (2 * size, 2 * size))
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {_MOST_PIXELS / 1e6:.0f} million")
            upright = ImageOps.exif_transpose(image)
            extremes, transparent = None, False
            if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
                values, levels = np.asarray(upright), parse(options.levels)
                extremes = _extremes(values)
                if levels is None:
                    return Picture(None, name, width, height, frames, extremes)
                upright = Image.fromarray(levels.apply(values))
            elif upright.has_transparency_data and options.ground != NO_GROUND:
                above = upright.convert("RGBA")
                transparent = np.asarray(above)[..., 3].min() < 255
                upright = Image.alpha_composite(Image.new("RGBA", above.size, options.ground), above)
            grey_or_colour = upright.convert("L" if channels == 1 else "RGB")
            levels_read = np.array(grey_or_colour.resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise UserError(f"Image file {text(str(path))} is not an image that can be read: mend or remove it.") from error
    # SyntaxError is what PIL raises for a broken PNG; others come from its plugins, which trust what they read.
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Image file {text(str(path))} cannot be read ({reason}): mend or remove it.") from error
    pixels = torch.from_numpy(levels_read).reshape(size, size, channels).permute(2, 0, 1).contiguous()
    return Picture(pixels, name, width, height, frames, extremes, bool(transparent))


@contextmanager
def _unlimited() -> Iterator[None]:
    """Without Pillow's own limit: it warns on the terminal, and refuses a JPEG that is decoded at an eighth."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd metadata, which does not change what is seen
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _extremes(values: npt.NDArray[np.generic]) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if np.issubdtype(values.dtype, np.floating) else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
