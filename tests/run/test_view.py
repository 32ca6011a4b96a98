"""What a person sees of a run: the table of its nodes, who left, the closing table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.table import Table

from sglr_flower.run.nodetable import NodeEntry
from sglr_flower.run.summary import Summary
from sglr_flower.run.view import MOST_NODES, ProgressView, closing_table, node_table


def entry(node: int, state: str = "training", **changes: Any) -> NodeEntry:
    values = {"name": "", "clients": str(node), "step": 5, "latency": 0.0125, "bytes_up": 2000, "bytes_down": 1000}
    return NodeEntry(**{"node": node, "state": state, "reason": "", **values, **changes})  # type: ignore[typeddict-item]


def shown(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    console.print(renderable)
    return console.export_text()


class Run:
    """A run directory whose status a test writes, and what the view makes of it."""

    def __init__(self, folder: Path, *, terminal: bool) -> None:
        self.folder = folder
        self.output = io.StringIO()
        self.console = Console(width=100, file=self.output, force_terminal=terminal)
        self.view = ProgressView(folder, 9, self.console)

    def see(self, server_round: int, *nodes: NodeEntry) -> None:
        status = {"state": "training", "round": server_round, "rounds_done": server_round - 1, "steps": 8}
        text = json.dumps({**status, "node_table": nodes} if nodes else status)
        (self.folder / "status.json").write_text(text)
        self.view.update()

    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()


def test_a_node_is_a_row_with_its_figures() -> None:
    text = shown(node_table([entry(3, name="attic", clients="0 1 2 5")]))
    heading, row = text.splitlines()
    assert heading.split() == ["node", "clients", "state", "step", "latency", "up", "down"]
    assert row.split() == ["attic", "0-2", "5", "training", "5", "12.5", "ms", "2", "kB", "1", "kB"]


def test_a_node_before_its_first_frame_has_no_latency() -> None:
    assert " ms" not in shown(node_table([entry(3, latency=None)]))


def test_nodes_that_left_come_first_and_the_rest_are_counted() -> None:
    nodes = [entry(number, name=f"n{number}") for number in range(20)]
    nodes[17] = entry(17, "dropped", name="n17", reason="no frame within 3 s")
    nodes[18] = entry(18, "returning", name="n18")
    _, *rows, more, reason = shown(node_table(nodes)).splitlines()
    assert [row.split()[0] for row in rows[:3]] == ["n17", "n18", "n0"]
    assert len(rows) == MOST_NODES
    assert more.split() == ["and", "8", "more"]
    assert reason.strip() == "n17: no frame within 3 s"


def test_a_nodes_words_are_neither_markup_nor_orders_to_the_terminal() -> None:
    text = shown(node_table([entry(1, "dropped", name="[red]x", reason="a [bold]b\x1b[2Jc")]))
    assert "[red]x" in text
    assert "a [bold]b[2Jc" in text


@pytest.mark.parametrize("width", [80, 100])
def test_a_long_story_does_not_widen_the_table(width: int) -> None:
    busy = {"clients": "0 2 4 6 8 10 12 14", "step": 12345, "bytes_up": 123_456_789, "bytes_down": 123_456_789}
    text = shown(node_table([entry(2**64 - 1, "dropped", reason="word " * 40, **busy)]), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("word") == 40
    if width == 100:
        assert "node 18446744073709551615" in text


def test_a_terminal_shows_the_table_below_the_bar(tmp_path: Path) -> None:
    run = Run(tmp_path, terminal=True)
    with run.view:
        run.see(2, entry(1, "dropped", name="attic", reason="the connection ended"))
    text = run.output.getvalue()
    assert text.rindex("round 2/9") < text.rindex("attic")  # kept at the end, as a node is missing
    assert "is back" not in text


def test_the_table_goes_when_all_nodes_are_there_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, terminal=True)
    with run.view:
        run.see(2, entry(1, name="attic"))
    text = run.output.getvalue()
    assert text.rindex("round 2/9") > text.rfind("attic")


def test_a_run_without_a_table_of_nodes_has_the_bar_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, terminal=True)
    with run.view:
        run.see(2)
    assert "round 2/9" in run.output.getvalue()
    assert "latency" not in run.output.getvalue()


def test_a_pipe_gets_a_line_when_a_node_leaves_and_when_it_returns(tmp_path: Path) -> None:
    run = Run(tmp_path, terminal=False)
    here = entry(1, name="attic", clients="0 1 2")
    dropped = {**here, "state": "dropped", "reason": "no frame within 3 s"}
    with run.view:
        run.see(1, here, entry(2))
        assert run.lines() == []
        for _ in range(2):
            run.see(1, dropped, entry(2))
        asked = {**dropped, "state": "returning"}
        run.see(2, asked, entry(2, "away", step=0, reason="it does not answer"))
        run.see(3, here, entry(2, "away", step=0))
    assert [line for line in run.lines() if not line.startswith("round")] == [
        "attic (clients 0-2) left round 1 at step 5: no frame within 3 s",
        "node 2 (client 2) is not there: it does not answer",
        "attic (clients 0-2) is back in round 3",
    ]


def test_a_node_that_is_asked_back_at_once_is_seen_to_have_left(tmp_path: Path) -> None:
    run = Run(tmp_path, terminal=False)
    with run.view:
        run.see(1, entry(1))
        run.see(1, entry(1, "returning", reason="the connection ended"))
    assert run.lines() == ["node 1 (client 1) left round 1 at step 5: the connection ended"]


def test_places_that_no_node_has_come_to_are_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path, terminal=False)
    with run.view:
        run.see(1, *(entry(0, "away", clients=clients, step=0, reason="not yet") for clients in ("0 1", "2 3")))
    assert run.lines() == [f"no node yet (clients {clients}) is not there: not yet" for clients in ("0 1", "2 3")]


SUMMARY = {
    **dict.fromkeys(("method", "model", "dataset", "exchange"), "x"),
    **dict.fromkeys(("clients", "nodes", "rounds", "steps", "seconds", "bytes_up", "bytes_down"), 4),
    **dict.fromkeys(("test_accuracy_mean", "test_accuracy_std", "train_loss", "step_seconds_median"), 0.5),
    **dict.fromkeys(("last_round_test_accuracy_mean", "last_round_test_accuracy_std"), 0.5),
    **dict.fromkeys(("evaluation_bytes", "seed"), 0),
    "evaluated_images": 10,
}
"""As an earlier version wrote it."""


def closed(**changes: Any) -> Table:
    return closing_table(Summary.from_json({**SUMMARY, **changes}), Path("/run"))


def test_the_closing_table_says_what_the_bytes_were_and_nothing_of_what_there_was_none() -> None:
    parts = {"smashed": 2_000_000, "labels": 500, "unicast": 1_000_000, "broadcast": 500_000, "segments_up": 0}
    parts |= {"framing_up": 300, "framing_down": 200}
    text = shown(closed(**{f"bytes_{part}": n for part, n in parts.items()}))
    assert "smashed data 2 MB, own gradients 1 MB, averages 500 kB, labels 500 B, framing 500 B" in " ".join(
        text.replace("│", " ").split()
    )
    assert "segments" not in text
    assert "of that" not in shown(closed())  # of a version that did not count them


@pytest.mark.parametrize(
    ("departures", "nodes", "expected"),
    [(3, 2, "3 departures of 2 nodes, see nodes.csv"), (1, 1, "1 departure of 1 node, see nodes.csv"), (0, 0, "")],
)
def test_the_closing_table_says_how_many_nodes_left(departures: int, nodes: int, expected: str) -> None:
    old = shown(closed())
    text = shown(closed(departures=departures, departed_nodes=nodes))
    assert ("nodes that left" in text) == bool(expected)
    assert expected in text
    assert "nodes that left" not in old  # runs of versions that did not count


def test_the_closing_table_says_what_a_client_bore() -> None:
    sizes = {"activation": 1_500_000, "optimizer": 343_168, "weight": 173_584, "gradient": 171_584}
    client = {f"{name}_bytes": size for name, size in sizes.items()}
    client |= {"forward_flops": 9_134_080, "backward_flops": 18_046_976, "samples": 3600.0, "step_seconds": 0.0071}
    text = shown(closed(bytes_up=8_000_000, client=client), width=140)
    assert "9.13 MFLOP forward, 18 MFLOP backward per sample; 97.9 GFLOP in all" in text
    assert "2.188 MB: activations 1.5 MB, optimizer 343.2 kB, weights 173.6 kB, gradients 171.6 kB" in text
    assert "2 MB up, 1 B down; a step took it 7.1 ms" in text


def test_without_nodes_a_clients_step_has_no_time_and_an_older_run_none_of_it() -> None:
    text = shown(closed(client={"samples": 3.0, "step_seconds": None}))
    assert "its exchange" in text
    assert "a step took" not in text
    assert "a client computed" not in text
    assert "its exchange" not in shown(closed())


SAID = {"sentence": "mlflow: run 7 in sqlite:////srv/mlflow.db", "failed": False}
FAILED = {"sentence": "wandb is off: no [network]; the run goes on without it", "failed": True}


@pytest.mark.parametrize(("warnings", "expected"), [(True, [SAID, FAILED]), (False, [SAID])])
def test_what_trackers_say_is_a_line_said_once(tmp_path: Path, warnings: bool, expected: list[dict[str, Any]]) -> None:
    """Without warnings where the log, which has them too, is on the same terminal."""
    output = io.StringIO()
    view = ProgressView(tmp_path, 9, Console(width=40, file=output, force_terminal=False), warnings=warnings)
    for observers in ([], [SAID], [SAID, FAILED], [SAID, FAILED]):
        (tmp_path / "status.json").write_text(json.dumps({"state": "training", "observers": observers}))
        view.update()

    assert output.getvalue().splitlines() == [said["sentence"] for said in expected]


@pytest.mark.parametrize("terminal", [True, False])
def test_it_shows_for_whom_the_server_waits(tmp_path: Path, terminal: bool) -> None:
    run = Run(tmp_path, terminal=terminal)

    def see(waiting: str) -> None:
        (tmp_path / "status.json").write_text(json.dumps({"state": "starting", "waiting": waiting}))
        run.view.update()

    see("waiting for attic, 25 s left")
    see("waiting for attic, 25 s left")
    assert [line for line in run.lines() if "attic" in line] == ([] if terminal else ["waiting for attic, 25 s left"])
    assert ("waiting for attic" in shown(run.view._renderable())) == terminal
    see("")
    assert "attic" not in shown(run.view._renderable())


def test_what_the_check_has_said_is_not_said_again(tmp_path: Path) -> None:
    output = io.StringIO()
    view = ProgressView(tmp_path, 9, Console(file=output, width=80, force_terminal=False))
    view.warn(["its outputs are probabilities"])
    (tmp_path / "status.json").write_text(json.dumps({"warnings": ["its outputs are probabilities", "it diverges"]}))
    view.update()
    view.update()
    assert output.getvalue().splitlines() == ["warning: its outputs are probabilities", "warning: it diverges"]
