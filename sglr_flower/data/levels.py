"""Which range of grey values becomes 0 to 255, where an image file has more than 8 bits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

AUTO = "auto"
_BITS = (8, 10, 12, 14, 16)
"""What cameras, scanners and microscopes have."""


@dataclass(frozen=True)
class Levels:
    """A range of values.

    Attributes
    ----------
    low, high : float
        What becomes 0 and 255; what is outside is cut off.
    """

    low: float
    high: float

    @property
    def bits(self) -> int:
        """How many bits it is of, if it is the range of whole numbers of so many; else 0."""
        bits = math.log2(self.high + 1) if self.low == 0 and self.high > 0 else 0.0
        return int(bits) if bits.is_integer() else 0

    def __str__(self) -> str:
        return str(self.bits) if self.bits >= 8 else f"{self.low:.9g}:{self.high:.9g}"

    def words(self) -> str:
        """The same for a sentence."""
        return f"{self.bits} bits" if self.bits >= 8 else f"{self.low:.9g} to {self.high:.9g}"

    def apply(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Values of any kind as uint8; of 8 bits and more their highest 8, else the nearest of the 256."""
        import numpy as np  # which a run-config does without

        if self.bits >= 8 and np.issubdtype(values.dtype, np.integer):
            whole = np.clip(values.astype(np.int64), 0, int(self.high))
            return (whole >> (self.bits - 8)).astype(np.uint8)
        numbers = np.nan_to_num(values.astype(np.float64), nan=self.low, posinf=self.high, neginf=self.low)
        return np.rint(np.clip((numbers - self.low) / (self.high - self.low), 0, 1) * 255).astype(np.uint8)


def parse(text: str) -> Levels | None:
    """Read the run-config's ``levels``: ``auto`` (None), a number of bits from 8 to 32, or ``LOW:HIGH``.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if text == AUTO:
        return None
    if re.fullmatch(r"[1-9]\d?", text) and 8 <= int(text) <= 32:
        return Levels(0, 2 ** int(text) - 1)
    low, _, high = text.partition(":")
    try:
        found = Levels(float(low), float(high))
    except ValueError:
        found = Levels(0, 0)
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high):
        raise ValueError("it must be auto, a number of bits from 8 to 32, or LOW:HIGH")
    return found


def of_values(extremes: Iterable[tuple[float, float]]) -> Levels:
    """The range that some images use, from the least and greatest value of each.

    Whole numbers are of the fewest bits that hold them (8, 10, 12, 14 or 16), fractions of 0 to 1; what fits neither
    has its own range. It does not depend on the order.
    """
    least, greatest = zip(*extremes, strict=True)
    low, high = min(least), max(greatest)
    if low >= 0 and 1 < high < 2 ** _BITS[-1]:
        return Levels(0, next(2**bits - 1 for bits in _BITS if high < 2**bits))
    if low >= 0 and high <= 1:
        return Levels(0, 1)
    return Levels(low, high) if low < high else Levels(low, low + 1)
