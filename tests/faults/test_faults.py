"""Nodes that die, lose their network, send rubbish or are late leave the round, and nothing else happens.

Round after round of one run on real processes; see `harness` for how. ``SGLR_FAULT_SEEDS=20`` is the full suite.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from faults.campaign import SETTINGS, SPECIMENS, Campaign
from faults.harness import Federation, Run
from faults.table import Line
from faults.verdict import verify

pytestmark = pytest.mark.flower

NODES = 4
CLIENTS = 5
"""One node has two."""


def campaign(
    federation: Federation, directory: Path, names: Sequence[str], seed: int, at_most: int, **settings: int
) -> Campaign:
    """Inject the faults in an order drawn from the seed; a run of so many rounds may leave some of them over."""
    order = random.Random(seed).sample(names, len(names))
    rounds = 5 + len(names) * 7 // 10
    config = {**SETTINGS, "num-clients": CLIENTS, "num-server-rounds": rounds, "seed": seed, **settings}
    with Run(federation, directory, config) as run:
        struck = Campaign(federation, run, order, seed, at_most)
        struck.go()
    return struck


def settle(struck: Campaign, lines: dict[str, Line], prefix: str = "") -> list[str]:
    """Judge, and count into the table; what was wrong."""
    wrong = verify(struck)
    for injection in struck.injections:
        name = prefix + injection.name
        lines.setdefault(name, Line(name)).count(injection.wrong, injection.recovered, injection.returned)
        wrong += [f"{name} at {injection.fault}: {what}" for what in injection.wrong]
    return wrong


@pytest.mark.timeout(0)  # the campaign has a watchdog of its own, for every round
def test_a_round_goes_on_without_nodes_that_fail_and_has_the_weights_of_a_plain_loop_without_them(
    federation: Federation, tmp_path: Path, seeds: int, lines: dict[str, Line]
) -> None:
    wrong: list[str] = []
    left, number = list(SPECIMENS) * seeds, 0
    while left:
        # A run of some twenty faults at a time, so that what goes wrong is found near its cause.
        some, left, number = left[:20], left[20:], number + 1
        struck = campaign(federation, tmp_path / f"campaign-{number}", some, number, NODES - 1, **{"min-clients": 1})
        wrong += settle(struck, lines)
        assert struck.injections, "a whole run and not one fault injected"
        left += struck.left
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", ["rubbish: not finite", "ClientApp killed"])
def test_a_round_that_loses_too_many_clients_is_trained_again_when_they_are_back(
    name: str, federation: Federation, tmp_path: Path, seeds: int, lines: dict[str, Line]
) -> None:
    settings = {"min-clients": CLIENTS, "round-retries": 1, "num-server-rounds": seeds + 1}
    directory = tmp_path / f"too-few-{SPECIMENS[name].kind}"
    struck = campaign(federation, directory, [name] * seeds, seeds, 1, **settings)

    wrong = settle(struck, lines, "too few clients left: ")
    assert not wrong, "\n".join(wrong)
    retried = [row for row in struck.run.node_rows() if row["attempt"] != "1"]
    assert {row["state"] for row in retried} == {"finished"}
