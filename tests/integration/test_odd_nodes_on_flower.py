"""Nodes of a real Flower simulation that answer what they should not: one of each kind of `flower.test_odd_nodes`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from flower.test_odd_nodes import CASES, SETTINGS, TOLERANT
from integration import odd_client_app
from integration.simulation import simulate

from sglr_flower.errors import UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.flower.server import serve
from sglr_flower.run.rundir import RunDirectory

pytestmark = pytest.mark.flower

KINDS = (
    "hello without a partition",
    "hello of a wrong type",
    "sizes of others",
    "metrics of others",
    "average not finite",
    "evaluated others",
)
STRICT = ("hello of a wrong type", "sizes of others", "metrics of others")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Exception | None]]:
    """All of them in one simulation of two nodes; how each ended."""
    root, ends = tmp_path_factory.mktemp("odd"), dict[str, Exception | None]()
    case = root / "case"

    def body(grid):
        for name, tolerance in [*((kind, TOLERANT) for kind in KINDS), *((kind, {}) for kind in STRICT)]:
            run = f"{'tolerant' if tolerance else 'strict'}-{name}"
            case.write_text(name)
            values = {**SETTINGS, **CASES[name][3], **tolerance, "num-server-rounds": 1, "exchange": "stream"}
            try:
                serve(grid, {**values, "start-timeout": 5.0, "run-dir": str(root / run)})
                ends[run] = None
            except Exception as error:
                ends[run] = error

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, odd_client_app.CASE, str(case))
        simulate(body, nodes=2, workers=2, app_of_nodes=odd_client_app.app)
    return root, ends


@pytest.mark.parametrize("name", KINDS)
def test_a_tolerant_run_goes_on_without_the_node_and_says_why(runs, name: str) -> None:
    root, ends = runs
    assert ends[f"tolerant-{name}"] is None
    directory = RunDirectory(root / f"tolerant-{name}")
    rows = {row.clients: row for row in directory.nodes()}
    assert rows[0, 1].state == "finished"
    if CASES[name][0].startswith("evaluate"):  # it leaves after the round
        assert rows[2, 3].state == "finished"
        scores = json.loads((directory.path / "summary.json").read_text())
        assert scores["test_accuracy_mean"] is not None
    else:
        assert rows[2, 3].state in ("dropped", "away")
        assert CASES[name][2] in rows[2, 3].reason


@pytest.mark.parametrize("name", STRICT)
def test_a_strict_run_ends_with_the_sentence(runs, name: str) -> None:
    root, ends = runs
    error = ends[f"strict-{name}"]
    assert isinstance(error, UserError | ExchangeError)
    assert CASES[name][2] in str(error)
    status = json.loads((root / f"strict-{name}" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", str(error))
