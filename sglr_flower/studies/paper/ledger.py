"""The ledger of results: one row per finished cell, in files that add up over machines and months.

A ledger is a folder with one CSV file per scale. A row says which run it is of, what was run (every run-config key
that decides what is learned), what came out, and what made it. Rows are written by ``sglr paper`` alone and are never
changed, so that of two branches that have both added some all lines are kept (``merge=union`` in .gitattributes).
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic
from sglr_flower.run.config import RunConfig, keys
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.settings import parse_assignment
from sglr_flower.studies.paper import progress
from sglr_flower.studies.paper.cells import NOT_LEARNED, Cell
from sglr_flower.studies.paper.measures import CROSS_ENTROPY, EPSILON, LEAKAGE, Figures
from sglr_flower.studies.paper.progress import Point
from sglr_flower.studies.paper.results import MADE, SUMMARY_COLUMNS, Result

FOLDER = "results"
"""Of the checkout."""

_THIS = Path(*__name__.split(".")).with_suffix(".py")
"""This file, where the package lies."""

_LOCK = ".ledger.lock"
"""Beside the files; not a sweep's own ``.lock``, as a sweep's folder may be its ledger too."""

_LABELS = ("method", "clients", "seed")
_FIGURES = (*SUMMARY_COLUMNS, *(measure.column for measure in (EPSILON, CROSS_ENTROPY, *LEAKAGE)))
_RUN = ("nodes", "exchange", "finished", "run")
COLUMNS = (*_LABELS, *_FIGURES, "curve", *MADE, *_RUN, "settings", "check")
"""Of a file of the ledger.

``curve`` is of `progress`, ``finished`` the time (UTC) at which the run's result was written, ``run`` its id,
``settings`` the words of `settings`, and ``check`` the first digits of a SHA-256 over all other fields.
"""


@dataclass(frozen=True)
class Row:
    """A finished cell as the ledger has it: the fields of its line by the names in `COLUMNS`, without ``check``."""

    fields: Mapping[str, str]

    @property
    def figures(self) -> Figures:
        """As of `results.Result`."""
        named = {name: self.fields[name] for name in ("clients", "nodes", *_FIGURES)}
        return {name: _number(text) if text else None for name, text in named.items()}

    @property
    def curve(self) -> tuple[Point, ...]:
        """As of `results.Result`."""
        return progress.from_text(self.fields["curve"])

    @property
    def attacked(self) -> bool:
        """Whether the run was attacked."""
        return bool(self.fields[CROSS_ENTROPY.column])

    @property
    def config(self) -> RunConfig:
        """What was run; keys that there were not yet have their defaults.

        Raises
        ------
        UserError
            If a key or its value is none of this version's.
        """
        try:
            return RunConfig.parse(dict(parse_assignment(word) for word in self.fields["settings"].split(" ")))
        except UserError as error:
            raise UserError(f"the ledger's row of run {self.fields['run']} cannot be used: {error}") from None


def default_folder(scale: str, here: Path) -> Path | None:
    """The ledger of a sweep that is started in ``here`` if none is named: the checkout's, in a checkout.

    None elsewhere, so that whoever has the package alone finds nothing but the sweep's own folder; and at scale smoke,
    which shows that all runs and is no evidence.
    """
    is_checkout = (here / "pyproject.toml").exists() and (here / _THIS).exists()
    return here / FOLDER if is_checkout and scale != "smoke" else None


def file_of(folder: Path, scale: str) -> Path:
    """The file of a scale."""
    return folder / f"{scale}.csv"


def settings(config: RunConfig) -> str:
    """What a run learns, as words ``key=value`` in the order of the run-config: equal for runs with equal results."""
    values = config.values()
    return " ".join(f"{key}={_word(values[key])}" for key in keys() if key not in NOT_LEARNED)


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read(path: Path) -> list[Row]:
    """The rows of a file, those that were finished first at the beginning; none if there is no file.

    Raises
    ------
    UserError
        If it is not of this form, or a row is not as it was written.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"ledger {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"ledger {path} cannot be read: it is no text in UTF-8") from None
    head, *lines = lines or [""]
    names = next(csv.reader([head]), [])
    if not set(names) <= set(COLUMNS) or not {*_LABELS, "settings", "check"} <= set(names):
        raise UserError(f"ledger {path} has a first line that is not this version's: {head[:60]!r}")
    rows = {}
    for number, line in enumerate(lines, start=2):
        if line == head:  # of two branches that have both begun the file
            continue
        fields = dict(zip(names, next(csv.reader([line]), []), strict=False))
        if fields.pop("check", "") != _check(fields):
            raise UserError(f"ledger {path}, line {number}: it is not as sglr paper wrote it; rows are never edited")
        rows[line] = Row({name: fields.get(name, "") for name in COLUMNS[:-1]})
    return sorted(rows.values(), key=lambda row: (row.fields["finished"], row.fields["run"]))


