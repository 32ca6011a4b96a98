"""An experiment's picture: ours beside the paper's, intervals over seeds where there are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sglr_flower.run import drawing
from sglr_flower.studies.paper import published
from sglr_flower.studies.paper.cells import text
from sglr_flower.studies.paper.experiment import OF_RUNS, Experiment, Picture
from sglr_flower.studies.paper.results import Estimate, Result, by_place, estimate
from sglr_flower.studies.paper.table import Entry, column_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX"


def draw(
    experiment: Experiment,
    kind: Picture,
    places: Sequence[Entry],
    results: Sequence[Result],
    petaflops: Mapping[str, float],
    subtitle: str,
) -> bytes:
    """The picture as PNG.

    Parameters
    ----------
    experiment : Experiment
        Whose picture it is.
    kind : Picture
        What is drawn: one of the experiment's `pictures`.
    places : Sequence[Entry]
        From `table.entries`.
    results : Sequence[Result]
        The finished cells; not empty. Reconstructions and feature maps are drawn from their run directories.
    petaflops : Mapping[str, float]
        Method -> 10^15 operations of a client, where the experiment reports that.
    subtitle : str
        Stands under the experiment's title: what a reader must know who sees the picture alone.
    """
    title = f"{experiment.title}\n{subtitle}"
    if kind in OF_RUNS:
        from sglr_flower.studies.paper import rows  # what reads trained networks

        return rows.draw(experiment, kind, results, title)
    figure = drawing.new_figure(9, 4.2)
    if kind == "curves":
        _curves(figure, experiment, results)
    elif kind == "points":
        _points(figure, experiment, places, petaflops)
    elif kind == "trade-off":
        _trade_off(figure, experiment, places)
    elif kind == "heat map":
        _heat_maps(figure, experiment, places)
    else:
        _lines(figure, experiment, places)
    figure.suptitle(title, fontsize="medium")
    return drawing.png(figure)


def _lines(figure: Figure, experiment: Experiment, places: Sequence[Entry]) -> None:
    """Accuracy by row, a line for each column: ours at the left, the paper's at the right."""
    ours, paper = figure.subplots(1, 2, sharey=True)
    rows = list(dict.fromkeys(entry.labels[experiment.rows] for entry in places))
    for column in dict.fromkeys(column_of(experiment, entry.labels) for entry in places):
        there = [entry for entry in places if column_of(experiment, entry.labels) == column]
        done = [(rows.index(entry.labels[experiment.rows]), entry.ours) for entry in there if entry.ours]
        ours.errorbar(
            [position for position, _ in done],
            [accuracy.mean for _, accuracy in done],
            _widths(done),
            marker="o",
            markersize=4,
            capsize=3,
            label=column,
        )
        known = [(rows.index(entry.labels[experiment.rows]), entry.paper) for entry in there if entry.paper is not None]
        paper.plot([position for position, _ in known], [value for _, value in known], marker="o", markersize=4)
    for axes, name in ((ours, "ours"), (paper, "the paper")):
        axes.set_title(name, fontsize="medium")
        axes.set_xticks(range(len(rows)), [text(row) for row in rows])
        axes.set_xlabel(experiment.rows)
        drawing.plain(axes)
    ours.set_ylabel(experiment.measure.axis)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize="small")


def _heat_maps(figure: Figure, experiment: Experiment, places: Sequence[Entry]) -> None:
    """Accuracy by row and column, ours above the paper's in the same colours."""
    rows = list(dict.fromkeys(entry.labels[experiment.rows] for entry in places))
    columns = list(dict.fromkeys(column_of(experiment, entry.labels) for entry in places))
    shape = (len(rows), len(columns))
    ours, paper = np.full(shape, np.nan), np.full(shape, np.nan)
    for entry in places:
        place = rows.index(entry.labels[experiment.rows]), columns.index(column_of(experiment, entry.labels))
        ours[place] = entry.ours.mean if entry.ours else np.nan
        paper[place] = np.nan if entry.paper is None else entry.paper
    figure.set_size_inches(max(6.0, 1.5 + 0.75 * len(columns)), 2.4 + 0.7 * len(rows))
    low, high = float(np.nanmin([ours, paper])), float(np.nanmax([ours, paper]))
    panels = figure.subplots(2, 1, sharex=True)
    for axes, values, name in zip(panels, (ours, paper), ("ours", "the paper"), strict=True):
        image = axes.imshow(values, vmin=low, vmax=high, aspect="auto", cmap="viridis")
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                ink = "white" if value < (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize="small")
        axes.set_title(name, fontsize="medium")
        axes.set_yticks(range(len(rows)), [text(row) for row in rows])
        axes.set_xticks(range(len(columns)), [column.replace(", ", "\n") for column in columns], fontsize="small")
        axes.set_ylabel(experiment.rows)
    figure.colorbar(image, ax=panels, label=experiment.measure.axis)


