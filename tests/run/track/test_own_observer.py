"""An observer of one's own, by its import path, is told of every round, and ends nothing but its own part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sglr_flower.errors import UserError
from sglr_flower.run import inprocess, track
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import RoundMetrics
from sglr_flower.run.rundir import read_json
from sglr_flower.run.summary import Summary

SMALL = {
    "dataset": "wine",
    "model": "mlp",
    "num-clients": 2,
    "samples-per-client": 20,
    "num-server-rounds": 3,
}


class Told:
    """Keeps what it is told."""

    said: ClassVar[list[Any]] = []

    def begin(self, rows: Sequence[RoundMetrics]) -> None:
        self.said.append(len(rows))

    def round(self, row: RoundMetrics) -> None:
        self.said.append((row.round, row.train_loss))

    def end(self, summary: Summary) -> None:
        self.said.append(summary.totals.rounds)

    def close(self) -> None:
        self.said.append("closed")


class Failing(Told):
    """Fails in its second round."""

    def round(self, row: RoundMetrics) -> None:
        if row.round == 2:
            raise RuntimeError("no more paper")


nobody = object()


def run(path: Path, name: str) -> Summary:
    keys = {**SMALL, "track": f"{__name__}:{name}", "run-dir": str(path)}
    return inprocess.run(RunConfig.parse(keys))


def test_it_is_told_of_every_round(tmp_path: Path) -> None:
    Told.said.clear()
    summary = run(tmp_path / "run", "Told")
    begun, *rounds, ended, closed = Told.said
    assert (begun, ended, closed) == (0, 3, "closed")
    assert [number for number, _ in rounds] == [1, 2, 3]
    assert rounds[-1][1] == summary.totals.train_loss


def test_one_that_fails_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "Failing").totals.rounds == 3
    said = read_json(tmp_path / "run" / "status.json")["observers"]
    assert [one["sentence"] for one in said if one["failed"]] == [
        f"{__name__}:Failing is off: no more paper; the run goes on without it"
    ]


def test_what_is_no_observer_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"must have the methods begin, round, end, close, and it has no begin$"):
        track.check(RunConfig.parse({"track": f"{__name__}:nobody"}))
