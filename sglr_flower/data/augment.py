"""The usual augmentation of small images."""

import torch
from torch import Tensor
from torch.nn.functional import pad

_PADDING_SHARE = 8  # 4 pixels around 32x32, as in He et al., arXiv 1512.03385, section 4.2


def augment(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Shift every image at random and, if told so, mirror every second one.

    A random crop of the image's own size out of the image with a black border an eighth of its size wide, then a
    horizontal flip with probability one half (He et al., arXiv 1512.03385, section 4.2); drawn for each image apart.

    Parameters
    ----------
    images : torch.Tensor
        uint8 [n, channels, height, width], or int8 of `inputs.of_one_channel`; left as it is.
    generator : torch.Generator
        On the CPU; it alone decides, so that a forward which is computed again sees the same images. What it draws
        depends on n, height and width.
    flip : bool
        Whether to mirror; see `sglr_flower.data.datasets.flips`.

    Returns
    -------
    torch.Tensor
        As `images`, on their device.
    """
    count, _, height, width = images.shape
    border_y, border_x = height // _PADDING_SHARE, width // _PADDING_SHARE
    top = torch.randint(2 * border_y + 1, (count,), generator=generator)
    left = torch.randint(2 * border_x + 1, (count,), generator=generator)
    black = -128 if images.dtype == torch.int8 else 0
    padded = pad(images, (border_x, border_x, border_y, border_y), value=black)
    # A view of every crop there is: [n, channels, tops, lefts, height, width].
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped = crops[torch.arange(count), :, top, left]
    if not flip:
        return cropped
    mirrored = torch.randint(2, (count, 1, 1, 1), generator=generator).bool()
    return torch.where(mirrored.to(images.device), cropped.flip(-1), cropped)
