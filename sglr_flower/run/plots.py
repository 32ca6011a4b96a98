"""Pictures of a run, from what is in its run directory."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sglr_flower.run import drawing
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.split.score import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BARS = 40  # clients; more of them would be lines of a pixel or two
_MOST_COLOURS = 20  # classes; there is no set of more colours that people can tell apart
_MOST_NAMES = 30  # classes along an axis; the names of more would overlap
_LONGEST_NAME = 24
_HEAT_PIXELS = 600  # along an axis of the heat map, roughly


def save_curves(run_dir: Path) -> Path:
    """Draw training loss and test score per round into ``curves.png``.

    The band around the score is one standard deviation over the clients. Rounds without an evaluation have no
    point; a run without any has no score.

    Returns
    -------
    Path
        The picture.
    """
    with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    summary = RunDirectory(run_dir).summary()
    totals, score = summary.totals, summary.totals.score
    figure = drawing.new_figure(9, 3.6)
    loss, scores = figure.subplots(1, 2)
    _draw_loss(loss, rows)
    mean = f"test_{score.name}_mean"
    _draw_scores(scores, score, [row for row in rows if row[mean]])
    title = f"{summary.method} with {summary.model} on {summary.dataset}, {summary.clients} clients"
    if math.isfinite(totals.test_score_mean):
        title += f", {score.text(totals.test_score_mean, totals.test_score_std)}"
    figure.suptitle(title, parse_math=False)
    return _save(figure, run_dir / "curves.png")


def save_partition(run_dir: Path) -> Path:
    """Draw how many samples of each class every client has, from ``partition.json`` into ``partition.png``.

    A bar for each client, or for many clients or classes a heat map below the clients' sizes.

    Returns
    -------
    Path
        The picture.
    """
    partition = read_json(run_dir / "partition.json")
    classes = [_shortened(name) for name in partition["classes"]]
    counts = np.array(partition["counts"], np.int64)
    few = len(counts) <= _MOST_BARS and len(classes) <= _MOST_COLOURS
    figure = _bars(classes, counts) if few else _heat_map(classes, counts)
    return _save(figure, run_dir / "partition.png")


def _save(figure: Figure, picture: Path) -> Path:
    picture.write_bytes(drawing.png(figure))
    return picture


# --- curves ---


def _draw_loss(axes: Axes, rows: Sequence[dict[str, str]]) -> None:
    rounds, losses = [int(row["round"]) for row in rows], [float(row["train_loss"]) for row in rows]
    # A line through one point is nothing to see.
    axes.plot(rounds, losses, color="tab:red", marker="o" if len(rows) == 1 else "", markersize=3)
    axes.set(ylabel="training loss", ylim=(0, None))
    _finish_curve(axes)


def _draw_scores(axes: Axes, score: Score, tested: Sequence[dict[str, str]]) -> None:
    if not tested:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no evaluation", transform=axes.transAxes, ha="center", va="center", color="tab:gray")
        return
    rounds = [int(row["round"]) for row in tested]
    mean = [score.scale * float(row[f"test_{score.name}_mean"]) for row in tested]
    std = [score.scale * float(row[f"test_{score.name}_std"]) for row in tested]
    axes.plot(rounds, mean, color="tab:blue", marker="o", markersize=3, label="mean over clients")
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    axes.fill_between(rounds, low, high, color="tab:blue", alpha=0.2, linewidth=0, label="± one std over clients")
    axes.legend(loc="lower right" if score.higher_is_better else "upper right", frameon=False)
    axes.set(ylabel=f"test {score.label}")
    _finish_curve(axes)


def _finish_curve(axes: Axes) -> None:
    axes.set(xlabel="round")
    drawing.whole_numbers(axes.xaxis)
    drawing.plain(axes)


# --- partition ---


def _bars(classes: Sequence[str], counts: npt.NDArray[np.int64]) -> Figure:
    """One stacked bar for each client, client 0 at the top."""
    from matplotlib import colormaps

    clients = range(len(counts))
    figure = drawing.new_figure(9, max(1.2 + 0.2 * len(counts), 1.6 + 0.19 * len(classes)))
    axes = figure.subplots()
    colours = colormaps["tab10" if len(classes) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    left = np.zeros(len(counts), np.int64)
    handles = []
    for number, colour in zip(range(len(classes)), colours, strict=False):
        handles.append(axes.barh(clients, counts[:, number], left=left, color=colour, height=0.8))
        left += counts[:, number]
    axes.set(xlabel="train samples", ylabel="client", ylim=(len(counts) - 0.4, -0.6))
    axes.set_yticks(clients, [str(client) for client in clients], fontsize=8)
    drawing.whole_numbers(axes.xaxis)
    axes.set_axisbelow(True)
    drawing.plain(axes, "x")
    # Handles and names given apart: of the names themselves matplotlib would drop one that begins with "_".
    legend = axes.legend(handles, classes, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _heat_map(classes: Sequence[str], counts: npt.NDArray[np.int64]) -> Figure:
    """Clients along the x axis: above how many samples each has, below of which classes."""
    from matplotlib.colors import PowerNorm

    few_names = len(classes) <= _MOST_NAMES
    figure = drawing.new_figure(11, 3.2 + min(0.22 * len(classes), 5.0))
    sizes, heat = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(1.0, min(0.12 * len(classes), 3.5))))
    edges = np.arange(len(counts) + 1) - 0.5
    sizes.stairs(counts.sum(1), edges, fill=True, color="tab:gray")
    sizes.set(ylabel="train samples", ylim=(0, None))
    drawing.plain(sizes, "")
    # Where clients are narrower than a pixel neighbours must be averaged, which imshow does along both axes alike:
    # with every class in many rows it does not mix the classes.
    interpolation = "antialiased" if len(counts) > _HEAT_PIXELS else "nearest"
    rows = np.repeat(counts.T, max(1, _HEAT_PIXELS // len(classes)), axis=0)
    extent = (-0.5, len(counts) - 0.5, len(classes) - 0.5, -0.5)
    # From white, so that a class that a client does not have is seen at once, and by the square root, so that one
    # large number does not make all others look like none.
    norm = PowerNorm(0.5, 0, max(1, counts.max()))
    shades = heat.imshow(rows, "Blues", norm, extent=extent, aspect="auto", interpolation=interpolation)
    heat.set(xlabel="client", ylabel="" if few_names else "class number", xlim=(-0.5, len(counts) - 0.5))
    if few_names:
        heat.set_yticks(range(len(classes)), classes, fontsize=9, parse_math=False)
    drawing.whole_numbers(heat.xaxis)
    figure.colorbar(shades, ax=heat, label="train samples of a class", pad=0.01)
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
