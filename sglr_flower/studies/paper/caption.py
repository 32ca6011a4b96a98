"""What an experiment's figures are of, in sentences that follow from the same values as the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sglr_flower.studies.paper.cells import Cell, text
from sglr_flower.studies.paper.experiment import OF_RUNS, Experiment, Picture
from sglr_flower.studies.paper.results import Result
from sglr_flower.studies.paper.scales import SCALES, Scale
from sglr_flower.studies.paper.table import MISSING, Entry, column_of

_NOT_IN_RESULTS = ("checkpoint-every",)
"""Keys of a scale that change no figure."""


def caption(
    experiment: Experiment, scale: Scale, places: Sequence[Entry], cells: Sequence[Cell], results: Sequence[Result]
) -> str:
    """The sentences over a table.

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
        sentences.append(f"{len(results)} of {len(cells)} cells are finished; {MISSING} stands for what is missing.")
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
