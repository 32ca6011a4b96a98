"""Images of any size and kind as images of a data set: an image file read, images resized."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sglr_flower.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


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


def read_image(path: Path, channels: int, size: int) -> Tensor:
    """Read an image file as an image of a data set.

    Parameters
    ----------
    path : pathlib.Path
        Anything that PIL reads; it is turned upright where the camera noted how it was held (EXIF).
    channels : int
        1: converted to grey; 3: converted to RGB.
    size : int
        Height and width of the result; an image that is not square is stretched, so that nothing is cut off.

    Returns
    -------
    torch.Tensor
        uint8 [channels, size, size].

    Raises
    ------
    UserError
        The file cannot be read, or it has levels that 8 bits do not hold.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # Photos are large: JPEG can be decoded at 1/2, 1/4 or 1/8 of its size. Never below twice the size
            # asked for, so that the resizing after it still decides what is seen.
            image.draft(None, (2 * size, 2 * size))
            upright = ImageOps.exif_transpose(image)
            grey_or_colour = _eight_bits(upright, path).convert("L" if channels == 1 else "RGB")
            levels = np.array(grey_or_colour.resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise UserError(f"Image file {path} is not an image that can be read: mend or remove it.") from error
    # SyntaxError is what PIL raises for a broken PNG.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Image file {path} cannot be read ({reason}): mend or remove it.") from error
    return torch.from_numpy(levels).reshape(size, size, channels).permute(2, 0, 1).contiguous()


def _eight_bits(image: "PilImage", path: Path) -> "PilImage":
    """An image whose `convert` keeps what it shows: PIL would clip levels above 255, and leave it white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(
            f"Image file {path} has levels of 32 bits, whose range is not known: convert it to 8 or 16 bits."
        )
    return image
