"""What tables report of a finished cell: which of its figures, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Figures = Mapping[str, float | None]
"""A finished cell's figures by name: those of its summary, and the measures of its attack (`results.figures`)."""


@dataclass(frozen=True)
class Measure:
    """A figure of a cell.

    Attributes
    ----------
    column : str
        Its column in ``results.csv``, where it is from another file than the run's summary; else empty.
    heading, axis : str
        In a table, and at an axis of a picture.
    decimals : int
        With which it is shown.
    value : Callable[[Figures], float]
        Takes it from a cell's figures; nan of a cell that has no such one.
    log : bool
        Whether it is drawn on a logarithmic axis.
    """

    column: str
    heading: str
    axis: str
    decimals: int
    value: Callable[[Figures], float]
    log: bool = False


def _number(figures: Figures, name: str) -> float:
    value = figures.get(name)
    return math.nan if value is None else float(value)


def _accuracy(figures: Figures) -> float:
    """Mean over clients of the test accuracy at each one's best validation round, in percent."""
    return 100 * _number(figures, "test_accuracy_mean")


def _megabytes(figures: Figures) -> float:
    """Smashed data and cut gradients of a client in the whole training, on the average over clients, in 10^6 bytes."""
    sent = sum(_number(figures, f"bytes_{part}") for part in ("smashed", "unicast", "broadcast"))
    return sent / _number(figures, "clients") / 1e6


def _epsilon(figures: Figures) -> float:
    """What the run has spent; nan where it states no epsilon."""
    return _number(figures, "epsilon") or math.nan


def _excess(figures: Figures) -> float:
    """By how much the reconstructions' cross-entropy is above that of the images with themselves."""
    return CROSS_ENTROPY.value(figures) - FLOOR.value(figures)


def _of_attack(name: str, heading: str, decimals: int, axis: str = "") -> Measure:
    return Measure(name, heading, axis or heading, decimals, lambda figures: _number(figures, name))


ACCURACY = Measure("", "accuracy (%)", "test accuracy (%)", 2, _accuracy)
MEGABYTES = Measure("", "client MB", "smashed data and cut gradients of a client (MB)", 2, _megabytes, log=True)
EPSILON = Measure("epsilon", "epsilon", "epsilon", 0, _epsilon, log=True)
CROSS_ENTROPY = _of_attack("cross_entropy", "cross-entropy", 4, "binary cross-entropy of the reconstruction")
FLOOR = _of_attack("entropy", "its floor", 4)
EXCESS = Measure("excess", "above its floor", "cross-entropy of the reconstruction above its floor", 4, _excess)
LEAKAGE = (
    FLOOR,
    _of_attack("mean_image_cross_entropy", "of the mean image", 4),
    _of_attack("mse", "MSE", 4),
    _of_attack("psnr", "PSNR (dB)", 2),
    _of_attack("ssim", "SSIM", 3),
    _of_attack("distance_correlation", "dCor", 3),
    _of_attack("corrected_distance_correlation", "dCor², corrected", 3),
    _of_attack("mutual_information", "MI (nats)", 2),
)
"""What stands beside the cross-entropy."""
