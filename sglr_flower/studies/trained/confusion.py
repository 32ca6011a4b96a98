"""A confusion matrix as a picture and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sglr_flower.files import write_atomic
from sglr_flower.run import drawing

_MOST_FIGURES = 20
"""Classes up to which every cell has its percentage written into it."""


def confusion_csv(matrix: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Counts as CSV: a row per true class, a column per predicted class, both with the classes' names.

    Parameters
    ----------
    matrix : NDArray[np.int64]
        (classes, classes), true class by predicted class.
    classes : Sequence[str]
        Names by class number.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *classes])
    for name, row in zip(classes, matrix.tolist(), strict=True):
        writer.writerow([name, *row])
    return text.getvalue().encode()


def normalised(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per cent of each true class (row); NaN in the row of a class without images."""
    images = matrix.sum(axis=1, keepdims=True)
    percent = np.full(matrix.shape, np.nan)
    np.divide(100.0 * matrix, images, out=percent, where=images > 0)
    return percent


def save_confusion(matrix: NDArray[np.int64], classes: Sequence[str], title: str, picture: Path) -> None:
    """Draw a confusion matrix, normalised by true class, into a PNG file, which is written whole or not at all.

    Parameters
    ----------
    matrix, classes
        As in `confusion_csv`.
    title : str
        What was evaluated.
    picture : Path
        The file; its folder exists.
    """
    from matplotlib.colors import PowerNorm

    percent, count = normalised(matrix), len(classes)
    side = max(6.0, 0.62 * count) if count <= _MOST_FIGURES else max(12.0, 0.14 * count)
    figure = drawing.new_figure(side + 1.5, side + 0.5)
    axes = figure.subplots()
    # The root lets the rare confusions be seen beside the diagonal.
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, vmin=0.0, vmax=100.0))
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
    size = 9.0 if count <= _MOST_FIGURES else 6.0
    axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.suptitle(textwrap.fill(title, round(12 * side)), fontsize=10)
    if count <= _MOST_FIGURES:
        for (row, column), value in np.ndenumerate(percent):
            if value > 0:
                text = f"{value:.0f}" if value >= 1 else "<1"
                color = "white" if value > 40 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=color)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="% of the true class", shrink=0.7, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    write_atomic(picture, drawing.png(figure))
