"""What a person sees of a run on the terminal: live progress, and the closing table. Reads the run directory only."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sglr_flower.run.nodetable import GONE, NodeEntry, printable
from sglr_flower.run.rundir import read_json
from sglr_flower.run.summary import Client, Departures, Spent, Summary, Totals
from sglr_flower.run.units import flops
from sglr_flower.split.score import Score
from sglr_flower.split.sent import KINDS

MOST_NODES = 12
"""Rows of the table of nodes: what fits on a terminal below the bar."""

_SHORTEST = 0.5
"""Seconds of which a pace is told: of a moment it is any number."""
_DIVERGED = "not a number: it diverged"
_MISSING = (*GONE, "returning")
_STYLES = {"dropped": "red", "away": "red", "returning": "yellow", "finished": "green"}


class ProgressView:
    """Live progress of a run, and of its nodes where it has any.

    On a terminal a bar above a table of the nodes; where the output is a file or a pipe, a line per round, and one
    whenever a node leaves or returns.

    Parameters
    ----------
    run_dir : Path
        Its ``status.json`` is read at every `update`.
    rounds : int
        Rounds of the whole run.
    console : Console
        Where to draw.
    warnings : bool
        Whether to show what the run's log warns of; not where the log itself is on the terminal.
    """

    def __init__(self, run_dir: Path, rounds: int, console: Console, *, warnings: bool = True) -> None:
        self._status_file = run_dir / "status.json"
        self._rounds, self._console = rounds, console
        self._first_round: int | None = None
        self._started = time.monotonic()
        self._shown = -1
        self._announced = self._waiting = ""
        self._warnings, self._said = warnings, 0
        self._warned: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("starting Flower", total=rounds, figures="")
        self._nodes: Sequence[NodeEntry] = ()
        self._gone: set[str] = set()
        self._live = Live(console=console, get_renderable=self._renderable)

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not any(entry["state"] in _MISSING for entry in self._nodes):
            self._nodes = ()  # all is well, and the closing table says the rest
        if self._console.is_terminal:
            self._live.stop()

    def _renderable(self) -> RenderableType:
        below = [node_table(self._nodes)] if self._nodes else []
        below += [Text(printable(self._waiting))] if self._waiting and self._console.is_terminal else []
        return Group(self._progress, *below) if below else self._progress

    def update(self) -> None:
        """Show how far the run is now."""
        status = read_json(self._status_file)
        if not status:
            return
        if "exchange" in status and not self._announced:
            self._announced = f"{status['nodes']} node(s), exchange: {status['exchange']}"
            self._console.print(f"training on {self._announced}")
        self._say_what_observers_say(status.get("observers", []))
        self.warn(status.get("warnings", []))
        done = int(status.get("rounds_done", status.get("round", 1) - 1))
        steps = int(status.get("steps", 0))
        part = int(status.get("step", 0)) / steps if steps and status.get("round", 0) > done else 0.0
        if self._first_round is None and "round" in status:
            self._first_round, self._started = int(status["round"]), time.monotonic()
        figures = self._figures(status, done + part)
        description = f"round {status.get('round', 1)}/{self._rounds}" if "round" in status else "starting the nodes"
        self._say_who_is_awaited(status.get("waiting", ""))
        self._progress.update(self._task, completed=done + part, description=description, figures=figures)
        self._nodes = cast("list[NodeEntry]", status.get("node_table", []))
        if not self._console.is_terminal:
            self._say_who_left(int(status.get("round", 1)))
        if not self._console.is_terminal and done != self._shown and done > 0 and figures:  # none right after a resume
            self._console.print(f"round {done}/{self._rounds}: {figures}", highlight=False, soft_wrap=True)
        self._shown = done

    def _say_what_observers_say(self, sayings: Sequence[Mapping[str, Any]]) -> None:
        """A line for each sentence since the last look, from TensorBoard or a tracker."""
        for saying in sayings[self._said :]:
            if self._warnings or not saying["failed"]:
                style = "yellow" if saying["failed"] else ""
                self._console.print(saying["sentence"], style=style, markup=False, highlight=False, soft_wrap=True)
        self._said = len(sayings)

    def warn(self, sentences: Sequence[str]) -> None:
        """A line for each thing that goes wrong and has not been said."""
        for sentence in sentences if self._warnings else ():
            if sentence not in self._warned:
                said = f"warning: {sentence}"
                self._console.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
        self._warned.update(sentences)

    def _say_who_is_awaited(self, line: str) -> None:
        """Whom the server waits for: below the bar, or as a line where there is none."""
        if line and line != self._waiting and not self._console.is_terminal:
            self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        self._waiting = line

    def _say_who_left(self, server_round: int) -> None:
        """A line for each node that left or returned since the last look."""
        for entry in self._nodes:
            node, several = entry["name"] or str(entry["node"] or entry["clients"]), "s" * (" " in entry["clients"])
            who = f"{_name(entry)} (client{several} {_ranges(entry['clients'])})"
            if entry["state"] in _MISSING and node not in self._gone:
                self._gone.add(node)
                left = entry["state"] == "dropped" or entry["step"] > 0
                where = f"left round {server_round} at step {entry['step']}" if left else "is not there"
                line = f"{who} {where}: {printable(entry['reason'])}"
            elif entry["state"] not in _MISSING and node in self._gone:
                self._gone.remove(node)
                line = f"{who} is back in round {server_round}"
            else:
                continue
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _figures(self, status: dict[str, Any], done: float) -> str:
        figures = []
        loss = status.get("train_loss", status.get("loss"))
        if loss is not None:
            figures.append(f"loss {loss:.4f}")
        score = Score.from_json(status)
        if score.name in status:
            evaluated = status["evaluated_round"]
            of = "" if evaluated == status["rounds_done"] else f" (round {evaluated})"
            figures.append(f"{score.words} {score.text(status[score.name])}{of}")
        elapsed = time.monotonic() - self._started
        fresh = done - (self._first_round - 1) if self._first_round is not None else 0.0
        if fresh > 0 and elapsed > _SHORTEST:
            figures.append(f"{fresh * int(status.get('steps', 0)) / elapsed:.1f} steps/s")
            figures.append(f"{_duration((self._rounds - done) * elapsed / fresh)} left")
        return ", ".join(figures)


def node_table(nodes: Sequence[NodeEntry]) -> RenderableType:
    """The nodes of a run under way: at most `MOST_NODES`, those that are not there first; below it why these left.

    Parameters
    ----------
    nodes : Sequence[NodeEntry]
        ``node_table`` of ``status.json``.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, width in (("node", 25), ("clients", 16), ("state", 9)):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=width)
    for heading in ("step", "latency", "up", "down"):
        table.add_column(heading, justify="right", no_wrap=True)
    reasons = []
    shown = sorted(nodes, key=lambda entry: entry["state"] not in _MISSING)  # stable: else as the server lists them
    for entry in shown[:MOST_NODES]:
        latency = "" if entry["latency"] is None else f"{1000 * entry['latency']:.4g} ms"
        state = Text(entry["state"], _STYLES.get(entry["state"], ""))
        traffic = (_bytes(entry["bytes_up"]), _bytes(entry["bytes_down"]))
        # As Text, so that no bracket in a node's words is taken for markup.
        table.add_row(Text(_name(entry)), _ranges(entry["clients"]), state, str(entry["step"]), latency, *traffic)
        if entry["reason"]:
            reasons.append(Text(f"{_name(entry)}: {printable(entry['reason'])}"))
    if len(shown) > MOST_NODES:
        table.add_row(Text(f"and {len(shown) - MOST_NODES} more", "dim"))
    return Group(table, *reasons)


