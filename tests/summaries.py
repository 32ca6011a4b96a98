"""What a run came to, for the tests of what is made of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from sglr_flower.run.summary import Summary, Totals

TOTALS = Totals(
    **dict.fromkeys((field.name for field in dataclasses.fields(Totals) if field.name != "score"), 7)
    | dict.fromkeys(("test_score_mean", "last_round_test_score_mean"), 0.5)
    | dict.fromkeys(("test_score_std", "last_round_test_score_std"), 0.01)
)
"""Seven of everything, but for the score."""


def summary(**totals: Any) -> Summary:
    """Of four clients on one node; ``totals``: fields of `Totals` that differ from `TOTALS`."""
    return Summary(
        method="sglr",
        model="resnet16",
        dataset="digits",
        clients=4,
        nodes=1,
        exchange="in-process",
        totals=dataclasses.replace(TOTALS, **totals),
        seed=0,
    )
