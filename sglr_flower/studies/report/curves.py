"""The report's picture: test score and training loss per round, a line per group."""

from __future__ import annotations

import io
import math
import statistics
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sglr_flower.run import drawing
from sglr_flower.studies.report.groups import Curve, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    ("#1764ab", "#6db3f2"),
    ("#d95f02", "#ff9d4d"),
    ("#1b8a5a", "#4fd19a"),
    ("#b5179e", "#f28ae0"),
    ("#7a5c00", "#e0c04c"),
    ("#5e3fbe", "#b7a3ff"),
    ("#b3261e", "#ff8a80"),
    ("#4a5568", "#b8c2d0"),
)
"""A group's colour on a light and on a dark page, in the groups' order."""

DASHES = ("solid", "dashed", "dotted", "dashdot")
"""Once the colours are used up, they begin again in the next of these."""

MARKED_ROUNDS = 40
"""Up to so many rounds, every one is marked by a dot."""


@dataclass(frozen=True)
class Look:
    """How the picture is drawn: for a light or a dark page, for a wide or a narrow screen."""

    dark: bool
    narrow: bool


def draw(report: Report, look: Look) -> str:
    """Draw the curves of all groups.

    Returns
    -------
    str
        An SVG document with a transparent background, the same for the same report.
    """
    import matplotlib as mpl  # half a second, and only reports need it

    ink = "#d7dce3" if look.dark else "#2b323c"
    colours = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    style: dict[Any, Any] = {
        **colours,
        "svg.hashsalt": "sglr",
        "font.size": 10,
        "axes.titlesize": 11,
        "text.parse_math": False,
    }
    with mpl.rc_context(style):
        labels = [textwrap.fill(group.name, 36 if look.narrow else 60) for group in report.groups]
        columns = 1 if look.narrow or max(len(label) for label in labels) > 40 else min(3, len(labels))
        legend_lines = sum(label.count("\n") + 1 for label in labels) / columns
        size = (3.7, 5.4 + 0.2 * legend_lines) if look.narrow else (10.0, 3.9 + 0.2 * legend_lines)
        figure = drawing.new_figure(*size)
        scores, loss = figure.subplots(2, 1) if look.narrow else figure.subplots(1, 2)
        _scores(scores, report, look)
        _losses(loss, report, look)
        figure.legend(scores.lines, labels, loc="outside lower center", ncols=columns, frameon=False)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return svg.getvalue()


def _scores(axes: Axes, report: Report, look: Look) -> None:
    score = report.score
    limits = (0.0, score.scale) if score.fraction else (-math.inf, math.inf)
    curves = [group.curve("test_score_mean") for group in report.groups]
    for index, curve in enumerate(curves):
        _line(axes, _scaled(curve, score.scale), index, look, limits)
    _finish(axes, look)
    axes.set(title=f"test {score.label}")


def _losses(axes: Axes, report: Report, look: Look) -> None:
    curves = [group.curve("train_loss") for group in report.groups]
    for index, curve in enumerate(curves):
        _line(axes, curve, index, look, (0, math.inf))
    _finish(axes, look)
    peaks = [float(np.nanmax(curve.mean)) for curve in curves if np.isfinite(curve.mean).any()]
    title = "training loss"
    if peaks:
        # A loss that exploded would press all others into one flat line.
        top = min(max(peaks), 2 * statistics.median_low(peaks))
        if top < max(peaks):
            title += " (cut off above)"
        axes.set_ylim(0, 1.08 * top or 1.0)
    axes.set(title=title)


def _line(axes: Axes, curve: Curve, index: int, look: Look, limits: tuple[float, float]) -> None:
    """Draw one group's line and its band."""
    colour = COLOURS[index % len(COLOURS)][look.dark]
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    marker = "o" if len(curve.rounds) <= MARKED_ROUNDS else ""
    axes.plot(curve.rounds, curve.mean, color=colour, linestyle=dash, marker=marker, markersize=3, linewidth=1.6)
    if curve.spread is not None:
        low, high = (np.clip(curve.mean + sign * curve.spread, *limits) for sign in (-1, 1))
        axes.fill_between(curve.rounds, low, high, color=colour, alpha=0.16, linewidth=0)


def _finish(axes: Axes, look: Look) -> None:
    axes.set_xlabel("round")
    drawing.whole_numbers(axes.xaxis)
    drawing.plain(axes, alpha=0.25 if look.dark else 0.35, linewidth=0.6)


def _scaled(curve: Curve, factor: float) -> Curve:
    return Curve(curve.rounds, factor * curve.mean, None if curve.spread is None else factor * curve.spread)
