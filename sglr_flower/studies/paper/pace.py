"""Accuracy by time: when each cell has reached the accuracy with which plain training of the same seed ends.

The target follows from a rule and not from what came out: of each seed and number of clients it is the accuracy, in the
last round, of the experiment's cell without what the experiment is about (`Experiment.plain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sglr_flower.studies.paper import progress
from sglr_flower.studies.paper.cells import Label, text
from sglr_flower.studies.paper.experiment import Experiment
from sglr_flower.studies.paper.layout import Grid
from sglr_flower.studies.paper.progress import Point
from sglr_flower.studies.paper.results import Result, by_place

_MISSING = "-"


def title(experiment: Experiment) -> str:
    """The heading of the table."""
    return f"Time to the accuracy of {_plain(experiment)}"


def caption(experiment: Experiment, results: Sequence[Result]) -> str:
    """What the figures are, in sentences."""
    counts = {len(result.curve) for result in results}
    return (
        f"The target is the accuracy in the last round of {_plain(experiment)} with as many clients and the same seed. "
        f"It is reached in the first round that has it, of those that were evaluated ({_span(counts)} in a run). "
        "Seconds are of training alone, steps times the median time of one in each round, and of the machine with "
        f"whatever else ran on it, here: {_machines(results)}; rounds and MB do not depend on that. MB are what "
        f"training sent both ways, of all clients, hosted by {_nodes(results)}; an average travels once to each. Means "
        "over the seeds that have reached it."
    )


def table(experiment: Experiment, results: Sequence[Result]) -> Grid | None:
    """The table; None where no cell can be compared: no plain one, or not more than one evaluation in a run."""
    if not experiment.plain or all(len(result.curve) < 2 for result in results):
        return None
    targets = {
        (*_others(experiment, result.cell.labels), result.cell.labels["seed"]): result.curve[-1].accuracy
        for result in results
        if result.curve and experiment.plain.items() <= result.cell.labels.items()
    }
    lines = []
    for place, found in by_place(results).items():
        labels = dict(place)
        pairs = [
            (target, progress.first(result.curve, target))
            for result in found
            if (target := targets.get((*_others(experiment, labels), result.cell.labels["seed"]))) is not None
        ]
        if pairs:
            shown = [text(labels[key]) for key in (experiment.rows, *experiment.columns)]
            lines.append([*shown, *_fields(pairs)])
    header = [experiment.rows, *experiment.columns, "target (%)", "reached", "round", "seconds", "MB"]
    return Grid(header, lines) if lines else None


def _others(experiment: Experiment, labels: Mapping[str, Label]) -> tuple[Label, ...]:
    """What a cell has in common with the plain one that it is compared with."""
    own = {"method", "seed", *experiment.plain}
    return tuple(value for key, value in labels.items() if key not in own)


def _fields(pairs: Sequence[tuple[float, Point | None]]) -> list[str]:
    reached = [point for _, point in pairs if point is not None]
    target = 100 * _mean([accuracy for accuracy, _ in pairs])
    fields = [f"{target:.2f}", f"{len(reached)} of {len(pairs)}"]
    if not reached:
        return [*fields, _MISSING, _MISSING, _MISSING]
    rounds, seconds = _mean([point.round for point in reached]), _mean([point.seconds for point in reached])
    return [*fields, f"{rounds:.3g}", f"{seconds:,.0f}", f"{_mean([point.bytes for point in reached]) / 1e6:,.0f}"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(experiment: Experiment) -> str:
    if list(experiment.plain) == ["method"]:
        return str(experiment.plain["method"])
    return ", ".join(f"{key} {text(value)}" for key, value in experiment.plain.items())


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _nodes(results: Sequence[Result]) -> str:
    counts = sorted({int(result.figures.get("nodes") or 0) for result in results})
    return "one node" if counts == [1] else f"{' or '.join(map(str, counts))} nodes"


def _machines(results: Sequence[Result]) -> str:
    return "; ".join(sorted({result.made.get("machine", "") or "not recorded" for result in results}))
