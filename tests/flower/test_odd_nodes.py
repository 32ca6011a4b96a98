"""Whatever a node answers, a tolerant run goes on without it and says why; a strict run ends with that sentence.

Whole runs over a grid in this process, with this package's own handlers on the nodes. The same over Flower's processes:
`tests/integration/test_odd_nodes_on_flower.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flower.fakegrid import Change, Clock, FakeGrid, devices
from flwr.app import ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from sglr_flower.errors import TooFewClients, UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.flower.protocol import ANSWER, ARRAYS, METRICS
from sglr_flower.flower.server import serve
from sglr_flower.flower.staterecords import STATES, pack_states
from sglr_flower.run.rundir import RunDirectory

SETTINGS: dict[str, Any] = {
    "model": "flower.smallnet:network",
    "num-clients": 4,
    "samples-per-client": 16,
    "num-server-rounds": 2,
    "evaluate-samples": 10,
    "evaluate-every": 0,
    "exchange": "grid",
    "start-timeout": 20.0,
}
TOLERANT = {"min-clients": 1, "round-retries": 1}


def field(key: str, value: object, record: str = ANSWER) -> Change:
    """A change of one value; None takes the key away."""

    def change(content: RecordDict) -> RecordDict:
        entries = dict(content[record])
        entries.pop(key, None)
        if value is not None:
            entries[key] = value
        kind = MetricRecord if record == METRICS else ConfigRecord
        return RecordDict({**content, record: kind(entries)})  # type: ignore[arg-type]

    return change


def last(change: Change) -> Change:
    """A change of a round's last answer: those before it have no metrics."""
    return lambda content: change(content) if METRICS in content else content


def without(record: str) -> Change:
    return lambda content: RecordDict({name: value for name, value in content.items() if name != record})


def adding(record: str, make: Callable[[], Any]) -> Change:
    return lambda content: RecordDict({**content, record: make()})


def spoilt_average(content: RecordDict) -> RecordDict:
    if ARRAYS not in content:
        return content
    tensors = content[ARRAYS].to_torch_state_dict()
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    return RecordDict({**content, ARRAYS: ArrayRecord({**tensors, first: tensors[first] * torch.nan})})


def strange_state() -> ConfigRecord:
    return pack_states({0: {"segment.other": torch.zeros(3)}})


HELLO, ASSIGN = "its answer to query.hello", "its answer to query.assign"
TRAINED, LOCAL = "its metrics of the round", {"method": "fedavg"}
CASES: dict[str, tuple[str, Change, str, dict[str, Any]]] = {
    "hello without a partition": ("query.hello", field("partition-id", None), f"{HELLO}: partition-id is missing", {}),
    "hello of a wrong type": (
        "query.hello",
        field("partition-id", "one"),
        f"{HELLO}: partition-id = 'one': it should be a valid integer",
        {},
    ),
    "hello with a bool": ("query.hello", field("capacity", True), f"{HELLO}: capacity = True: it should be", {}),
    "hello with too many": ("query.hello", field("num-partitions", 10**9), "less than 100000", {}),
    "hello with more": ("query.hello", field("colour", "red"), f"{HELLO}: unknown key 'colour'; its keys are", {}),
    "hello of nothing": ("query.hello", without(ANSWER), "its reply is not one of this app's", {}),
    "hello with a long name": ("query.hello", field("name", "x" * 5000), "at most 1000 characters", {}),
    "sizes of others": ("query.assign", field("sizes", [16, 16, 16]), f"{ASSIGN}: sizes = (16, 16, 16): it should", {}),
    "sizes of nobody": ("query.assign", field("sizes", []), f"{ASSIGN}: sizes = (): it should have 2 item(s)", {}),
    "no images": ("query.assign", field("sizes", [16, 0]), f"{ASSIGN}: sizes[1] = 0: it should be greater", {}),
    "sizes are text": ("query.assign", field("sizes", "16 16"), f"{ASSIGN}: sizes = '16 16': it should be a list", {}),
    "versions missing": ("query.assign", field("versions", None), f"{ASSIGN}: versions is missing", {}),
    "versions to come": ("query.assign", field("versions", [0, 7]), f"{ASSIGN}: versions = (0, 7): it should", {}),
    "other classes": ("query.assign", field("classes", ["cat", "dog"]), "has the classes ('cat', 'dog'), and", {}),
    "metrics missing": ("train.grid", last(without(METRICS)), f"{TRAINED}: there should be one record 'metrics'", {}),
    "metrics of others": ("train.grid", last(field("num-clients", 9, METRICS)), "num-clients = 9: it should be 2", {}),
    "metrics of floats": ("train.grid", last(field("num-clients", 2.5, METRICS)), "num-clients = 2.5: it should", {}),
    "metrics of lists": ("train.grid", last(field("num-examples", [1], METRICS)), "num-examples = [1]: it", {}),
    "two metrics": ("train.grid", last(adding("more", MetricRecord)), "there should be one record 'metrics'", {}),
    "an average unasked for": (
        "train.grid",
        last(adding(ARRAYS, lambda: ArrayRecord({"w": torch.ones(2)}))),
        "an average of its clients' segments",
        {},
    ),
    "no average": ("train.grid", last(without(ARRAYS)), "no average of its clients' segments", {"method": "sfl"}),
    "average not finite": ("train.grid", spoilt_average, "the average is not finite", {"method": "sfl"}),
    "average of more": (
        "train.grid",
        last(field("num-examples", 1000, METRICS)),
        "num-examples = 1000: it should be 32",
        {"method": "sfl"},
    ),
    "loss not finite": ("train.local", field("local-loss", float("nan"), METRICS), "local-loss = nan: it", LOCAL),
    "samples of others": (
        "train.local",
        field("local-samples", 10**9, METRICS),
        "local-samples = 1000000000: it should be 32",
        LOCAL,
    ),
    "local metrics missing": ("train.local", field("local-steps", None, METRICS), "local-steps is missing", LOCAL),
    "states of another model": (
        "query.collect",
        adding(STATES, strange_state),
        "states of the clients (0,), not of (2, 3)",
        {},
    ),
    "states are no bytes": ("query.collect", adding(STATES, lambda: ConfigRecord({"tensors": 3})), "no bytes", {}),
    "states are rubbish": (
        "query.collect",
        adding(STATES, lambda: ConfigRecord({"tensors": b"rubbish"})),
        "clients' states that cannot be read",
        {},
    ),
    "evaluated others": (
        "evaluate.grid",
        last(field("num-clients", 3, METRICS)),
        "its metrics of the evaluation: num-clients = 3: it should be 2",
        {"evaluate": "client", "evaluate-every": 1},
    ),
    "refusal of a number": ("query.assign", field("error", 5), "its refusal: unknown key", {}),
    "an error of Flower's": ("train.grid", lambda content: Error(2, "out of\nmemory"), "memory", {}),
}


