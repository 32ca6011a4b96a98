"""What a run measures: one row per round, the best round of every client, their totals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from sglr_flower.run.summary import Totals
from sglr_flower.split.score import ACCURACY, Score

if TYPE_CHECKING:
    from sglr_flower.split import rounds
    from sglr_flower.split.sent import Sent


@dataclass(frozen=True)
class RoundMetrics:
    """A row of ``metrics.csv``; scores are None in rounds without an evaluation.

    In files a column has the score's own name in place of ``score``: ``test_accuracy_mean``, say, a fraction in [0, 1].

    Attributes
    ----------
    round, steps, clients : int
        The round, its server steps, the clients that took part.
    train_loss : float
        Mean loss per training sample.
    client_lr, server_lr : float
        eta_c of the round's first step, and eta_s of it if all participants are present (0 without a server segment).
    validation_score_mean, validation_score_std, validation_loss_mean : float | None
        Over the clients; the standard deviation is the population's.
    test_score_mean, test_score_std, test_loss_mean : float | None
        The same on test samples.
    evaluated_images : int
        Test samples that each client was scored on; 0 in rounds without an evaluation.
    seconds : float
        Wall time of the round, evaluation included; a checkpoint's writing is not.
    step_seconds_median : float
        Median wall time of a step.
    bytes_up, bytes_down : int
        What training sent between the nodes and the server: frames of the exchange, and segments that the method
        averages or hands on (in-process: the tensors that would have travelled). What a node's clients have in common,
        SplitAvg's average or their averaged segments, travels once for the node.
    bytes_smashed, bytes_labels, bytes_segments_up, bytes_framing_up : int
        What ``bytes_up`` is made of (`sglr_flower.split.sent.Sent`).
    bytes_unicast, bytes_broadcast, bytes_segments_down, bytes_framing_down : int
        What ``bytes_down`` is made of.
    evaluation_bytes : int
        What a client-side evaluation sent, both ways.
    nodes : int
        Nodes that finished the round; 0 where that was not recorded.
    dropped_clients : int
        The round's clients that were not there at its end.
    attempts : int
        How often the round was begun: 1 and its retries.
    epsilon : float | None
        What has been spent at its end, with differential privacy whose noise nobody can draw again.
    score : Score
        What the scores are; no column.
    """

    round: int
    steps: int
    clients: int
    train_loss: float
    client_lr: float
    server_lr: float
    validation_score_mean: float | None
    validation_score_std: float | None
    validation_loss_mean: float | None
    test_score_mean: float | None
    test_score_std: float | None
    test_loss_mean: float | None
    evaluated_images: int
    seconds: float
    step_seconds_median: float
    bytes_up: int
    bytes_down: int
    evaluation_bytes: int
    # Runs of versions that did not know these lack them.
    nodes: int = 0
    dropped_clients: int = 0
    attempts: int = 1
    bytes_smashed: int = 0
    bytes_labels: int = 0
    bytes_unicast: int = 0
    bytes_broadcast: int = 0
    bytes_segments_up: int = 0
    bytes_segments_down: int = 0
    bytes_framing_up: int = 0
    bytes_framing_down: int = 0
    epsilon: float | None = None
    score: Score = ACCURACY

    def named(self) -> dict[str, Any]:
        """The row by column."""
        return self.score.named({name: getattr(self, name) for name in _FIELDS})


def figures(row: RoundMetrics) -> dict[str, float]:
    """The numbers of a row by column, without its round and what it does not have: what curves are drawn of."""
    return {name: value for name, value in row.named().items() if value is not None and name != "round"}


_FIELDS = tuple(column.name for column in fields(RoundMetrics) if column.name != "score")
BYTE_COLUMNS = tuple(column for column in _FIELDS if column.startswith("bytes_"))
"""Totals up and down, and the parts that they are made of."""


def columns(score: Score) -> tuple[str, ...]:
    """The columns of ``metrics.csv``."""
    return tuple(score.named(dict.fromkeys(_FIELDS)))


def byte_columns(sent: Sent) -> dict[str, int]:
    """The columns of a row that count bytes: the two totals, and the parts that they are made of."""
    parts = {f"bytes_{name}": count for name, count in asdict(sent).items()}
    return {"bytes_up": sent.up, "bytes_down": sent.down, **parts}


def evaluation_columns(scores: Mapping[int, rounds.Score]) -> dict[str, Any]:
    """The evaluation's part of a row, over the clients that have a score (none: None)."""
    columns: dict[str, Any] = {}
    for split in ("validation", "test"):
        tallies = [tally for score in scores.values() if (tally := score.of(split)).samples]
        means = [tally.mean_score for tally in tallies]
        columns[f"{split}_score_mean"] = statistics.fmean(means) if tallies else None
        columns[f"{split}_score_std"] = statistics.pstdev(means) if tallies else None
        columns[f"{split}_loss_mean"] = statistics.fmean(tally.mean_loss for tally in tallies) if tallies else None
    return columns


