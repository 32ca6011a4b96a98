"""An experiment's table, ours beside the paper's, for Markdown and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from sglr_flower.studies.paper import published
from sglr_flower.studies.paper.cells import Cell, Label, text
from sglr_flower.studies.paper.experiment import Experiment
from sglr_flower.studies.paper.layout import Grid
from sglr_flower.studies.paper.measures import Measure
from sglr_flower.studies.paper.results import Estimate, Result, by_place, estimate

MISSING = "-"
"""In a table, where there is no figure."""


@dataclass(frozen=True)
class Entry:
    """A place in the table.

    Attributes
    ----------
    labels : Mapping[str, Label]
        All but the seed.
    ours : Estimate | None
        The experiment's measure over seeds; None if no seed is finished.
    paper : float | None
        The paper's; None if it reports none.
    over : Estimate | None
        By how much it is above the experiment's baseline, in percentage points: a difference for every seed that both
        have, as they share data, split and order of samples.
    beside : tuple[Estimate | None, ...]
        The measures beside it.
    """

    labels: Mapping[str, Label]
    ours: Estimate | None
    paper: float | None
    over: Estimate | None = None
    beside: tuple[Estimate | None, ...] = ()


def entries(experiment: Experiment, cells: Sequence[Cell], results: Sequence[Result]) -> list[Entry]:
    """The places of ``cells`` in the table, with what is finished of them."""
    there = by_place(results)
    places = dict.fromkeys(cell.place for cell in cells)
    return [
        Entry(
            dict(place),
            _estimated(experiment.measure, there.get(place, ())),
            experiment.paper(dict(place)),
            _over(experiment, dict(place), results),
            tuple(_estimated(measure, there.get(place, ())) for measure in experiment.beside),
        )
        for place in places
    ]


def _estimated(measure: Measure, results: Sequence[Result]) -> Estimate | None:
    values = [measure.value(result.figures) for result in results]
    return None if any(map(math.isnan, values)) or not values else estimate(values)


def _over(experiment: Experiment, place: Mapping[str, Label], results: Sequence[Result]) -> Estimate | None:
    if not experiment.baseline or place[experiment.rows] == experiment.baseline:
        return None
    own = _by_seed(experiment, place, results)
    base = _by_seed(experiment, {**place, experiment.rows: experiment.baseline}, results)
    differences = [own[seed] - base[seed] for seed in own.keys() & base.keys()]
    return estimate(differences) if differences else None


def _by_seed(experiment: Experiment, place: Mapping[str, Label], results: Sequence[Result]) -> dict[Label, float]:
    found = by_place(results).get(tuple(place.items()), [])
    return {result.cell.labels["seed"]: experiment.measure.value(result.figures) for result in found}


def column_of(experiment: Experiment, labels: Mapping[str, Label]) -> str:
    """The heading of the column that a place is in: ``alpha 0.5, phi 0.25``."""
    return ", ".join(f"{key} {text(labels[key])}" for key in experiment.columns)


def grid(experiment: Experiment, places: Sequence[Entry], petaflops: Mapping[str, float]) -> Grid:
    """Lay the places out: a single column's figures side by side, those of several columns in one field each.

    The paper's column is there if it reports any of the places.

    Parameters
    ----------
    experiment : Experiment
        Whose table it is.
    places : Sequence[Entry]
        From `entries`.
    petaflops : Mapping[str, float]
        Method -> 10^15 operations of a client, where the experiment has that column.
    """
    columns = list(dict.fromkeys(column_of(experiment, entry.labels) for entry in places))
    rows = dict.fromkeys(entry.labels[experiment.rows] for entry in places)
    found = {(entry.labels[experiment.rows], column_of(experiment, entry.labels)): entry for entry in places}
    if len(columns) > 1:
        fields = [[_compact(experiment, found.get((row, column))) for column in columns] for row in rows]
        return Grid([experiment.rows, *columns], [[text(row), *line] for row, line in zip(rows, fields, strict=True)])
    header = [experiment.rows, f"{experiment.measure.heading} {columns[0]}".strip()]
    lines = [[text(row), _ours(experiment, found[row, columns[0]])] for row in rows]
    if any(entry.paper is not None for entry in places):
        header += ["paper", "difference"]
        lines = [
            [*line, *_published(experiment, found[row, columns[0]])] for row, line in zip(rows, lines, strict=True)
        ]
    header += [measure.heading for measure in experiment.beside]
    lines = [[*line, *_beside(experiment, found[row, columns[0]])] for row, line in zip(rows, lines, strict=True)]
    if experiment.baseline:
        header.append(f"over {experiment.baseline}")
        lines = [[*line, _signed(found[row, columns[0]].over)] for row, line in zip(rows, lines, strict=True)]
    if experiment.compute:
        header += ["client PFLOP", "paper", "ratio"]
        lines = [[*line, *_computation(line[0], petaflops)] for line in lines]
    return Grid(header, lines)


def _ours(experiment: Experiment, entry: Entry) -> str:
    return _shown(entry.ours, experiment.measure.decimals)


def _published(experiment: Experiment, entry: Entry) -> list[str]:
    decimals = experiment.measure.decimals
    paper = f"{entry.paper:.{decimals}f}" if entry.paper is not None else MISSING
    return [paper, _difference(entry, decimals)]


def _beside(experiment: Experiment, entry: Entry) -> list[str]:
    pairs = zip(entry.beside, experiment.beside, strict=True)
    return [_shown(figure, measure.decimals) for figure, measure in pairs]


def _compact(experiment: Experiment, entry: Entry | None) -> str:
    if entry is None:
        return MISSING
    over = [f"{_signed(entry.over)} over {experiment.baseline}"] if entry.over else []
    published = _published(experiment, entry) if entry.paper is not None else []
    return "\n".join([_ours(experiment, entry), *published, *over])


def _shown(figure: Estimate | None, decimals: int) -> str:
    return MISSING if figure is None else f"{figure.mean:,.{decimals}f}{_interval(figure, decimals)}"


def _signed(difference: Estimate | None) -> str:
    return MISSING if difference is None else f"{difference.mean:+.2f}{_interval(difference, 2)}"


def _interval(estimate: Estimate, decimals: int) -> str:
    # A figure that is the same for every seed, as an epsilon is, has no interval to show.
    return f" ± {estimate.half_width:.{decimals}f}" if estimate.half_width else ""


def _difference(entry: Entry, decimals: int) -> str:
    if entry.ours is None or entry.paper is None:
        return MISSING
    return f"{entry.ours.mean - entry.paper:+.{decimals}f}"


def _computation(method: str, petaflops: Mapping[str, float]) -> list[str]:
    ours, paper = petaflops[method], published.alexnet(method)
    if paper is None:
        return [f"{ours:.3g}", MISSING, MISSING]
    return [f"{ours:.3g}", f"{paper.client_petaflops:.3f}", f"{ours / paper.client_petaflops:.3g}"]


def to_markdown(title: str, sentences: str, table: Grid, command: str, more: Sequence[str] = ()) -> str:
    """The whole of ``table.md``; ``more``: what stands between the table and the command that made it."""
    parts = [f"# {title}", sentences, table.to_markdown(), *more, f"Made by:\n\n```\n{command}\n```"]
    return "\n\n".join(parts) + "\n"


def to_terminal(title: str, table: Grid) -> Table:
    """The same table for rich."""
    tall = any("\n" in field for row in table.rows for field in row)
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, show_lines=tall)
    for index, name in enumerate(table.header):
        shown.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    return shown
