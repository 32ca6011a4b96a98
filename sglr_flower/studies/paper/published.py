"""The numbers that arXiv 2112.05929 reports, and nothing else; accuracies are top-1 in percent on Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass

# Tables 1 and 2. Columns: alpha 0 with phi 0, .25, .5, .75; alpha .5 with the same; alpha 1 with the same; then
# alpha 1.5 and alpha 2 with phi 0. None: not reported.
_COLUMNS = (*((alpha, phi) for alpha in (0.0, 0.5, 1.0) for phi in (0.0, 0.25, 0.5, 0.75)), (1.5, 0.0), (2.0, 0.0))
_TABLES_1_AND_2: dict[int, tuple[float | None, ...]] = {
    1: (82.45,) * 14,
    2: (82.04, 81.91, 81.84, 81.94, 81.76, 81.88, 81.93, 81.92, 81.68, 81.95, 82.10, 81.72, 82.00, 82.11),
    4: (82.68, 82.90, 83.16, 83.81, 82.46, 82.78, 83.24, 84.22, 82.93, 83.30, 83.66, 84.45, 83.42, 82.14),
    6: (82.84, 83.20, 84.02, 84.08, 83.30, 83.06, 84.89, 84.62, 84.58, 83.70, 84.32, 84.24, 84.21, 83.56),
    8: (83.49, 83.73, 84.27, 85.14, 84.23, 84.33, 85.04, 85.29, 84.52, 84.58, 85.41, 85.68, 83.87, 58.41),
    10: (83.49, 84.35, 84.74, 85.49, 84.78, 84.65, 85.22, 85.93, 84.98, 84.82, 85.89, 86.11, 84.21, 34.37),
    15: (84.34, 85.87, 85.86, 85.86, 85.30, 85.89, 86.71, 87.22, 85.79, 85.19, 86.15, 86.20, 84.08, None),
    20: (84.88, 86.33, 86.59, 86.82, 86.25, 86.96, 87.48, 87.47, 86.00, 86.54, 87.11, 86.67, None, None),
}

# Table 3: alpha 1, all clients averaged while the phase lasts.
_PHASES = ("none", "first:0.6", "first:0.4", "last:0.6", "last:0.4", "always")
_TABLE_3 = {
    2: (81.68, 81.99, 81.79, 82.21, 81.47, 81.82),
    4: (82.93, 83.49, 82.96, 83.22, 82.83, 82.07),
    8: (84.52, 84.12, 84.97, 84.48, 83.56, 83.62),
    10: (84.98, 84.76, 85.32, 84.47, 84.31, 81.61),
    15: (85.59, 85.12, 85.20, 85.05, 85.68, 69.45),
    20: (86.00, 85.23, 86.12, 85.62, 86.53, 60.67),
}


@dataclass(frozen=True)
class AlexNetResult:
    """A row of Table 4 (AlexNet, 5 clients).

    Attributes
    ----------
    accuracy : float
        Top-1 in percent.
    client_petaflops : float
        Computation of one client over the whole training, in 10^15 floating-point operations.
    """

    accuracy: float
    client_petaflops: float


_TABLE_4 = {
    "centralized": AlexNetResult(90.5, 2.944),
    "fedavg": AlexNetResult(89.7, 0.588),
    "sglr": AlexNetResult(89.3, 0.031),
    "sfl": AlexNetResult(86.0, 0.031),
    "psl": AlexNetResult(84.7, 0.031),
}


# Table 5 (6 clients): phi -> cross-entropy between original and reconstructed image.
_TABLE_5 = {0.0: 0.2153, 0.25: 0.2142, 0.5: 0.2166, 0.75: 0.2296, 1.0: 0.2759}


def accuracy(clients: int, alpha: float, phi: float) -> float | None:
    """Top-1 percent of Tables 1 and 2; None if the paper does not report the cell."""
    row, column = _TABLES_1_AND_2.get(clients), (alpha, phi)
    return row[_COLUMNS.index(column)] if row and column in _COLUMNS else None


def phased_accuracy(clients: int, phase: str) -> float | None:
    """Top-1 percent of Table 3; ``phase`` is none, first:0.6, first:0.4, last:0.6, last:0.4 or always."""
    row = _TABLE_3.get(clients)
    return row[_PHASES.index(phase)] if row and phase in _PHASES else None


def alexnet(method: str) -> AlexNetResult | None:
    """A row of Table 4 by our name of the method; None if it has no such row."""
    return _TABLE_4.get(method)


def reconstruction(clients: int, phi: float) -> float | None:
    """Cross-entropy of Table 5, higher is more private; None if the paper does not report it."""
    return _TABLE_5.get(phi) if clients == 6 else None


# The worked example beside Table 6: SGLR moves so many percent less than each of these.
TABLE_6_EXAMPLE = {"sfl": 88.6, "fedavg": 95.5}
