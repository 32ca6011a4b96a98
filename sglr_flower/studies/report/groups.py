"""Runs that differ only in their seed, taken together: their names, their figures with intervals, their curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sglr_flower import imports
from sglr_flower.errors import UserError
from sglr_flower.run.config import Scalar
from sglr_flower.split.methods import METHODS
from sglr_flower.split.score import Score
from sglr_flower.studies.report.runs import Run, read_all

CONFIDENCE = 0.95
"""Of the intervals over seeds."""

NOT_COMPARED = ("seed", "run-dir", "resume", "step-timeout", "checkpoint-every", "checkpoints-kept", "track")
"""Keys in which runs may differ and still repeat the same training: the seed, places, and what changes no figure."""

SPEAKING = ("method", "model", "dataset", "partition", "optimizer")
"""Keys whose value says by itself what is meant."""


@dataclass(frozen=True)
class Estimate:
    """A figure of a group and how sure it is.

    Attributes
    ----------
    mean : float
        Over the group's runs.
    spread : float
        Half the width of the 95 % interval over seeds; with one run the standard deviation over its clients.
    """

    mean: float
    spread: float


@dataclass(frozen=True)
class Curve:
    """A figure per round, all arrays of the same length (float64; ``rounds`` int64).

    Attributes
    ----------
    rounds, mean : NDArray
        The rounds in which all runs of the group have the figure, and its mean over them.
    spread : NDArray | None
        As `Estimate.spread`; None where one run says nothing about it.
    """

    rounds: NDArray[np.int64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64] | None


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seed, or one unfinished run.

    Attributes
    ----------
    name : str
        What distinguishes it from the report's other groups; unique in the report.
    runs : tuple[Run, ...]
        By seed, each seed once.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> bool:
        """Whether its runs have ended with a result."""
        return self.runs[0].result is not None

    @property
    def settings(self) -> dict[str, Scalar]:
        """The settings that its runs share."""
        return compared(self.runs[0])

    @property
    def score(self) -> Estimate | None:
        """The test score, of accuracy in [0, 1], each client at its best validation round; None if there is none."""
        results = [run.result.totals for run in self.runs if run.result is not None and run.result.totals.scored]
        if not results:
            return None
        return _estimate([r.test_score_mean for r in results], [r.test_score_std for r in results])

    @property
    def last_score(self) -> Estimate | None:
        """The test score in the last round with an evaluation; None before the first."""
        rows = [row for run in self.runs if (row := run.last_evaluated) is not None]
        if not rows:
            return None
        return _estimate([row.test_score_mean or 0.0 for row in rows], [row.test_score_std or 0.0 for row in rows])

    @property
    def diverged(self) -> int:
        """How many of its runs ended with a training loss that is no finite number."""
        return sum(bool(run.rows) and not math.isfinite(run.rows[-1].train_loss) for run in self.runs)

    @property
    def spread_meaning(self) -> str:
        """What stands behind the ± of its scores."""
        if len(self.runs) > 1:
            return f"{100 * CONFIDENCE:.0f} % interval, {len(self.runs)} seeds"
        run = self.runs[0]
        # The summary knows it of a method of one's own, whose code is not imported to read what it has done.
        known = METHODS.get(run.config.method)
        if known.one_network if known is not None else run.result is not None and run.result.one_network:
            return "one network, one seed"
        return f"std over {run.config.num_clients} clients"

    def curve(self, figure: Literal["train_loss", "test_score_mean"]) -> Curve:
        """A column of ``metrics.csv`` per round."""
        columns = [{row.round: row for row in run.rows if getattr(row, figure) is not None} for run in self.runs]
        rounds = sorted(set.intersection(*(set(column) for column in columns)))
        values = np.array([[getattr(column[r], figure) for r in rounds] for column in columns], dtype=np.float64)
        values[~np.isfinite(values)] = np.nan  # a gap in the line: an infinite loss has no place on an axis
        spread: NDArray[np.float64] | None = None
        if len(self.runs) > 1:
            spread = half_width(values)
        elif figure == "test_score_mean":
            spread = np.array([columns[0][r].test_score_std for r in rounds], dtype=np.float64)
        return Curve(np.array(rounds, dtype=np.int64), values.mean(axis=0), spread)


@dataclass(frozen=True)
class Report:
    """A comparison of runs.

    Attributes
    ----------
    groups : tuple[Group, ...]
        The best test score first, unfinished runs last.
    differing : tuple[str, ...]
        The settings (kebab-case) that are not the same in all groups.
    """

    groups: tuple[Group, ...]
    differing: tuple[str, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, in the groups' order."""
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def score(self) -> Score:
        """What the scores of all runs are."""
        return self.runs[0].score

    @property
    def common(self) -> dict[str, Scalar]:
        """The settings that all runs share."""
        return {key: value for key, value in self.groups[0].settings.items() if key not in self.differing}


