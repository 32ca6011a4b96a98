"""What is made of clients' scores where some have no samples to be scored on."""

from __future__ import annotations

import math
from dataclasses import replace

from run.test_nodetable import metrics

from sglr_flower.run.metrics import History, evaluation_columns
from sglr_flower.split.rounds import Score, Tally


def score(validation: float | None, test: float | None) -> Score:
    """Of ten samples each, or of none."""
    made = [Tally() if of is None else Tally(10 * of, 20.0, 10) for of in (validation, test)]
    return Score(*made)


def test_means_are_over_the_clients_that_have_a_score() -> None:
    columns = evaluation_columns({0: score(0.5, 0.4), 1: score(None, 0.8), 2: score(0.7, None)})
    assert columns["validation_score_mean"] == 0.6
    assert round(columns["test_score_mean"], 9) == 0.6
    assert columns["test_loss_mean"] == 2.0
    assert evaluation_columns({0: score(None, None)}) == dict.fromkeys(columns)


def test_a_client_without_validation_samples_is_tested_in_the_last_round() -> None:
    history = History()
    first, second = {0: score(0.5, 0.4), 1: score(None, 0.9)}, {0: score(0.3, 0.6), 1: score(None, 0.2)}
    for number, found in enumerate((first, second, {2: score(0.1, None)}), 1):
        history.add(replace(metrics(number), **evaluation_columns(found)), found)
    assert {client: (best.round, best.test_score) for client, best in history.best.items()} == {
        0: (1, 0.4),
        1: (2, 0.2),
        2: (3, None),
    }
    assert round(history.totals().test_score_mean, 9) == 0.3
    assert History.from_json(history.to_json()) == history


def test_a_run_in_which_nobody_is_scored_has_no_score() -> None:
    history = History()
    history.add(replace(metrics(1), **evaluation_columns({})), {})
    totals = history.totals()
    assert math.isnan(totals.test_score_mean)
    assert math.isnan(totals.test_score_std)
    assert not totals.scored
