"""Answers and orders mutated by the thousand: each is read as a value or refused in one sentence, and a run stays up.

The sister of `tests/exchange/test_fuzz.py`, for what travels beside the frames; ``SGLR_FUZZ_INPUTS`` as there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower.fakegrid import Clock, FakeGrid, devices
from flower.test_odd_nodes import SETTINGS, TOLERANT
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sglr_flower.flower.protocol import (
    ANSWER,
    ARRAYS,
    METRICS,
    Access,
    AssignAnswer,
    AssignOrder,
    CollectOrder,
    Done,
    EvaluateMetrics,
    EvaluateOrder,
    HelloAnswer,
    HelloOrder,
    LocalMetrics,
    ProtocolError,
    Refusal,
    TrainMetrics,
    TrainOrder,
    Value,
)
from sglr_flower.flower.server import serve
from sglr_flower.flower.staterecords import STATES
from sglr_flower.run.rundir import RunDirectory

INPUTS = int(os.environ.get("SGLR_FUZZ_INPUTS", "3000"))
PACE = settings(
    deadline=None,
    database=None,
    derandomize="SGLR_FUZZ_INPUTS" not in os.environ,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
RIGHT: list[Value] = [
    HelloOrder(threads=2, address="127.0.0.1:9", secret="ab", tls=True, memory=b"xy"),
    AssignOrder(2, clients=(0, 3), run_id="0" * 32, session=7, versions=(1, 0), checkpoints=(1,), sent=(1, 0)),
    CollectOrder(2, checkpoint=True, versions=(1, 0)),
    TrainOrder(2, round=3, attempt=1, clients=(0,), versions=(1, 0), checkpoints=()),
    EvaluateOrder(2, round=3, versions=(1, 0)),
    Access(address="127.0.0.1:9", tls=False, secret="ab", memory=False),
    HelloAnswer("attic", 0, 2, 0, threads=2, gpus=("host/0",), device="cpu", blocked="", memory=""),
    AssignAnswer(versions=(1, 0), sizes=(16, 20), classes=("cat", "dog")),
    Done(),
    Refusal("batch-size = 0"),
    EvaluateMetrics(2),
    TrainMetrics(2, 32),
    LocalMetrics(2, 32, local_steps=4, local_samples=32, local_loss=0.5, local_step_seconds_median=0.1),
]
INTEGERS = st.integers() | st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30])
FLOATS = st.floats() | st.sampled_from([float("nan"), float("inf"), -0.0, 1e308])
TEXTS = st.text(max_size=20) | st.sampled_from(["", "x" * 5000, "\x1b[2J", "\n", "1"])
BYTES = st.binary(max_size=20)
SCALARS = [INTEGERS, FLOATS, TEXTS, BYTES, st.booleans()]
VALUES = st.one_of(*SCALARS, *(st.lists(kind, max_size=4) for kind in SCALARS), st.lists(st.integers(0, 3)))
NUMBERS = st.one_of(INTEGERS, FLOATS, st.lists(INTEGERS, max_size=4), st.lists(FLOATS, max_size=4))


def mutated(draw: st.DataObject, entries: dict[str, Any], values: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Entries of which one or two are changed, taken away or added."""
    entries = dict(entries)
    for _ in range(draw.draw(st.integers(1, 2))):
        key = draw.draw(st.sampled_from([*entries, "error", "partition_id", "clients"]) | st.text(max_size=5))
        if draw.draw(st.integers(0, 3)):
            entries[key] = draw.draw(values)
        else:
            entries.pop(key, None)
    return entries


@pytest.mark.parametrize("right", RIGHT, ids=lambda right: type(right).__name__)
def test_a_record_is_read_or_refused_in_a_sentence(right: Value) -> None:
    kind = type(right)
    assert kind.from_record(right.to_record()) == right

    @settings(PACE, max_examples=max(50, INPUTS // 20))
    @given(st.data())
    def drive(draw: st.DataObject) -> None:
        entries = mutated(draw, dict(right.to_record()), VALUES)
        try:
            value = kind.from_record(entries)
        except ProtocolError as error:
            sentence = str(error)
        else:
            again = dict(value.to_record())
            assert again == entries
            assert all(type(again[key]) in (type(entries[key]), float) for key in again)
            return
        assert sentence.isprintable()
        assert sentence.startswith(kind.WHAT)
        assert len(sentence) < 1000

    drive()


def other_arrays(draw: st.DataObject) -> ArrayRecord:
    name = draw.draw(st.sampled_from(["0.weight", "1.weight", "w"]))
    data = draw.draw(BYTES)
    good = Array(np.full(draw.draw(st.sampled_from([(), (3,), (4, 3, 1, 1)])), np.nan))
    return ArrayRecord({name: draw.draw(st.sampled_from([good, Array("float32", (2,), "numpy.ndarray", data)]))})


def mutated_content(draw: st.DataObject, content: RecordDict) -> RecordDict:
    """An answer with something changed in one of its records, or a record too few or too many."""
    name = draw.draw(st.sampled_from([*content, STATES, ARRAYS, METRICS, ANSWER]))
    records = dict(content.items())
    what = draw.draw(st.sampled_from(["entries", "entries", "entries", "gone", "arrays", "other kind"]))
    if what == "gone":
        records.pop(name, None)
    elif what == "arrays":
        records[draw.draw(st.sampled_from([ARRAYS, name, "more"]))] = other_arrays(draw)
    elif what == "other kind":
        records[name] = draw.draw(st.sampled_from([ConfigRecord(), MetricRecord(), ArrayRecord()]))
    elif isinstance(record := records.get(name, ConfigRecord()), ConfigRecord):
        records[name] = ConfigRecord(mutated(draw, dict(record), VALUES))
    elif isinstance(record, MetricRecord):
        records[name] = MetricRecord(mutated(draw, dict(record), NUMBERS))
    else:
        records[name] = other_arrays(draw)
    return RecordDict(records)


@pytest.mark.timeout(120 + INPUTS // 20)
def test_a_tolerant_run_stays_up(clock: Clock) -> None:
    methods = {
        "sglr": ["query.hello", "query.assign", "train.grid", "query.collect"],
        "sfl": ["train.grid"],
        "fedavg": ["train.local"],
        "psl": ["evaluate.grid"],
    }

    @settings(PACE, max_examples=max(25, INPUTS // 120))
    @given(st.data())
    def drive(draw: st.DataObject) -> None:
        method = draw.draw(st.sampled_from(["sglr", *methods]))
        kind = draw.draw(st.sampled_from(methods[method]))
        evaluate = {"evaluate": "client", "evaluate-every": 1} if kind == "evaluate.grid" else {}
        with tempfile.TemporaryDirectory() as folder:
            made = devices(Path(folder))
            made[0].changes[kind] = lambda content: mutated_content(draw, content)
            run_dir = Path(folder) / "run"
            chosen = {**SETTINGS, **TOLERANT, **evaluate, "method": method, "num-server-rounds": 1}
            serve(FakeGrid(made), {**chosen, "run-dir": str(run_dir)})  # type: ignore[arg-type]
            assert RunDirectory(run_dir).latest_checkpoint() is not None

    drive()
