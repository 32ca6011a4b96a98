"""Many labelled image files read as one tensor, with what a person should know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sglr_flower.data.classfolders import text
from sglr_flower.data.images import Picture, read_picture
from sglr_flower.data.levels import AUTO, of_values
from sglr_flower.data.options import Options
from sglr_flower.errors import UserError

_NAMED = 10
"""Files that are named; the rest is counted."""

File = tuple[str, int]
"""Path and class number."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Image files as they were read.

    Attributes
    ----------
    files : tuple of (str, int)
        Those that could be read.
    images : torch.Tensor
        uint8 [n, channels, size, size].
    formats : Counter of str
        Pillow's name of each format, and how many files have it.
    sizes : Counter of (int, int)
        Width and height in pixels, and how many files have them.
    deep : int
        Files with more than 8 bits.
    frames : int
        Files with several frames.
    transparent : int
        Files that let something behind them be seen.
    options : Options
        As they were read with: if their range was "auto" and there are deep ones, the range that they use.
    left_out : tuple of str
        Files that could not be read.
    """

    files: tuple[File, ...]
    images: Tensor
    formats: Counter[str]
    sizes: Counter[tuple[int, int]]
    deep: int
    frames: int
    transparent: int
    options: Options
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """Their class numbers, int64 [n]."""
        return torch.tensor([number for _, number in self.files], dtype=torch.int64)


def read(files: Sequence[File], size: int, options: Options, *, trained: int = 0, channels: int = 3) -> Pictures:
    """Read image files, all of them before any is complained about.

    Parameters
    ----------
    files : Sequence of (str, int)
        Path and class number of each.
    size, channels
        As of `images.read_image`.
    options : Options
        How. With the range "auto" it is that of the first ``trained`` files together, or where none of these has one
        that of all.

    Raises
    ------
    UserError
        Some cannot be read, and they are not to be left out: the first ten are named.
    """
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    told: list[Picture] = []
    kept: list[int] = []
    refused: dict[str, UserError] = {}
    for index, (path, _) in enumerate(files):
        try:
            found = read_picture(Path(path), channels, size, options)
        except UserError as error:
            refused[path] = error
            continue
        kept.append(index)
        told.append(replace(found, pixels=None))
        if found.pixels is not None:
            images[index] = found.pixels
    if refused and not options.skip_unreadable:
        raise _unreadable(refused)
    deep = {index: found.extremes for index, found in zip(kept, told, strict=True) if found.extremes}
    if deep and options.levels == AUTO:
        first = [extremes for index, extremes in deep.items() if index < trained] or list(deep.values())
        options = replace(options, levels=str(of_values(first)))
        for index in deep:
            pixels = read_picture(Path(files[index][0]), channels, size, options).pixels
            assert pixels is not None
            images[index] = pixels
    return Pictures(
        files=tuple(files[index] for index in kept),
        images=images if len(kept) == len(files) else images[kept],
        formats=Counter(found.format for found in told),
        sizes=Counter((found.width, found.height) for found in told),
        deep=len(deep),
        frames=sum(found.frames for found in told),
        transparent=sum(found.transparent for found in told),
        options=options,
        left_out=tuple(refused),
    )


def named(files: Sequence[str]) -> str:
    """The first ten of some files, and how many more there are."""
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(map(text, files[:_NAMED])) + more


def _unreadable(refused: dict[str, UserError]) -> UserError:
    if len(refused) == 1:
        return next(iter(refused.values()))
    return UserError(
        f"{len(refused)} image files cannot be read: {named(tuple(refused))}. Mend or remove them, or leave them out "
        "with run-config key unreadable = 'skip'."
    )
