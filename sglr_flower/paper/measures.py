"""What tables report of a finished cell: figures read from its run directory, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sglr_flower.attack.record import FOLDER, RESULT
from sglr_flower.rundir import read_json


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
    value : Callable[[Path], float]
        Reads it from the run directory; nan of a run that has no such figure.
    log : bool
        Whether it is drawn on a logarithmic axis.
    """

    column: str
    heading: str
    axis: str
    decimals: int
    value: Callable[[Path], float]
    log: bool = False


def _accuracy(run_dir: Path) -> float:
    """Mean over clients of the test accuracy at each one's best validation round, in percent."""
    return 100 * float(read_json(run_dir / "summary.json")["test_accuracy_mean"])


def _megabytes(run_dir: Path) -> float:
    """Smashed data and cut gradients of a client in the whole training, on the average over clients, in 10^6 bytes."""
    summary = read_json(run_dir / "summary.json")
    sent = sum(int(summary[f"bytes_{part}"]) for part in ("smashed", "unicast", "broadcast"))
    return sent / int(summary["clients"]) / 1e6


def _epsilon(run_dir: Path) -> float:
    """What the run has spent; nan where it states no epsilon."""
    return float(read_json(run_dir / "summary.json").get("epsilon") or math.nan)


def _excess(run_dir: Path) -> float:
    """By how much the reconstructions' cross-entropy is above that of the images with themselves."""
    return CROSS_ENTROPY.value(run_dir) - FLOOR.value(run_dir)


def _of_attack(name: str, heading: str, decimals: int, axis: str = "") -> Measure:
    def value(run_dir: Path) -> float:
        return float(read_json(run_dir / FOLDER / RESULT)["measures"][name]["mean"])

    return Measure(name, heading, axis or heading, decimals, value)


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