def run(root: Path, case: str, **tolerance: int) -> FakeGrid:
    """A run on two nodes, of which the one with clients 2 and 3 answers oddly."""
    kind, change, _, settings = CASES[case]
    made = devices(root)
    made[0].changes[kind] = change
    grid = FakeGrid(made)
    serve(grid, {**SETTINGS, **settings, **tolerance, "run-dir": str(root / "run")})  # type: ignore[arg-type]
    return grid


@pytest.mark.parametrize("case", CASES)
def test_a_tolerant_run_goes_on_without_the_node_and_says_why(
    case: str, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    grid = run(tmp_path, case, **TOLERANT)
    directory = RunDirectory(tmp_path / "run")
    assert directory.latest_checkpoint().server_round == 2
    kind, _, sentence, _ = CASES[case]
    assert sentence in caplog.text
    rows = [row for row in directory.nodes() if row.clients == (2, 3)]
    reasons = [row.reason for row in rows if row.state in ("dropped", "away")]
    if not kind.startswith(("query.collect", "evaluate")):  # there it leaves after the round's row
        assert reasons
        assert any(sentence in reason for reason in reasons), reasons
    others = [row.state for row in directory.nodes() if row.clients == (0, 1)]
    assert others == ["finished", "finished"]
    # It is asked again, but not in a tight loop.
    elapsed = clock.now - 1000
    assert grid.asked[11, "query.hello"] + grid.asked[11, "query.assign"] <= 6 + elapsed / 10


@pytest.mark.parametrize("case", CASES)
def test_a_strict_run_ends_with_the_sentence(case: str, tmp_path: Path, clock: Clock) -> None:
    with pytest.raises((UserError, ExchangeError)) as raised:
        run(tmp_path, case)
    assert CASES[case][2] in str(raised.value)
    assert "\n" not in str(raised.value)
    assert clock.now < 1100


def test_a_run_whose_only_node_answers_oddly_says_so_when_it_gives_up(tmp_path: Path, clock: Clock) -> None:
    made = devices(tmp_path, 1)
    made[0].changes["query.hello"] = field("threads", -1)
    grid = FakeGrid(made)
    with pytest.raises(ExchangeError, match=r"missing after 20 s .*: 1 of 1 node\(s\); node 11: its answer"):
        serve(grid, {**SETTINGS, **TOLERANT, "run-dir": str(tmp_path / "run")})  # type: ignore[arg-type]
    assert grid.asked[11, "query.hello"] == 2  # every 15 s


def test_too_few_clients_end_the_run_in_the_nodes_words(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(TooFewClients, match=r"2 of its 4 client\(s\) are there and it needs 3 .*num-clients = 9"):
        run(tmp_path, "metrics of others", **{"min-clients": 3})
