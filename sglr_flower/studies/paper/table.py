"""An experiment's table, ours beside the paper's, for Markdown and for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from sglr_flower.studies.paper import published
from sglr_flower.studies.paper.cells import Cell, Label, text
from sglr_flower.studies.paper.experiments import OF_RUNS, Experiment, Picture
from sglr_flower.studies.paper.layout import Grid
from sglr_flower.studies.paper.measures import Measure
from sglr_flower.studies.paper.results import Estimate, Result, by_place, estimate
from sglr_flower.studies.paper.scales import SCALES, Scale

_MISSING = "-"
_NOT_IN_RESULTS = ("checkpoint-every",)
"""Keys of a scale that change no figure."""


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
    paper = f"{entry.paper:.{decimals}f}" if entry.paper is not None else _MISSING
    return [paper, _difference(entry, decimals)]


def _beside(experiment: Experiment, entry: Entry) -> list[str]:
    pairs = zip(entry.beside, experiment.beside, strict=True)
    return [_shown(figure, measure.decimals) for figure, measure in pairs]


def _compact(experiment: Experiment, entry: Entry | None) -> str:
    if entry is None:
        return _MISSING
    over = [f"{_signed(entry.over)} over {experiment.baseline}"] if entry.over else []
    published = _published(experiment, entry) if entry.paper is not None else []
    return "\n".join([_ours(experiment, entry), *published, *over])


def _shown(figure: Estimate | None, decimals: int) -> str:
    return _MISSING if figure is None else f"{figure.mean:,.{decimals}f}{_interval(figure, decimals)}"


def _signed(difference: Estimate | None) -> str:
    return _MISSING if difference is None else f"{difference.mean:+.2f}{_interval(difference, 2)}"


def _interval(estimate: Estimate, decimals: int) -> str:
    # A figure that is the same for every seed, as an epsilon is, has no interval to show.
    return f" ± {estimate.half_width:.{decimals}f}" if estimate.half_width else ""


def _difference(entry: Entry, decimals: int) -> str:
    if entry.ours is None or entry.paper is None:
        return _MISSING
    return f"{entry.ours.mean - entry.paper:+.{decimals}f}"


def _computation(method: str, petaflops: Mapping[str, float]) -> list[str]:
    ours, paper = petaflops[method], published.alexnet(method)
    if paper is None:
        return [f"{ours:.3g}", _MISSING, _MISSING]
    return [f"{ours:.3g}", f"{paper.client_petaflops:.3f}", f"{ours / paper.client_petaflops:.3g}"]


def caption(
    experiment: Experiment, scale: Scale, places: Sequence[Entry], cells: Sequence[Cell], results: Sequence[Result]
) -> str:
    """What the figures are of, in sentences that follow from the same values as the runs.

    Parameters
    ----------
    experiment, scale : Experiment, Scale
        What was run.
    places : Sequence[Entry]
        From `entries`.
    cells : Sequence[Cell]
        All that the table has places for, all seeds.
    results : Sequence[Result]
        Those that are finished.
    """
    sentences = [_setting(cells), _reduction(experiment, scale), _thinning(experiment, scale, cells)]
    sentences += [_accuracy(cells[0]), seeds(places, cells), _layout(experiment, places), _note(experiment)]
    if len(results) < len(cells):
        sentences.append(f"{len(results)} of {len(cells)} cells are finished; {_MISSING} stands for what is missing.")
    sentences.append(_origin(results))
    return " ".join(filter(None, sentences))


def subtitle(kind: Picture, scale: Scale, cells: Sequence[Cell]) -> str:
    """The caption in a line, for a picture of finished cells; of one that shows a single seed, without the seeds."""
    config, counts = cells[0].config, sorted(Counter(cell.place for cell in cells).values())
    setting = (
        f"scale {scale.name}: {config.model} on {config.dataset}, {config.samples_per_client:,} samples per client, "
        f"{config.num_server_rounds} rounds"
    )
    if kind in OF_RUNS:
        return setting
    if counts[-1] == 1:
        return f"{setting}; one seed"
    several = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else f"{counts[0]}"
    spread = "" if kind == "heat map" else ", 95 % intervals"
    return f"{setting}; mean of {several} seeds{spread}"


def _setting(cells: Sequence[Cell]) -> str:
    config = cells[0].config
    same = len({cell.config.lr_schedule for cell in cells}) == 1
    schedule = f" ({config.lr_schedule} schedule)" if same else ""
    return (
        f"{config.model} on {config.dataset}, {config.samples_per_client:,} samples per client ({config.partition}), "
        f"batch size {config.batch_size}, {config.optimizer} at {config.client_lr:g}{schedule}, "
        f"{config.num_server_rounds} rounds of {config.local_epochs} epoch(s)."
    )


def _reduction(experiment: Experiment, scale: Scale) -> str:
    full, here = experiment.base(SCALES["full"]), experiment.base(scale)
    changed = [
        f"{key} {_figure(here[key])} instead of {_figure(value)}"
        for key, value in full.items()
        if here[key] != value and key not in _NOT_IN_RESULTS
    ]
    if not changed:
        return "This is the paper's setting at full length, with our choices where it leaves one."
    return f"This is the scale {scale.name}, **reduced** from the paper's setting: {', '.join(changed)}."


def _figure(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _thinning(experiment: Experiment, scale: Scale, cells: Sequence[Cell]) -> str:
    """Which values of the full scale's labels do not occur."""
    left_out = []
    for key, values in experiment.grids["full"].items():
        here = {cell.labels[key] for cell in cells}
        if missing := [text(value) for value in values if value not in here]:
            left_out.append(f"{key} {', '.join(missing)}")
    return f"Left out: {'; '.join(left_out)}." if left_out else ""


