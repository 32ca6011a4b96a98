"""The record of a run's nodes: ``nodes.csv``, what a resumed run keeps of it, and who left how often."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from sglr_flower.run.metrics import History, RoundMetrics, columns
from sglr_flower.run.nodetable import (
    LONGEST_TEXT,
    NODE_COLUMNS,
    NodeRow,
    NodeState,
    departures,
    from_csv,
    printable,
    to_csv,
)
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.summary import Departures
from sglr_flower.split.score import ACCURACY

FINISHED = NodeRow(1, 1, 7, "attic", (0, 1, 2), "finished", 40, 0.0125, 1000, 900)
DROPPED = NodeRow(1, 1, 2**63 + 1, "cellar", (3,), "dropped", 12, None, 300, 200, 'no frame within 3 s, "it said"')


def row(number: int, *, node: int = 7, name: str = "", attempt: int = 1, state: NodeState = "finished") -> NodeRow:
    return replace(FINISHED, round=number, node=node, name=name, attempt=attempt, state=state)


def metrics(number: int) -> RoundMetrics:
    return RoundMetrics(number, 4, 2, 0.5, 0.01, 0.02, *[None] * 6, 0, 1.0, 0.25, 10, 20, 0)


def test_rows_come_back_from_csv_as_they_were() -> None:
    assert from_csv(to_csv([FINISHED, DROPPED], header=True)) == [FINISHED, DROPPED]


def test_the_columns_are_those_that_are_documented() -> None:
    lines = to_csv([FINISHED], header=True).splitlines()
    assert lines[0] == "round,attempt,node,name,clients,state,steps,latency_median,bytes_up,bytes_down,reason"
    assert lines[1] == "1,1,7,attic,0 1 2,finished,40,0.0125,1000,900,"


@pytest.mark.parametrize(
    "damaged",
    ["1,1,7,attic,0 1 2,fini", "1,1,7,attic,0 1 2,gone,40,,1,1,", "x,1,7,attic,0,finished,4,,1,1,", "\0\0\0"],
)
def test_a_damaged_row_is_left_out(damaged: str) -> None:
    assert from_csv(to_csv([FINISHED], header=True) + damaged) == [FINISHED]


def test_a_nodes_words_cannot_move_the_cursor_or_fill_the_disk() -> None:
    bad = replace(DROPPED, name="a\x1b[2Jb\r\n\u202ec", reason="x" * 10_000)
    (back,) = from_csv(to_csv([bad], header=True))
    assert back.name == "a[2Jb c"
    assert len(back.reason) == LONGEST_TEXT
    assert printable("  two\n\twords ") == "two words"


def test_a_run_directory_adds_rows_below_one_header(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.nodes() == []
    directory.record_nodes([FINISHED])
    directory.record_nodes([DROPPED])
    assert directory.nodes() == [FINISHED, DROPPED]
    with (tmp_path / "nodes.csv").open(newline="") as file:
        assert [tuple(line) for line in csv.reader(file)].count(NODE_COLUMNS) == 1


def test_a_resumed_run_keeps_the_rows_of_its_history_only(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.record_nodes([row(1, attempt=1, state="dropped"), row(1, attempt=2), row(2), row(3)])
    with (tmp_path / "nodes.csv").open("a") as file:
        file.write("4,1,7,att")  # killed while it wrote
    directory.begin(History([metrics(1), metrics(2)]))
    directory.record_nodes([row(3, state="away")])
    assert [(kept.round, kept.attempt, kept.state) for kept in directory.nodes()] == [
        (1, 1, "dropped"),
        (1, 2, "finished"),
        (2, 1, "finished"),
        (3, 1, "away"),
    ]


def test_a_run_without_nodes_writes_no_table_of_them(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(History([metrics(1)]))
    assert not (tmp_path / "nodes.csv").exists()


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("finished finished", (0, 0)),
        ("finished dropped finished", (1, 1)),
        ("dropped away away finished", (1, 1)),  # it left once, and stayed away
        ("finished away finished away", (2, 1)),
        ("dropped dropped", (2, 1)),  # it was back for the second
        ("away away", (1, 1)),
    ],
)
def test_a_departure_is_counted_once_however_long_it_lasts(states: str, expected: tuple[int, int]) -> None:
    rows = [row(number, state=state) for number, state in enumerate(states.split(), 1)]  # type: ignore[arg-type]
    assert departures(rows) == Departures(*expected)


def test_a_named_node_that_comes_back_with_another_id_is_the_same_node() -> None:
    rows = [row(1, node=5, name="attic", state="dropped"), row(2, node=6, name="attic", state="dropped")]
    assert departures(rows) == Departures(2, 1)
    unnamed = [replace(entry, name="") for entry in rows]
    assert departures(unnamed) == Departures(2, 2)


def test_the_history_of_an_older_version_reads_as_undisturbed_rounds() -> None:
    saved = History([metrics(1)]).to_json()
    for column in ("nodes", "dropped_clients", "attempts"):
        del saved["rows"][0][column]
    (back,) = History.from_json(saved).rows
    assert (back.nodes, back.dropped_clients, back.attempts) == (0, 0, 1)


def test_a_round_says_how_many_nodes_and_attempts_it_took(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(History([replace(metrics(1), nodes=3, dropped_clients=2, attempts=2)]))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (recorded,) = csv.DictReader(file)
    assert tuple(recorded) == columns(ACCURACY)
    assert [recorded[column] for column in ("nodes", "dropped_clients", "attempts")] == ["3", "2", "2"]