def closing_table(summary: Summary, run_dir: Path) -> Table:
    """The table at the end of a run."""
    totals, one, score = summary.totals, summary.one_network, summary.totals.score
    table = Table(title=f"{summary.method} with {summary.model} on {summary.dataset}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    loss = f"{totals.train_loss:.4f}" if math.isfinite(totals.train_loss) else _DIVERGED
    of = "the network of all clients, at its" if one else "mean ± std over clients, each at its"
    tested = _score(score, totals.test_score_mean, totals.test_score_std, one)
    on = f" on {totals.evaluated_images or 0:,} samples ({of} best validation round)"
    last = _score(score, totals.last_round_test_score_mean, totals.last_round_test_score_std, one) + ", "
    if not totals.scored:
        tested, on, last = "none: no client has test samples", "", ""
    rows = {
        f"test {score.words}": tested + on,
        "last round": f"{last}training loss {loss}",
        "clients, nodes": f"{summary.clients} on {summary.nodes}, exchange: {summary.exchange}",
        "rounds, steps": f"{totals.rounds}, {totals.steps}",
        "time": f"{_duration(totals.seconds)}, median step {1000 * totals.step_seconds_median:.0f} ms",
        "exchanged": f"{_bytes(totals.bytes_up)} up, {_bytes(totals.bytes_down)} down",
    }
    if parts := _parts(totals):
        rows["of that"] = parts
    if summary.client is not None:
        rows |= _client(summary, summary.client)
    if summary.left is not None and summary.left.departures:
        rows["nodes that left"] = _departures(summary.left)
    if summary.spent is not None:
        rows["privacy"] = _privacy(summary.spent)
    if summary.warnings:
        rows["warnings"] = "\n".join(summary.warnings)
    rows["run directory"] = str(run_dir)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _client(summary: Summary, client: Client) -> dict[str, str]:
    """What one client bore."""
    rows = {}
    if (cost := client.cost) is not None:
        each = f"{flops(cost.forward_flops)} forward, {flops(cost.backward_flops)} backward per sample"
        rows["a client computed"] = f"{each}; {flops(cost.flops * client.samples)} in all"
        parts = {name: getattr(cost, f"{name}_bytes") for name in ("activation", "optimizer", "weight", "gradient")}
        listed = ", ".join(f"{name}s {_bytes(size)}".replace("optimizers", "optimizer") for name, size in parts.items())
        rows["it held"] = f"{_bytes(cost.memory)}: {listed}"
    step = "" if client.step_seconds is None else f"; a step took it {1000 * client.step_seconds:.3g} ms"
    rows["its exchange"] = f"{_bytes(summary.per_client('up'))} up, {_bytes(summary.per_client('down'))} down{step}"
    return rows


def _parts(totals: Totals) -> str:
    """What the bytes were, without what there was none of; the framing of both ways as one. Empty of an old run."""
    kinds = sorted(KINDS.items(), key=lambda kind: kind[0] in ("labels", "framing"))  # what Table 6 counts comes first
    sizes = {name: sum(getattr(totals, f"bytes_{part}") or 0 for part in parts) for name, parts in kinds}
    return ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items() if size)


def _privacy(spent: Spent) -> str:
    if spent.epsilon is None:
        return "no epsilon: its noise can be drawn again from noise-seed"
    ended = "; the budget allowed no further round" if spent.ended_by_privacy_budget else ""
    return f"epsilon {spent.epsilon:.4g} at delta {spent.delta:g}{ended}"


def _departures(left: Departures) -> str:
    times, nodes = left.departures, left.departed_nodes
    return f"{times} departure{'s' * (times > 1)} of {nodes} node{'s' * (nodes > 1)}, see nodes.csv"


def _name(entry: NodeEntry) -> str:
    return printable(entry["name"]) or (f"node {entry['node']}" if entry["node"] else "no node yet")


def _ranges(clients: str) -> str:
    """Ascending numbers, runs of them as FIRST-LAST: "0 1 2 3 7" is "0-3 7"."""
    numbers = [int(client) for client in clients.split()]
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs)


def _score(score: Score, mean: float, spread: float, one: bool) -> str:
    return score.text(mean, None if one else spread) if math.isfinite(mean) else _DIVERGED


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