def _accuracy(cell: Cell) -> str:
    config = cell.config
    images = f"{config.evaluate_samples:,} test images" if config.evaluate_samples else "all test images"
    if config.evaluate_every == 0:
        return f"Accuracy is the mean over clients on {images}, in the last round."
    rounds = "" if config.evaluate_every == 1 else f" among every {config.evaluate_every} rounds and the last"
    return f"Accuracy is the mean over clients on {images}, each at its best validation round{rounds}."


def seeds(places: Sequence[Entry], cells: Sequence[Cell]) -> str:
    """Over which seeds the table's means are, in a sentence."""
    numbers = sorted({int(cell.labels["seed"]) for cell in cells})
    counts = [entry.ours.seeds for entry in places if entry.ours]
    if len(numbers) == 1:
        return f"One seed ({numbers[0]}), so there is no interval."
    named = f"Mean ± 95 % interval (Student's t) over the seeds {', '.join(map(str, numbers))}"
    if counts and min(counts) < len(numbers):
        return f"{named}, of which a place has {min(counts)} to {max(counts)}; one with a single seed has no interval."
    return f"{named}."


def _layout(experiment: Experiment, places: Sequence[Entry]) -> str:
    if len({column_of(experiment, entry.labels) for entry in places}) == 1:
        return ""
    over = f"; below that, the difference to {experiment.baseline}" if experiment.baseline else ""
    return f"Each field: ours, the paper's, the difference; or ours alone where the paper reports none{over}."


def _origin(results: Sequence[Result]) -> str:
    """What made the cells, as far as their runs have recorded it."""
    made = [result.made for result in results if result.made]
    if not made:
        return ""
    named = {name: sorted({one[name] for one in made}) for name in ("version", "torch", "machine")}
    trained = sorted({engine for one in made for engine in one["engine"].split("+")})  # of a run that was resumed, each
    engines = f"engine {trained[0]}" if len(trained) == 1 else f"{len(trained)} engines"
    some = f" ({len(made)} of the runs; the others have not recorded it)" if len(made) < len(results) else ""
    versions = f"sglr-flower {', '.join(named['version'])} ({engines}), torch {', '.join(named['torch'])}"
    return f"Made by {versions} on {'; '.join(named['machine'])}{some}."


def _note(experiment: Experiment) -> str:
    sentences = f"{experiment.note[0].upper()}{experiment.note[1:]}." if experiment.note else ""
    if experiment.baseline:
        sentences += f" Over {experiment.baseline}: percentage points, seed by seed."
    return sentences.strip()


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