def build(run_dirs: Sequence[Path]) -> Report:
    """Read and compare runs.

    Parameters
    ----------
    run_dirs : Sequence[Path]
        Their directories, at least one.

    Returns
    -------
    Report
        A value; nothing is read again.

    Raises
    ------
    UserError
        If a folder holds no run, is given twice, or has a damaged file, or if the runs have different scores.
    """
    if not run_dirs:
        raise UserError("a report needs at least one run directory, none is given")
    runs = read_all(run_dirs)
    if other := [run for run in runs if run.score != runs[0].score]:
        raise UserError(
            f"{runs[0].path} is scored by {runs[0].score.words} and {other[0].path} by {other[0].score.words}: a "
            "report compares runs of one score"
        )
    differing = differing_keys(runs)
    sets = _alike(runs)
    telling = _telling([compared(alike[0]) for alike in sets], differing)
    groups = [group for alike in sets for group in _split(alike, telling)]
    groups.sort(key=_rank, reverse=True)
    return Report(tuple(groups), differing)


def compared(run: Run) -> dict[str, Scalar]:
    """The settings by which runs are told apart."""
    settings = {key: value for key, value in run.config.values().items() if key not in NOT_COMPARED}
    if run.config.dataset != "folder" and not imports.is_path(run.config.dataset):
        del settings["data-dir"]  # where a published data set lies makes no difference
    return settings


def differing_keys(runs: Sequence[Run]) -> tuple[str, ...]:
    """The settings, in their documented order, that are not the same in all runs."""
    first = compared(runs[0])
    return tuple(key for key, value in first.items() if any(compared(run)[key] != value for run in runs))


def half_width(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the width of the 95 % interval of a mean, by Student's t distribution.

    Parameters
    ----------
    values : NDArray, (runs, ...)
        At least two runs.

    Returns
    -------
    NDArray, (...)
        nan where a run's value is.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # slow to import, as all of scipy

    runs = len(values)
    factor = float(stdtrit(runs - 1, (1 + CONFIDENCE) / 2)) / math.sqrt(runs)
    widths: NDArray[np.float64] = factor * np.std(values, axis=0, ddof=1)
    return widths


def text(value: Scalar) -> str:
    """A setting as a person reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def printable(raw: str) -> str:
    """Text from a file or a path without what a terminal or an SVG would take for more than text."""
    return "".join(letter if letter.isprintable() else "�" for letter in raw)


def _estimate(means: Sequence[float], spreads: Sequence[float]) -> Estimate:
    if len(means) == 1:
        return Estimate(means[0], spreads[0])
    return Estimate(math.fsum(means) / len(means), float(half_width(np.array(means))))


def _alike(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs with the same settings together."""
    alike: dict[tuple[tuple[str, Scalar], ...], list[Run]] = {}
    for run in runs:
        alike.setdefault(tuple(compared(run).items()), []).append(run)
    return list(alike.values())


def _split(alike: Sequence[Run], differing: Sequence[str]) -> list[Group]:
    """Groups of runs with the same settings.

    The same seed once more is the same training once more: it would narrow an interval without being new evidence, so
    a repeated seed begins another group. An unfinished run would bend the mean of the others, so it stands alone.
    """
    name = _name(alike[0], differing)
    repeats: list[dict[int, Run]] = []
    for run in (run for run in alike if run.result is not None):
        free = next((seeds for seeds in repeats if run.config.seed not in seeds), None)
        if free is None:
            repeats.append(free := {})
        free[run.config.seed] = run
    groups = []
    for seeds in repeats:
        first = next(iter(seeds.values()))
        place = f" ({first.path}{', …' if len(seeds) > 1 else ''})" if len(repeats) > 1 else ""
        groups.append(Group(printable(name + place), tuple(seeds[seed] for seed in sorted(seeds))))
    for run in (run for run in alike if run.result is None):
        progress = f"unfinished, {len(run.rows)} of {run.config.num_server_rounds} rounds"
        groups.append(Group(printable(f"{name} ({run.path}: {progress})"), (run,)))
    return groups


def _telling(settings: Sequence[Mapping[str, Scalar]], differing: Sequence[str]) -> tuple[str, ...]:
    """The first differing key, and of the others those that are needed to tell the groups apart.

    A method often brings settings of its own: "sglr" then says as much as "sglr, splitavg-phi 0.5".
    """
    keys = tuple(differing)
    for key in reversed(differing[1:]):
        fewer = tuple(kept for kept in keys if kept != key)
        if len({tuple(values[kept] for kept in fewer) for values in settings}) == len(settings):
            keys = fewer
    return keys


def _name(run: Run, differing: Sequence[str]) -> str:
    settings = compared(run)
    if not differing:
        return f"{run.config.method} on {run.config.dataset}"
    return ", ".join(text(settings[key]) if key in SPEAKING else f"{key} {text(settings[key])}" for key in differing)


def _rank(group: Group) -> tuple[bool, float]:
    estimate = group.score or group.last_score
    higher = group.runs[0].score.higher_is_better
    return group.finished, -math.inf if estimate is None else estimate.mean if higher else -estimate.mean
