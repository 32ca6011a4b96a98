"""What a report reads of one run directory, checked: a damaged file is a sentence and never a wrong figure."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglr_flower.errors import UserError
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.run.summary import Summary, check_fraction, complaint
from sglr_flower.split.score import ACCURACY, Score

PARTITION_PICTURE = "partition.png"
"""The picture of the partition in a run directory; a run may have none."""


class Row(BaseModel):
    """The columns of ``metrics.csv`` that a report uses; see `sglr_flower.run.metrics.RoundMetrics`."""

    model_config = ConfigDict(frozen=True)

    round: int = Field(ge=1)
    steps: int = Field(ge=0)
    train_loss: float  # nan or inf where training diverged
    test_score_mean: float | None
    test_score_std: float | None = Field(ge=0)
    evaluated_images: int = Field(ge=0)
    seconds: float = Field(ge=0)
    step_seconds_median: float = Field(ge=0)
    bytes_up: int = Field(ge=0)
    bytes_down: int = Field(ge=0)
    # Runs of versions that did not count them lack these.
    bytes_smashed: int = Field(0, ge=0)
    bytes_labels: int = Field(0, ge=0)
    bytes_unicast: int = Field(0, ge=0)
    bytes_broadcast: int = Field(0, ge=0)
    bytes_segments_up: int = Field(0, ge=0)
    bytes_segments_down: int = Field(0, ge=0)
    bytes_framing_up: int = Field(0, ge=0)
    bytes_framing_down: int = Field(0, ge=0)


@dataclass(frozen=True)
class Run:
    """One run as its directory tells it.

    Attributes
    ----------
    path : Path
        The directory as the user named it.
    config : RunConfig
        Its resolved settings.
    rows : tuple[Row, ...]
        One per round that is done: rounds 1, 2, ...
    result : Summary | None
        None while the run is unfinished.
    error : str
        Why it failed, if its status says so; else empty.
    partition : bytes
        The PNG of its partition; empty if it has none.
    score : Score
        What its scores are.
    warnings : tuple[str, ...]
        What was said of it while it trained.
    """

    path: Path
    config: RunConfig
    rows: tuple[Row, ...]
    result: Summary | None
    error: str
    partition: bytes
    score: Score = ACCURACY
    warnings: tuple[str, ...] = ()

    @property
    def last_evaluated(self) -> Row | None:
        """The last round with an evaluation, if there is one yet."""
        return next((row for row in reversed(self.rows) if row.test_score_mean is not None), None)

    @property
    def steps(self) -> int:
        """Server steps of all rounds."""
        return sum(row.steps for row in self.rows)

    @property
    def seconds(self) -> float:
        """Wall time of all rounds."""
        return sum(row.seconds for row in self.rows)

    @property
    def step_seconds(self) -> float:
        """Median over the rounds of their median step; nan before the first round's end."""
        return statistics.median(row.step_seconds_median for row in self.rows) if self.rows else float("nan")

    @property
    def bytes_up(self) -> int:
        """What training sent to the server."""
        return sum(row.bytes_up for row in self.rows)

    @property
    def bytes_down(self) -> int:
        """What training sent to the clients."""
        return sum(row.bytes_down for row in self.rows)


def read_all(run_dirs: Sequence[Path]) -> list[Run]:
    """Read run directories, in the order given.

    Raises
    ------
    UserError
        If one of them holds no run, is given twice or is a copy of another, or has a damaged file.
    """
    seen: dict[object, Path] = {}
    runs = []
    for path in run_dirs:
        runs.append(read(path))
        # A copied folder would count as another seed's evidence, so the run's own id is looked at too.
        for identity in (path.resolve(), _run_id(path)):
            if identity is not None and identity in seen:
                raise UserError(f"run directories {seen[identity]} and {path} are the same run: name it once")
            seen[identity] = path
    return runs


def read(run_dir: Path) -> Run:
    """Read one run directory.

    Raises
    ------
    UserError
        If it holds no run, or a file of it is damaged.
    """
    directory = RunDirectory(run_dir)
    config = directory.read_config()
    status = read_json(run_dir / "status.json")
    score = Score.from_json(status)
    rows = _read_rows(run_dir / "metrics.csv", score)
    result = directory.summary() if (run_dir / "summary.json").exists() else None
    early = result is not None and result.spent is not None and result.spent.ended_by_privacy_budget
    if result is not None and len(rows) != config.num_server_rounds and not early:
        raise UserError(
            f"{run_dir / 'metrics.csv'} is damaged: it has {len(rows)} rounds of a finished run of "
            f"{config.num_server_rounds}"
        )
    error = str(status.get("error", "")) if status.get("state") == "failed" else ""
    said = status.get("warnings", []) if result is None else result.warnings
    picture = _read_partition(run_dir / PARTITION_PICTURE)
    return Run(run_dir, config, rows, result, error, picture, score, tuple(map(str, said)))


def _run_id(run_dir: Path) -> str | None:
    try:
        return RunDirectory(run_dir).run_id
    except FileNotFoundError:
        return None


def _read_rows(path: Path, score: Score) -> tuple[Row, ...]:
    """All rounds; none if there is no file, as before the first round."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return ()
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    rows = tuple(_read_row(path, number, record, score) for number, record in enumerate(records, 1))
    for number, row in enumerate(rows, 1):
        if row.round != number:
            raise UserError(f"{path} is damaged: its row {number} is of round {row.round}, expected round {number}")
    return rows


def _read_row(path: Path, number: int, record: dict[str | Any, str | Any], score: Score) -> Row:
    if None in record or None in record.values():  # csv's marks of a field too many, and of one too few
        raise UserError(f"{path} is damaged: its row {number} does not have as many fields as the header")
    try:
        row = Row.model_validate(score.unnamed({column: value or None for column, value in record.items()}))
        check_fraction(record, row, score)
    except ValueError as error:
        wrong = complaint(error, score) if isinstance(error, ValidationError) else error
        raise UserError(f"{path} is damaged: its row {number} has {wrong}") from None
    return row


def _read_partition(path: Path) -> bytes:
    from PIL import Image  # only where a report is made

    if not path.exists():
        return b""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
        return path.read_bytes()
    except (OSError, SyntaxError) as error:  # SyntaxError: what Pillow calls a broken PNG
        raise UserError(f"{path} is no whole PNG picture: {error}") from None
