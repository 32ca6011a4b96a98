"""A cell: one run of an experiment, by its labels; and choosing among cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglr_flower.errors import UserError
from sglr_flower.run.config import RunConfig

Label = str | int | float
NOT_LEARNED = (
    *("data-dir", "run-dir", "resume", "track", "checkpoint-every", "checkpoints-kept"),
    *("exchange", "step-timeout", "start-timeout", "min-clients", "round-retries", "evaluate"),
    *("server-device", "recompute", "cohort"),
)
"""Keys that say where and how a run is carried out: its results do not depend on them, but for rounding."""


@dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    Attributes
    ----------
    labels : Mapping[str, Label]
        What tells it from the other cells: method, clients, ..., seed, in the order of the columns of ``results.csv``.
    config : RunConfig
        All settings of the run; ``run-dir`` is left empty.
    attack : bool
        Whether ``sglr attack`` follows the training.
    """

    labels: Mapping[str, Label]
    config: RunConfig
    attack: bool = False

    @property
    def name(self) -> str:
        """Readable, unique within the experiment, and a folder's name: ``sglr_clients-10_alpha-0.5_seed-0``."""
        parts = [
            text(value) if key == "method" else f"{key}-{text(value)}".replace(":", "-")
            for key, value in self.labels.items()
        ]
        return "_".join(parts)

    @property
    def place(self) -> tuple[tuple[str, Label], ...]:
        """The labels without the seed: the place in the table, which cells of all seeds share."""
        return tuple((key, value) for key, value in self.labels.items() if key != "seed")


def text(value: Label) -> str:
    """A label's value as it is shown and as it is given to ``--only``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def select(cells: Sequence[Cell], expression: str) -> list[Cell]:
    """The cells that an ``--only`` expression asks for.

    Parameters
    ----------
    cells : Sequence[Cell]
        All with the same labels; not empty.
    expression : str
        ``key=value`` filters on labels, separated by commas; alternatives of a value separated by ``|``. Empty: all.

    Raises
    ------
    UserError
        If a filter is not of that form, its key is no label, its value does not occur, or nothing is left.
    """
    chosen = list(cells)
    for part in filter(None, (part.strip() for part in expression.split(","))):
        key, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"--only {part!r} must have the form key=value or key=value|value")
        if key not in cells[0].labels:
            raise UserError(f"--only {part!r}: there is no label {key!r}; the labels are {', '.join(cells[0].labels)}")
        there = {cell.labels[key] for cell in cells}
        wanted = {_find(value.strip(), there, part, _values(cells, key)) for value in values.split("|")}
        chosen = [cell for cell in chosen if cell.labels[key] in wanted]
    if not chosen:
        each = "; ".join(f"{key}: {', '.join(_values(cells, key))}" for key in cells[0].labels)
        raise UserError(f"--only {expression!r} leaves no cell; there are combinations of {each}")
    return chosen


def _values(cells: Sequence[Cell], key: str) -> list[str]:
    """The values of a label, each once, in the order of the cells."""
    return list(dict.fromkeys(text(cell.labels[key]) for cell in cells))


def _find(wanted: str, there: set[Label], part: str, listed: list[str]) -> Label:
    for value in there:
        if text(value) == wanted or (not isinstance(value, str) and _number(wanted) == value):
            return value
    raise UserError(f"--only {part!r}: there is no cell with {wanted!r}; there are {', '.join(listed)}")


def _number(wanted: str) -> float | None:
    try:
        return float(wanted)
    except ValueError:
        return None
