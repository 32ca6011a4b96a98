"""How far a run was when: its accuracy, its steps' seconds and its bytes at each round that was evaluated."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """A run at the end of a round that has an evaluation.

    Attributes
    ----------
    round : int
        From 1.
    accuracy : float
        Mean test accuracy over clients, a fraction.
    seconds : float
        Of the training so far: in each round its steps times the median time of one. Evaluations and pauses of the
        machine are not in it.
    bytes : int
        What training has sent so far, both ways (`metrics.RoundMetrics`).
    """

    round: int
    accuracy: float
    seconds: float
    bytes: int


def read(run_dir: Path) -> tuple[Point, ...]:
    """The points of a run, from its ``metrics.csv``; empty if it has none."""
    try:
        text = (run_dir / "metrics.csv").read_text(encoding="utf-8")
    except OSError:
        return ()
    points: list[Point] = []
    seconds, sent = 0.0, 0
    for row in csv.DictReader(text.splitlines()):
        seconds += float(row["steps"] or 0) * float(row["step_seconds_median"] or 0)
        sent += int(row["bytes_up"] or 0) + int(row["bytes_down"] or 0)
        if row["test_accuracy_mean"]:
            points.append(Point(int(row["round"]), float(row["test_accuracy_mean"]), seconds, sent))
    return tuple(points)


def first(points: Sequence[Point], accuracy: float) -> Point | None:
    """The first point with at least this accuracy (a fraction); None if there is none."""
    return next((point for point in points if point.accuracy >= accuracy), None)


def to_text(points: Sequence[Point]) -> str:
    """The points as words, ``ROUND:ACCURACY:SECONDS:BYTES``."""
    return " ".join(f"{point.round}:{point.accuracy:.6f}:{point.seconds:.1f}:{point.bytes}" for point in points)


def from_text(text: str) -> tuple[Point, ...]:
    """Inverse of `to_text`.

    Raises
    ------
    ValueError
        If it is not of that form.
    """
    fields = [word.split(":") for word in text.split()]
    return tuple(
        Point(int(number), float(accuracy), float(seconds), int(sent)) for number, accuracy, seconds, sent in fields
    )
