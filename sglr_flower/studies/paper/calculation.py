"""A table or a figure of the paper that follows from formulas, and what both of them take from the worked example."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sglr_flower.studies.paper.layout import Grid

PHI = 0.5
"""Of SGLR, as in the paper's worked example."""
CUT = 0.024e6
"""S(L) of the worked example, AlexNet's, in bytes; of Figure 5 too."""


@dataclass(frozen=True)
class Row:
    """A row of a CSV file: what it is of, and its figures, not rounded."""

    labels: Mapping[str, str | int | float]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """A table of a calculation.

    Attributes
    ----------
    name, title : str
        Of its CSV file, and as it is headed.
    caption : str
        What the figures are of.
    table : Grid
        As it is shown.
    rows : Sequence[Row]
        The same for the CSV file; not empty.
    """

    name: str
    title: str
    caption: str
    table: Grid
    rows: Sequence[Row]

    def to_csv(self) -> bytes:
        """The rows with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.rows[0].labels, *self.rows[0].figures])
        writer.writerows([*row.labels.values(), *row.figures.values()] for row in self.rows)
        return text.getvalue().encode()


@dataclass(frozen=True)
class Calculation:
    """A table or figure of the paper that follows from formulas, without a sweep of trainings.

    Attributes
    ----------
    title : str
        As it is headed.
    parts : Callable[[], list[Part]]
        Makes its tables.
    draw : Callable[[Sequence[Part]], bytes]
        Makes its picture of them, a PNG.
    """

    title: str
    parts: Callable[[], list[Part]]
    draw: Callable[[Sequence[Part]], bytes]
