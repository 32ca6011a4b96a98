"""The suite's judgement condemns what it should: a nodes.csv that is not what happened."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faults import verdict
from faults.campaign import STEPS, Injection
from faults.faulty import Fault
from faults.harness import last_attempts
from faults.table import REPORT, Line, report

STRUCK = 100.0


def row(server_round: int, node: int, state: str = "finished", steps: int = STEPS, attempt: int = 1) -> dict[str, str]:
    reason = "" if state == "finished" else "the connection ended"
    values = {"round": server_round, "attempt": attempt, "clients": node, "state": state, "steps": steps}
    return {key: str(value) for key, value in values.items()} | {"reason": reason}


def steps(server_round: int, used: dict[int, int], start: float = STRUCK) -> list[dict[str, Any]]:
    """The server's trace of a round in which each client was there for so many steps."""
    return [
        {
            "time": start + step,
            "round": server_round,
            "step": step,
            "clients": [i for i, last in used.items() if step < last],
        }
        for step in range(STEPS)
    ]


def injected(node: int, step: int, name: str = "ClientApp killed") -> Injection:
    return Injection(name, Fault("id", "kill", 1, step, node), struck=STRUCK + step - 0.5)


def campaign(*injections: Injection) -> Any:
    """Two nodes of one client each."""
    run = SimpleNamespace(settings={"num-clients": 2})
    return SimpleNamespace(run=run, federation=SimpleNamespace(count=2), injections=list(injections))


def judged(injection: Injection, rows: list[dict[str, str]], trace: list[dict[str, Any]]) -> Injection:
    verdict._judge(injection, rows, trace, campaign(injection))
    return injection


def test_a_drop_at_the_step_of_the_fault_is_as_specified_and_its_recovery_is_timed() -> None:
    rows = [row(1, 0), row(1, 1, "dropped", 3), row(2, 0), row(2, 1)]
    trace = steps(1, {0: STEPS, 1: 3}) + steps(2, {0: STEPS, 1: STEPS}, STRUCK + 50)

    injection = judged(injected(1, 3), rows, trace)

    assert (injection.wrong, injection.recovered, injection.returned) == ([], 0.5, 47.5)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(1, 0), row(1, 1)], "not dropped in round 1"),
        ([row(1, 0, "dropped", 3), row(1, 1)], "not dropped in round 1"),
        ([row(1, 0), row(1, 1, "dropped", 4)], "dropped at step 4 instead of 3"),
    ],
)
def test_another_node_or_another_step_is_condemned(rows: list[dict[str, str]], said: str) -> None:
    assert said in judged(injected(1, 3), rows, steps(1, {0: STEPS, 1: 3})).wrong[0]


def test_a_kill_around_a_frame_may_fall_on_the_next_step_and_no_further() -> None:
    around = "ClientApp killed around its frame"
    for used, right in ((3, True), (4, True), (5, False)):
        rows = [row(1, 0), row(1, 1, "dropped", used)]
        assert (not judged(injected(1, 3, around), rows, steps(1, {0: STEPS, 1: used})).wrong) == right


def test_rubbish_must_be_named_as_such() -> None:
    rows = [row(1, 0), row(1, 1, "dropped", 3)]

    wrong = judged(injected(1, 3, "rubbish: not finite"), rows, steps(1, {0: STEPS, 1: 3})).wrong

    assert wrong == ["the reason given is 'the connection ended'"]


def test_a_node_that_stays_away_for_minutes_is_condemned() -> None:
    rows = [row(1, 0), row(1, 1, "dropped", 3)]
    trace = steps(1, {0: STEPS, 1: 3}) + steps(2, {0: STEPS}, STRUCK + verdict.RETURN_SECONDS)

    assert "did not come back" in judged(injected(1, 3), rows, trace).wrong[0]


def test_nodes_that_leave_unharmed_are_condemned_and_those_on_their_way_back_are_not() -> None:
    hit = campaign(injected(1, 3))
    back = [row(1, 0), row(1, 1, "dropped", 3), row(2, 0), row(2, 1, "away", 0), row(3, 0), row(3, 1)]

    assert verdict._undisturbed(hit, back) == []
    assert "node 0 was dropped in round 2" in verdict._undisturbed(hit, [*back[:2], row(2, 0, "dropped", 1)])[0]
    assert "node 0 was away in round 2" in verdict._undisturbed(hit, [*back[:2], row(2, 0, "away", 0)])[0]
    assert "finished round 2 after 6 steps" in verdict._undisturbed(hit, [*back[:2], row(2, 0, steps=6)])[0]


def test_a_nodes_csv_that_the_servers_steps_contradict_is_condemned() -> None:
    rows = [row(1, 0), row(1, 1, "dropped", 3)]

    assert verdict._trace_agrees(rows, steps(1, {0: STEPS, 1: 3}), 2) == []
    assert verdict._trace_agrees(rows, steps(1, {0: STEPS, 1: 4}), 2)


def test_of_a_round_trained_again_the_last_attempt_counts_also_after_a_resume() -> None:
    once = [row(1, 0), row(1, 1), row(2, 0, "dropped", 1), row(2, 1)]
    again = [row(2, 0, attempt=2), row(2, 1, "away", 0, attempt=2)]

    assert verdict.departures(once) == {1: {}, 2: {0: 1}}
    assert verdict.departures(once + again) == {1: {}, 2: {1: 0}}
    assert last_attempts(once + again + [row(2, 0), row(2, 1)])[2] == [row(2, 0), row(2, 1)]


def test_the_report_keeps_what_other_sessions_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPORT, str(tmp_path / "report.json"))
    first, second = Line("network cut"), Line("flwr stop")
    first.count([], 1.5, 20.0)
    first.count(["it hung"], None)

    report([first])
    report([second])

    written = json.loads((tmp_path / "report.json").read_text())
    assert [line["fault"] for line in written] == ["network cut", "flwr stop"]
    assert (written[0]["injected"], written[0]["survived"], written[0]["seconds"]) == (2, 1, [1.5])