def add(path: Path, results: Iterable[Result]) -> None:
    """Add rows of finished cells that have run directories; runs that have a row already are left alone.

    A run of a version that did not record what made it has a row too; the fields of that are empty, and a table's
    caption says of how many runs they are.

    Raises
    ------
    UserError
        If the file cannot be written, or what is there cannot be read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / _LOCK):
            there = read(path)
            known = {(row.fields["run"], row.attacked) for row in there}
            made = [row for result in results if (row := _row(result)) is not None]
            added = [row for row in made if (row.fields["run"], row.attacked) not in known]
            if added:
                write_atomic(path, _to_csv([*there, *added]))
    except OSError as error:
        raise UserError(f"ledger {path} cannot be written: {error.strerror or error}") from None


def results(rows: Sequence[Row], cells: Iterable[Cell]) -> list[Result]:
    """The results of those of the cells that have a row; of several rows of a cell the one that was finished first."""
    by_settings: dict[str, list[Row]] = {}
    for row in rows:
        by_settings.setdefault(settings(row.config), []).append(row)
    found = []
    for cell in cells:
        suiting = [row for row in by_settings.get(settings(cell.config), []) if row.attacked or not cell.attack]
        if suiting:
            row = suiting[0]
            made = {name: row.fields[name] for name in MADE if row.fields["engine"]}
            found.append(Result(cell, row.figures, row.curve, made, run=row.fields["run"]))
    return found


def seeds(rows: Iterable[Row]) -> set[int]:
    """The seeds that there are rows of."""
    return {int(row.fields["seed"]) for row in rows}


def _row(result: Result) -> Row | None:
    if result.directory is None:
        return None
    summary = result.directory / "summary.json"
    finished = datetime.fromtimestamp(summary.stat().st_mtime, UTC)
    there = RunDirectory(result.directory).summary()
    figures = {name: result.figures.get(name) for name in _FIGURES}
    fields = {
        "method": result.cell.config.method,
        "clients": str(there.clients),
        "seed": str(result.cell.config.seed),
        **{name: "" if value is None or math.isnan(value) else repr(value) for name, value in figures.items()},
        "curve": progress.to_text(result.curve),
        **{name: result.made.get(name, "") for name in MADE},
        "nodes": str(there.nodes),
        "exchange": there.exchange,
        "finished": f"{finished:%Y-%m-%dT%H:%M:%SZ}",
        "run": result.run,
        "settings": settings(result.cell.config),
    }
    return Row({name: fields[name] for name in COLUMNS[:-1]})


def _check(fields: Mapping[str, str]) -> str:
    # Empty fields are left out, so that a column that is added later changes no row's.
    words = [f"{name}={value}" for name, value in sorted(fields.items()) if value]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _to_csv(rows: Iterable[Row]) -> bytes:
    """The file: rows by method, clients and seed, so that what is added does not all come at the same place."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=_order):
        writer.writerow({**row.fields, "check": _check(row.fields)})
    return text.getvalue().encode()


def _order(row: Row) -> tuple[object, ...]:
    fields = row.fields
    return fields["method"], int(fields["clients"]), int(fields["seed"]), fields["settings"], fields["run"]
