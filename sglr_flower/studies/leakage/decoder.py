"""The decoder of an autoencoder, from smashed data back to images, for any cut."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower.errors import UserError

_WIDTH, _LEAST_WIDTH = 64, 16
"""Channels at the cut, halved with each doubling of the sides, and the fewest."""

_SEED_SIDE = 4
"""Pixels of a side of the feature map that smashed data without a place in the image are spread over."""


def as_maps(smashed: Tensor) -> Tensor | None:
    """Smashed data as feature maps (n, channels, height, width), where they have places in the image.

    Parameters
    ----------
    smashed : Tensor
        Feature maps, or tokens (n, tokens, width) that are the patches of a square, by rows: as a vision transformer
        has them, with or without a class token before them, which is left out.

    Returns
    -------
    Tensor | None
        None where there are no such places.
    """
    if smashed.ndim == 4:
        return smashed
    if smashed.ndim != 3:
        return None
    for tokens in (smashed, smashed[:, 1:]):
        side = math.isqrt(tokens.shape[1])
        if side > 1 and side * side == tokens.shape[1]:
            maps: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
            return maps
    return None


class Decoder(nn.Module):
    """From smashed data to images: transposed convolutions that double the sides until they are the image's.

    Feature maps and tokens keep their places; other smashed data go through a linear layer first.

    Parameters
    ----------
    cut_shape : tuple[int, ...]
        Of one sample's smashed data.
    channels, image_size : int
        Of the images: 1 or 3, and pixels of a side.

    Raises
    ------
    UserError
        If a sample's smashed data are not a vector, tokens or feature maps.
    """

    def __init__(self, cut_shape: tuple[int, ...], channels: int, image_size: int) -> None:
        super().__init__()
        if not 1 <= len(cut_shape) <= 3:
            raise UserError(
                f"smashed data of shape {cut_shape} per sample cannot be decoded: they must be a vector, tokens or "
                "feature maps, so choose another cut"
            )
        self.image_size = image_size
        maps = as_maps(torch.zeros(1, *cut_shape))
        self._placed = maps is not None
        if maps is None:
            numbers, depth, side = math.prod(cut_shape), _WIDTH, min(_SEED_SIDE, image_size)
            linear, places = nn.Linear(numbers, depth * side * side), nn.Unflatten(1, (depth, side, side))
            self.spread = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(numbers), linear, places)
        else:
            depth, side = maps.shape[1], min(maps.shape[2:])
        layers: list[nn.Module] = [nn.BatchNorm2d(depth), *_block(nn.Conv2d(depth, _WIDTH, 3, padding=1, bias=False))]
        width = _WIDTH
        while side < image_size:
            narrower = max(_LEAST_WIDTH, width // 2)
            layers += _block(nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1, bias=False))
            width, side = narrower, 2 * side
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, smashed: Tensor) -> Tensor:
        """Map smashed data (n, *cut shape) to logits (n, channels, image_size, image_size); sigmoid makes the image."""
        maps = as_maps(smashed) if self._placed else self.spread(smashed)
        images: Tensor = self.layers(maps)
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return images


def _block(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
