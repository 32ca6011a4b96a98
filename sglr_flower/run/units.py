"""Large numbers as a person reads them."""

from __future__ import annotations


def flops(count: float) -> str:
    """A number of floating-point operations as a person reads it."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PFLOP"
