"""Nodes that fail in the middle of a round of a real Flower simulation: who goes on, with which weights, how long.

Faults of real processes, and of the network between them, are in `tests/faults`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integration import leaving_client_app
from integration.runs import final_weights, largest_difference
from integration.simulation import simulate
from reference_dropouts import plain_rounds

from sglr_flower.errors import TooFewClients
from sglr_flower.flower.server import serve
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory

pytestmark = pytest.mark.flower

SETTINGS: dict[str, Any] = {
    "num-clients": 4,
    "samples-per-client": 24,
    "num-server-rounds": 3,
    "evaluate-every": 0,
    "evaluate-samples": 40,
    "dtype": "float64",
    "start-timeout": 60.0,
}
# Clients 2 and 3 live on the second of two nodes. It fails in the second of three steps of the second round.
ONCE = {"round": 2, "step": 1, "client": 2, "times": 1}
RUNS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    f"{name}-{exchange}-{evaluate}": ({**changes, "exchange": exchange, "evaluate": evaluate}, failure)
    for exchange, evaluate in (("stream", "client"), ("grid", "server"))
    for name, changes, failure in (
        ("leaves", {"min-clients": 2}, ONCE),
        ("sfl", {"min-clients": 2, "method": "sfl"}, ONCE),
        ("retried", {"round-retries": 2}, {**ONCE, "times": 2}),
        ("given-up", {"round-retries": 1}, {**ONCE, "times": 9}),
        ("at-once", {}, ONCE),
        # Nobody leaves: what a tolerant run keeps for that must not change it, one client after the other either.
        ("undisturbed", {"min-clients": 1, "method": "ssl"}, {**ONCE, "times": 0}),
    )
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict[str, Exception | None]]:
    """All runs in one simulation of two nodes; how each ended."""
    root, ends = tmp_path_factory.mktemp("dropouts"), dict[str, Exception | None]()

    def body(grid):
        for name, (changes, failure) in RUNS.items():
            leaving_client_app.plan_file(root / name).write_text(json.dumps([failure]))
            try:
                serve(grid, {**SETTINGS, **changes, "run-dir": str(root / name)})
                ends[name] = None
            except Exception as error:
                ends[name] = error

    simulate(body, nodes=2, workers=2, app_of_nodes=leaving_client_app.app)
    return root, ends


def config(name: str, run_dir: Path) -> RunConfig:
    return RunConfig.parse({**SETTINGS, **RUNS[name][0], "run-dir": str(run_dir)})


def states(run_dir: Path, server_round: int) -> dict[str, str]:
    """The nodes' states in a round's last attempt, by their clients."""
    rows = [row for row in RunDirectory(run_dir).nodes() if row.round == server_round]
    return {" ".join(map(str, row.clients)): f"{row.state} {row.steps}" for row in rows}


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith(("leaves", "sfl"))])
def test_the_others_go_on_in_the_same_step_and_it_is_back_in_the_next_round(runs, name: str) -> None:
    root, ends = runs
    assert ends[name] is None
    *_, expected = plain_rounds(config(name, root / "unused"), {2: {2: 1, 3: 1}})
    weights = final_weights(root / name)
    if name.startswith("sfl"):  # its clients share one segment, which is the server's to have
        last = RunDirectory(root / name).latest_checkpoint()
        weights = {"server": weights["server"], "client-0": last.shared_weights()}
        expected = {part: expected[part] for part in weights}
    assert largest_difference(weights, expected) < 1e-9
    assert states(root / name, 2) == {"0 1": "finished 3", "2 3": "dropped 1"}
    assert states(root / name, 3) == {"0 1": "finished 3", "2 3": "finished 3"}
    summary = json.loads((root / name / "summary.json").read_text())
    assert (summary["departures"], summary["departed_nodes"]) == (1, 1)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("undisturbed")])
def test_a_run_in_which_nobody_leaves_is_not_changed_by_what_it_would_bear(runs, name: str) -> None:
    root, ends = runs
    assert ends[name] is None
    strict = config(name, root / f"{name}-strict").replace(min_clients=0, evaluate="server")
    inprocess.run(strict, 2)
    last = {run: RunDirectory(root / run).latest_checkpoint() for run in (name, f"{name}-strict")}
    shared = [{"client-0": checkpoint.shared_weights()} for checkpoint in last.values()]
    assert largest_difference(*shared) < 1e-9
    server = [{"server": final_weights(root / run)["server"]} for run in last]
    assert largest_difference(*server) < 1e-9


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("retried")])
def test_a_round_that_is_trained_again_leaves_no_trace_in_the_weights(runs, name: str) -> None:
    root, ends = runs
    assert ends[name] is None
    undisturbed = config(name, root / f"{name}-undisturbed")
    inprocess.run(undisturbed, 2)
    expected = final_weights(root / f"{name}-undisturbed")
    assert largest_difference(final_weights(root / name), expected) < 1e-9
    rows = [row for row in RunDirectory(root / name).nodes() if row.round == 2]
    ends = {attempt: sorted(row.state for row in rows if row.attempt == attempt) for attempt in (1, 2, 3)}
    assert ends == {1: ["dropped", "given up"], 2: ["dropped", "given up"], 3: ["finished", "finished"]}
    assert "the device is out of memory" in (root / name / "nodes.csv").read_text()


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith(("given-up", "at-once"))])
def test_without_enough_clients_the_run_ends_with_its_last_checkpoint(runs, name: str) -> None:
    root, ends = runs
    error = str(ends[name])
    if name.startswith("given-up"):
        assert isinstance(ends[name], TooFewClients)
        assert "round 2: 2 of its 4 client(s) are there and it needs 4 (min-clients)" in error
        assert error.endswith("(attempt 2 of 2)")
    assert "the device is out of memory" in error
    last = RunDirectory(root / name).latest_checkpoint()
    assert last is not None
    assert last.server_round == 1
    status = json.loads((root / name / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", error)


def test_the_run_that_was_given_up_is_resumed_to_the_weights_of_an_undisturbed_one(runs) -> None:
    root, _ = runs
    name = next(name for name in RUNS if name.startswith("given-up"))
    leaving_client_app.plan_file(root / name).write_text("[]")
    simulate(
        lambda grid: serve(grid, config(name, root / name).replace(resume=True).values()),
        nodes=2,
        workers=2,
        app_of_nodes=leaving_client_app.app,
    )
    undisturbed = config(name, root / "undisturbed")
    inprocess.run(undisturbed, 2)
    assert largest_difference(final_weights(root / name), final_weights(root / "undisturbed")) < 1e-9
