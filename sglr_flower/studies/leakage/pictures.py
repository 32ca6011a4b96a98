"""Rows of small pictures: images beside their reconstructions, and feature maps at the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglr_flower.run import drawing
from sglr_flower.studies.leakage.decoder import as_maps

_INCHES = 0.8
"""Of one small picture's side."""


@dataclass(frozen=True, eq=False)
class Row:
    """A line of a picture.

    Attributes
    ----------
    name : str
        Stands at its left.
    tiles : Sequence[Tensor]
        Small pictures in [0, 1]: (1, h, w) grey, (3, h, w) colour; sizes may differ.
    """

    name: str
    tiles: Sequence[Tensor]


def draw_rows(rows: Sequence[Row], title: str) -> bytes:
    """A picture of rows, as PNG.

    Parameters
    ----------
    rows : Sequence[Row]
        Not empty.
    title : str
        Stands above.
    """
    columns = max(len(row.tiles) for row in rows)
    figure = drawing.new_figure(max(5.0, _INCHES * columns + 1.4), _INCHES * len(rows) + 0.7)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, places in zip(rows, grid, strict=True):
        # Beside the first place's axes, which are turned off and would not show a label.
        places[0].text(-0.15, 0.5, row.name, transform=places[0].transAxes, ha="right", va="center", fontsize="small")
        for tile, axes in zip(row.tiles, places, strict=False):
            axes.imshow(tile.permute(1, 2, 0).expand(-1, -1, 3).numpy(), vmin=0, vmax=1, interpolation="nearest")
    figure.suptitle(title, fontsize="small", parse_math=False)
    return drawing.png(figure)


def feature_maps(smashed: Tensor, most: int) -> list[Tensor]:
    """The first feature maps of one sample's smashed data, each scaled to [0, 1] by itself.

    Parameters
    ----------
    smashed : Tensor
        (*cut shape): feature maps, or tokens that are an image's patches.
    most : int
        How many at most.

    Returns
    -------
    list[Tensor]
        Each float32 (1, h, w); none if the smashed data have no places in the image.
    """
    maps = as_maps(smashed[None])
    return [] if maps is None else [_scaled(one)[None] for one in maps[0, :most]]


def as_image(pixels: Tensor) -> Tensor:
    """A stored image, uint8 (channels, h, w), as a tile."""
    return pixels.float() / 255


def _scaled(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if low == high else (values - low) / (high - low)
