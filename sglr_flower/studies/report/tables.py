"""The report's tables and sentences as plain text cells, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from rich.filesize import decimal

from sglr_flower.run.units import flops
from sglr_flower.split.score import Score
from sglr_flower.split.sent import KINDS
from sglr_flower.studies.report.groups import SPEAKING, Estimate, Group, Report, printable, text
from sglr_flower.studies.report.runs import Run

NOTHING = "—"
"""A cell without a figure."""

SCORE_NOTE = "Test {score}: each client at its best validation round, on {count} test samples per client."
"""A note under the results."""


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes
    ----------
    header : tuple[str, ...]
        The columns' names; the first column says what a row is.
    rows : tuple[tuple[str, ...], ...]
        As wide as the header.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def title(report: Report) -> str:
    """The page's title."""
    config = report.runs[0].config
    where = "" if "dataset" in report.differing else f" on {config.dataset}"
    if not report.differing:
        return f"{config.method} with {config.model}{where}"
    if len(report.differing) > 3:
        return f"{len(report.runs)} runs compared{where}"
    values = dict.fromkeys(text(group.settings[report.differing[0]]) for group in report.groups)
    if report.differing[0] in SPEAKING and len(report.differing) == 1 and len(values) <= 4:
        return printable(f"{listing(values)}{where}")
    return f"Comparison by {listing(report.differing)}{where}"


def sentence(report: Report) -> str:
    """What was compared and what came out, in one sentence of plain text."""
    done = [group for group in report.groups if group.finished]
    open_runs = len(report.groups) - len(done)
    unfinished = f"; {_count(open_runs, 'run')} {'is' if open_runs == 1 else 'are'} unfinished" if open_runs else ""
    count = _count(len(report.runs), "run")
    if not done:
        return f"{count}, {'not' if len(report.runs) == 1 else 'none of them'} finished yet."
    best = done[0]
    score = report.score
    figure = f"{shown(score, best.score)} ({best.spread_meaning})"
    if len(report.groups) == 1:
        return f"{count}: test {score.words} {figure}."
    # Only a finished run has a test score, so with open runs the best is the best of those that are done.
    among = "" if len(done) == len(report.groups) else " of the finished"
    differ = f", which differ in {listing(report.differing)}" if report.differing else ""
    end = "highest" if score.higher_is_better else "lowest"
    return f"{count}{differ}; the {end} test {score.words}{among} is that of {best.name}: {figure}{unfinished}."


def results(report: Report) -> Table:
    """One row per group, best first."""
    header = (
        "runs",
        f"test {report.score.words}",
        "± is",
        "last round",
        "training loss",
        "steps",
        "bytes up",
        "bytes down",
        "median step",
        "seconds",
    )
    return Table(header, tuple(_result(group) for group in report.groups))


def sent(report: Report) -> Table:
    """What the bytes of the results were, and totals per client; a dash for what a run did not count."""
    rows = []
    for group in report.groups:
        sums = [statistics.fmean(_bytes(run, parts) for run in group.runs) for parts in KINDS.values()]
        cells = [decimal(round(size)) for size in sums] if any(sums) else [NOTHING] * len(sums)
        shares = [
            statistics.fmean(getattr(run, total) / run.config.num_clients for run in group.runs)
            for total in ("bytes_up", "bytes_down")
        ]
        rows.append((group.name, *cells, *(decimal(round(share)) for share in shares)))
    return Table(("runs", *KINDS, "up per client", "down per client"), tuple(rows))


def notes(report: Report) -> list[str]:
    """What a reader of the results has to know, a sentence each."""
    counted = sorted({row.evaluated_images for run in report.runs if (row := run.last_evaluated) is not None})
    sentences = []
    if counted:
        counts = " or ".join(f"{count:,}" for count in counted)
        sentences.append(SCORE_NOTE.format(score=report.score.words, count=counts))
    if any(len(group.runs) > 1 for group in report.groups):
        sentences.append(
            "With several seeds, figures are means over them, and ± is half the 95 % interval of that mean "
            "(Student's t); where such intervals overlap, the order may be chance."
        )
    if any(len(group.runs) == 1 for group in report.groups):
        sentences.append(
            "With one seed, ± is the standard deviation over the clients, which says nothing about other seeds."
        )
    return sentences + [f"{printable(str(run.path))}: {printable(own)}." for run in report.runs for own in run.warnings]


def clients(report: Report) -> Table | None:
    """What one client of each group bore; None where no run says so."""
    rows = tuple(row for group in report.groups if (row := _client(group)) is not None)
    header = (
        "one client of",
        "forward per sample",
        "backward per sample",
        "computed in all",
        "held in a step",
        "of it activations",
        "of it optimizer",
        "bytes up",
        "bytes down",
        "its time per step",
    )
    return Table(header, rows) if rows else None