def _points(figure: Figure, experiment: Experiment, places: Sequence[Entry], petaflops: Mapping[str, float]) -> None:
    """A line for each row: our accuracy with its interval, and the paper's."""
    rows = list(dict.fromkeys(text(entry.labels[experiment.rows]) for entry in places))
    columns = list(dict.fromkeys(column_of(experiment, entry.labels) for entry in places))
    figure.set_size_inches(9, 1.8 + 0.35 * len(rows))
    panels = figure.subplots(1, 2 if experiment.compute else 1, sharey=True, squeeze=False)[0]
    for index, column in enumerate(columns):
        there = [entry for entry in places if column_of(experiment, entry.labels) == column]
        shift = 0.2 * (index - (len(columns) - 1) / 2)
        done = [(_at(entry, experiment, rows) + shift, entry.ours) for entry in there if entry.ours]
        panels[0].errorbar(
            [accuracy.mean for _, accuracy in done],
            [position for position, _ in done],
            xerr=_widths(done),
            fmt="o",
            capsize=3,
            color=f"C{index}",
            label=_named("ours", column),
        )
        known = [(_at(entry, experiment, rows) + shift, entry.paper) for entry in there if entry.paper is not None]
        panels[0].plot(
            [value for _, value in known],
            [position for position, _ in known],
            "D",
            color=f"C{index}",
            fillstyle="none",
            label=_named("the paper", column),
        )
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].invert_yaxis()
    panels[0].set_xlabel(experiment.measure.axis)
    if experiment.compute:
        _computation(panels[1], rows, petaflops)
    for axes in panels:
        drawing.plain(axes)
    panels[0].legend(loc="best", frameon=False, fontsize="small")


def _trade_off(figure: Figure, experiment: Experiment, places: Sequence[Entry]) -> None:
    """The measure over the first one beside it, a point with its intervals for each row that has both."""
    axes = figure.subplots()
    price = experiment.beside[0]
    done = [(entry.beside[0], entry.ours, entry) for entry in places if entry.ours and entry.beside[0]]
    at = 0.0
    for index, (cost, gained, entry) in enumerate(sorted(done, key=lambda point: point[0].mean)):
        # On a logarithmic axis points with the same price would lie on each other, intervals and all.
        at = max(cost.mean, 1.06 * at) if price.log else cost.mean
        axes.errorbar(
            at,
            gained.mean,
            _widths([(0, gained)]),
            _widths([(0, cost)]),
            fmt=_MARKERS[index % len(_MARKERS)],
            capsize=3,
            color=f"C{index % 10}",
            label=text(entry.labels[experiment.rows]),
        )
    if price.log:
        axes.set_xscale("log")
    for entry in places:
        if entry.ours and not entry.beside[0]:
            label = f"{text(entry.labels[experiment.rows])} (no {price.heading})"
            axes.axhline(entry.ours.mean, color="grey", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel(f"{price.axis}; equal ones side by side" if price.log else price.axis)
    axes.set_ylabel(experiment.measure.axis)
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    drawing.plain(axes)


def _named(whose: str, column: str) -> str:
    return f"{whose}, {column}" if column else whose


def _widths(done: Sequence[tuple[float, Estimate]]) -> list[float]:
    """Half widths of the intervals; nan, which draws no bar, where there is none."""
    return [np.nan if accuracy.half_width is None else accuracy.half_width for _, accuracy in done]


def _at(entry: Entry, experiment: Experiment, rows: Sequence[str]) -> int:
    return rows.index(text(entry.labels[experiment.rows]))


def _computation(axes: Axes, rows: Sequence[str], petaflops: Mapping[str, float]) -> None:
    positions = range(len(rows))
    paper = [published.alexnet(row) for row in rows]
    axes.plot([petaflops[row] for row in rows], positions, "o", color="C0")
    axes.plot([row.client_petaflops if row else np.nan for row in paper], positions, "D", color="C0", fillstyle="none")
    axes.set_xscale("log")
    axes.set_xlabel("computation of a client (PFLOP)")


def _curves(figure: Figure, experiment: Experiment, results: Sequence[Result]) -> None:
    """Accuracy per round, a line for each row of the table; the band is the 95 % interval over seeds."""
    axes = figure.subplots()
    banded = False
    for index, (place, found) in enumerate(by_place(results).items()):
        curves = [_per_round(result) for result in found]
        rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
        points = [estimate([curve[number] for curve in curves]) for number in rounds]
        means = np.array([point.mean for point in points])
        widths = np.array([point.half_width or 0.0 for point in points])
        label = f"{experiment.rows} {text(dict(place)[experiment.rows])}"
        axes.plot(rounds, means, color=f"C{index}", marker="o", markersize=3, label=label)
        if len(found) > 1:
            banded = True
            axes.fill_between(rounds, means - widths, means + widths, color=f"C{index}", alpha=0.2, linewidth=0)
    axes.set(xlabel="round", ylabel=experiment.measure.axis)
    drawing.whole_numbers(axes.xaxis)
    band = "band: 95 % interval over seeds" if banded else "one seed"
    axes.legend(loc="lower right", frameon=False, fontsize="small", title=band, title_fontsize="small")
    drawing.plain(axes)


def _per_round(result: Result) -> dict[int, float]:
    """Round -> mean test accuracy over clients in percent, of the rounds that have an evaluation."""
    return {point.round: 100 * point.accuracy for point in result.curve}
