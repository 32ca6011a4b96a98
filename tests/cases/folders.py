"""Image folders as people have them, small: two classes that can be told apart, a disc and a stripe, in noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

LABELS = ("disc", "stripe")


def levels(kind: int, draw: np.random.Generator, size: int = 40) -> npt.NDArray[np.uint8]:
    """A disc or a stripe somewhere in noise; uint8 (size, size)."""
    y, x = np.mgrid[:size, :size]
    cy, cx = draw.integers(10, 30, 2)
    inside = np.hypot(y - cy, x - cx) < 9 if kind == 0 else abs(x - cx) < 4
    return (draw.integers(0, 60, (size, size)) + 170 * inside).astype(np.uint8)


def arrays(count: int = 24, labels: tuple[str, ...] = LABELS) -> dict[str, list[npt.NDArray[np.uint8]]]:
    """So many images of each class, always the same ones."""
    draw = np.random.default_rng(0)
    return {label: [levels(kind, draw) for _ in range(count)] for kind, label in enumerate(labels)}


def write(
    root: Path, count: int = 24, labels: tuple[str, ...] = LABELS, part: str = "train", kind: str = "png"
) -> Path:
    """Write ``root/part/LABEL/NNN.kind``; returns ``root/part``."""
    for label, images in arrays(count, labels).items():
        (root / part / label).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            Image.fromarray(image).convert("RGB").save(root / part / label / f"{number:03}.{kind}")
    return root / part