@dataclass(frozen=True)
class Best:
    """A client's best validation round and its test score there, which is what the paper tests.

    Either is None where the client has no such samples; without validation samples it is the last round with a score.
    """

    round: int
    validation_score: float | None
    test_score: float | None


@dataclass
class History:
    """All that a run has recorded so far; part of every checkpoint.

    Attributes
    ----------
    rows : list[RoundMetrics]
        One per round.
    best : dict[int, Best]
        Client -> its best validation round; the earlier one on a tie.
    score : Score
        What its scores are.
    """

    rows: list[RoundMetrics] = field(default_factory=list)
    best: dict[int, Best] = field(default_factory=dict)
    score: Score = ACCURACY

    def add(self, row: RoundMetrics, scores: Mapping[int, rounds.Score]) -> None:
        """Record a round."""
        self.rows.append(row)
        for client, own in scores.items():
            found = own.validation.mean_score if own.validation.samples else None
            tested = own.test.mean_score if own.test.samples else None
            known = self.best[client].validation_score if client in self.best else None
            if known is None or (found is not None and self.score.better(found, known)):
                self.best[client] = Best(row.round, found, tested)

    def named_best(self, client: int) -> dict[str, Any] | None:
        """A client's best round by the names that files have; None before its first."""
        return self.score.named(asdict(self.best[client])) if client in self.best else None

    def last_evaluated(self) -> RoundMetrics | None:
        """The last row that has an evaluation."""
        return next((row for row in reversed(self.rows) if row.test_score_mean is not None), None)

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "rows": [row.named() for row in self.rows],
            "best": {str(client): self.score.named(asdict(best)) for client, best in self.best.items()},
            **self.score.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> History:
        """Inverse of `to_json`."""
        score = Score.from_json(values)
        return cls(
            [RoundMetrics(**score.unnamed(row), score=score) for row in values["rows"]],
            {int(client): Best(**score.unnamed(best)) for client, best in values["best"].items()},
            score,
        )

    def totals(self) -> Totals:
        """What the rounds come to, and the score over clients at each one's best validation round."""
        tested = [best.test_score for best in self.best.values() if best.test_score is not None]
        last = self.last_evaluated()
        return Totals(
            rounds=len(self.rows),
            steps=sum(row.steps for row in self.rows),
            seconds=sum(row.seconds for row in self.rows),
            step_seconds_median=statistics.median(row.step_seconds_median for row in self.rows),
            test_score_mean=statistics.fmean(tested) if tested else math.nan,
            test_score_std=statistics.pstdev(tested) if tested else math.nan,
            last_round_test_score_mean=_or_nan(last.test_score_mean if last else None),
            last_round_test_score_std=_or_nan(last.test_score_std if last else None),
            evaluated_images=last.evaluated_images if last else 0,
            train_loss=self.rows[-1].train_loss,
            **{column: sum(getattr(row, column) for row in self.rows) for column in BYTE_COLUMNS},
            evaluation_bytes=sum(row.evaluation_bytes for row in self.rows),
            score=self.score,
        )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
