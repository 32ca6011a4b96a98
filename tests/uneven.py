"""Folders of images with uneven shares of three classes, as devices have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("disc", "stripe", "ring")


def picture(kind: int, draw: np.random.Generator, size: int = 24) -> npt.NDArray[np.uint8]:
    """A disc, a stripe or a ring somewhere in noise; uint8 (size, size)."""
    y, x = np.mgrid[:size, :size]
    cy, cx = draw.integers(8, size - 8, 2)
    distance = np.hypot(y - cy, x - cx)
    inside = (distance < 6, abs(x - cx) < 3, (distance > 4) & (distance < 7))[kind]
    return (draw.integers(0, 60, (size, size)) + 170 * inside).astype(np.uint8)


def write(folder: Path, train: Mapping[str, int], test: Mapping[str, int] | None = None) -> Path:
    """Write so many images of each class into ``folder/train`` and ``folder/test``; the folder."""
    draw = np.random.default_rng(0)
    for part, counts in (("train", train), ("test", test or {})):
        for name, count in counts.items():
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(picture(CLASSES.index(name), draw)).save(folder / part / name / f"{number:03}.png")
    return folder