CLIENTS_NOTE = (
    "Operations are those of convolutions, linear layers and attention, two for a multiply-add; memory is weights, "
    "gradients, optimizer and activations of one client; bytes are the run's divided by its clients; the time is a "
    "node's from an answer to its next frame divided by its clients, where nodes were timed. A forward that is made "
    "again, with `recompute` or over Flower's messages, is counted once, and activations as if they were kept."
)
"""A note under what one client bore."""


def differences(report: Report) -> Table | None:
    """The settings in which groups differ; None if there are none."""
    if not report.differing:
        return None
    rows = tuple(
        (group.name, *(printable(text(group.settings[key])) for key in report.differing)) for group in report.groups
    )
    return Table(("runs", *report.differing), rows)


def common(report: Report) -> Table:
    """The settings that all runs share."""
    return Table(("setting", "value"), tuple((key, printable(text(value))) for key, value in report.common.items()))


def runs(report: Report) -> Table:
    """Every run by itself."""
    rows = []
    for group in report.groups:
        for run in group.runs:
            done, rounds = len(run.rows), run.config.num_server_rounds
            state = "finished" if run.result else f"failed: {run.error}" if run.error else "unfinished"
            tested = run.result.totals if run.result and run.result.totals.scored else None
            mean = Estimate(tested.test_score_mean, tested.test_score_std) if tested else None
            nodes = f"{run.result.nodes}, {run.result.exchange}" if run.result else NOTHING
            cells = (
                str(run.path),
                group.name,
                str(run.config.seed),
                f"{done} of {rounds}",
                state,
                shown(run.score, mean),
            )
            rows.append(tuple(printable(cell) for cell in (*cells, nodes)))
    figure = f"test {report.score.words} (± std over clients)"
    header = ("run directory", "in", "seed", "rounds", "state", figure, "nodes, exchange")
    return Table(header, tuple(rows))


def to_markdown(report: Report) -> str:
    """The sentence, the results and the differing settings as Markdown that pastes into a README; no final newline."""
    parts = [_escaped(sentence(report)), _markdown(results(report)), "\n".join(notes(report))]
    for table, note in ((clients(report), CLIENTS_NOTE), (differences(report), "")):
        if table is not None:
            parts += [_markdown(table), *filter(None, [note])]
    return "\n\n".join(parts)


def shown(score: Score, estimate: Estimate | None) -> str:
    """A score with its spread, an accuracy in per cent; a dash if there is none yet."""
    return NOTHING if estimate is None else score.text(estimate.mean, estimate.spread)


def listing(words: Iterable[str]) -> str:
    """Words as a sentence lists them."""
    words = tuple(words)
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _result(group: Group) -> tuple[str, ...]:
    runs = group.runs
    if not any(run.rows for run in runs):
        return (group.name, *[NOTHING] * 9)
    step = statistics.fmean(run.step_seconds for run in runs)
    return (
        group.name,
        shown(runs[0].score, group.score) if group.finished else "unfinished",
        group.spread_meaning,
        shown(runs[0].score, group.last_score),
        _loss(group),
        f"{statistics.fmean(run.steps for run in runs):,.0f}",
        decimal(round(statistics.fmean(run.bytes_up for run in runs))),
        decimal(round(statistics.fmean(run.bytes_down for run in runs))),
        f"{1000 * step:.3g} ms" if step < 1 else f"{step:.3g} s",
        _seconds(statistics.fmean(run.seconds for run in runs)),
    )


def _client(group: Group) -> tuple[str, ...] | None:
    """A row of `clients`: counts are the same for all seeds, the rest is their mean."""
    found = [(run, run.result, run.result.client) for run in group.runs if run.result and run.result.client]
    if not found:
        return None
    counted = [NOTHING] * 6
    if (cost := found[0][2].cost) is not None:
        whole = statistics.fmean(cost.flops * own.samples for _, _, own in found)
        held = (cost.memory, cost.activation_bytes, cost.optimizer_bytes)
        counted = [flops(cost.forward_flops), flops(cost.backward_flops), flops(whole), *map(decimal, held)]
    times = [own.step_seconds for _, _, own in found if own.step_seconds is not None]
    return (
        group.name,
        *counted,
        decimal(round(statistics.fmean(run.bytes_up / result.clients for run, result, _ in found))),
        decimal(round(statistics.fmean(run.bytes_down / result.clients for run, result, _ in found))),
        f"{1000 * statistics.fmean(times):.3g} ms" if times else NOTHING,
    )


def _bytes(run: Run, parts: Iterable[str]) -> int:
    return sum(getattr(row, f"bytes_{part}") for row in run.rows for part in parts)


def _loss(group: Group) -> str:
    if group.diverged:
        # A mean over the others would hide what happened.
        return "diverged" if len(group.runs) == 1 else f"diverged in {group.diverged} of {len(group.runs)}"
    loss = statistics.fmean(run.rows[-1].train_loss for run in group.runs)
    return f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.3g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _markdown(table: Table) -> str:
    lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\|*_`[<":
        cell = cell.replace(mark, f"\\{mark}")
    return cell
