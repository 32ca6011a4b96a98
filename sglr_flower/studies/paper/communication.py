"""Table 6 and Figure 5: what training moves, by the paper's formulas and as short real runs count it."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sglr_flower.models.footprint import weight_bytes
from sglr_flower.run import assembly, drawing, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import splitavg
from sglr_flower.split.methods import METHODS
from sglr_flower.studies.costs.communication import Average, EpochBytes, Sizes, epoch_bytes
from sglr_flower.studies.paper.layout import Grid
from sglr_flower.studies.paper.published import TABLE_6_EXAMPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHI = 0.5
"""Of SGLR, as in the paper's worked example."""
PARTS = ("smashed", "unicast", "broadcast", "segments")
RATE = 100e6 / 8
"""R of Figure 5 in bytes per second, both ways; the paper's is not known here, and it scales all bars alike."""
SEGMENT_SHARE = 67 / 200
"""S(w_c) / S(w) of Figure 5: that of the worked example, as the figure does not state it."""
CUT = 0.024e6
"""S(L) of the worked example, AlexNet's, in bytes; of Figure 5 too."""


@dataclass(frozen=True)
class Row:
    """A row of a CSV file: what it is of, and its figures, not rounded."""

    labels: Mapping[str, str | int | float]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """A table of a calculation.

    Attributes
    ----------
    name, title : str
        Of its CSV file, and as it is headed.
    caption : str
        What the figures are of.
    table : Grid
        As it is shown.
    rows : Sequence[Row]
        The same for the CSV file; not empty.
    """

    name: str
    title: str
    caption: str
    table: Grid
    rows: Sequence[Row]

    def to_csv(self) -> bytes:
        """The rows with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.rows[0].labels, *self.rows[0].figures])
        writer.writerows([*row.labels.values(), *row.figures.values()] for row in self.rows)
        return text.getvalue().encode()


@dataclass(frozen=True)
class Calculation:
    """A table or figure of the paper that follows from formulas, without a sweep of trainings.

    Attributes
    ----------
    title : str
        As it is headed.
    parts : Callable[[], list[Part]]
        Makes its tables.
    draw : Callable[[Sequence[Part]], bytes]
        Makes its picture of them, a PNG.
    """

    title: str
    parts: Callable[[], list[Part]]
    draw: Callable[[Sequence[Part]], bytes]


# ---- Table 6: the worked example


@dataclass(frozen=True)
class _Reading:
    """A method, and for SGLR what its average is and how often it travels."""

    name: str
    method: str
    formula: str
    average: Average = "once"
    copies: int = 1


_EXAMPLE = Sizes(clients=100, samples=50_000, batch_size=8, cut=CUT, client_segment=67e6, network=200e6)
_EXAMPLE_ROWS = (
    _Reading("fedavg", "fedavg", "2 C S(w)"),
    _Reading("sfl", "sfl", "2 D S(L) + 2 C S(w_c)"),
    _Reading("psl", "psl", "2 D S(L)"),
    _Reading("sglr, as Table 6 counts", "sglr", "(2 - phi) D S(L) + S(L)"),
    _Reading("sglr, one sample's average a step", "sglr", "... + steps S(L)", "clients-and-samples"),
    _Reading("sglr, one batch's average a step", "sglr", "... + steps B S(L)", "clients"),
    _Reading("sglr, that to each active client", "sglr", "... + steps B S(L) phi C", "clients", 50),
)


def example() -> Part:
    """The paper's worked example, and what other readings of the average make of it."""
    moved = {
        row.name: epoch_bytes(METHODS[row.method], _EXAMPLE, PHI, row.average, row.copies) for row in _EXAMPLE_ROWS
    }
    lines, rows = [], []
    for row in _EXAMPLE_ROWS:
        own, total = moved[row.name], moved[row.name].total
        less = {other: 100 * (1 - total / moved[other].total) for other in ("sfl", "fedavg")}
        shown = [f"{less[other]:.1f}" if row.method == "sglr" else "-" for other in less]
        paper = (
            " / ".join(map(str, TABLE_6_EXAMPLE.values())) if row.average == "once" and row.method == "sglr" else "-"
        )
        lines.append([row.name, row.formula, f"{total / 1e6:,.1f}", *shown, paper])
        percent = {f"less_than_{other}_percent": value for other, value in less.items()}
        rows.append(Row({"method": row.name}, {**_parts(own), "total": total, **percent}))
    header = ["method", "bytes an epoch", "MB", "less than sfl (%)", "less than fedavg (%)", "paper"]
    caption = (
        "Worked example of the paper, by formula: C = 100 clients, D = 50,000 samples, phi = 0.5, AlexNet with "
        "S(L) = 0.024 MB, S(w) = 200 MB, S(w_c) = 67 MB. Table 6 counts the average as one sample's, once in an epoch, "
        "and received by all at once. The lines below it are what SplitAvg needs as it is defined: an average in every "
        "step, and of a whole batch (B = 8) where it is made position by position. Over connections from one to one it "
        "travels to each active client by itself, and then averages of a batch save nothing over psl."
    )
    return Part("example", "Table 6: the worked example", caption, Grid(header, lines), rows)


# ---- Table 6: formula and counters of real runs

_MEASURED = (
    _Reading("fedavg", "fedavg", ""),
    _Reading("psl", "psl", ""),
    _Reading("sfl", "sfl", ""),
    _Reading("sglr over clients", "sglr", "", "clients"),
    _Reading("sglr over clients and samples", "sglr", "", "clients-and-samples"),
)
_CLIENTS, _SAMPLES, _BATCH = 4, 32, 8


def measured() -> Part:
    """Short real trainings of each method, as they count what they move, beside the formulas."""
    lines, rows = [], []
    for reading in _MEASURED:
        config = _short_run(reading)
        sizes = _sizes(config)
        table6 = epoch_bytes(METHODS[reading.method], sizes, PHI, "once").total
        for nodes in (_CLIENTS, 1):
            own = _on_nodes(reading, sizes, nodes)
            row = _second_round(config, nodes)
            found = {part: row[part] for part in ("smashed", "unicast", "broadcast")}
            found["segments"] = row["segments_up"] + row["segments_down"]
            total = sum(found.values())
            place = "a node per client" if nodes > 1 else "one node"
            numbers = [*(found[part] for part in PARTS), total, own.total, table6]
            lines.append([f"{reading.name}, {place}", *(f"{number / 1e3:,.1f}" for number in numbers)])
            names = [*PARTS, "total", "formula", "table6"]
            figures = {**dict(zip(names, numbers, strict=True)), "labels": row["labels"]}
            rows.append(Row({"method": reading.name, "nodes": nodes}, figures))
    header = ["method", *PARTS, "measured", "formula", "Table 6"]
    caption = (
        f"Measured in one process: resnet16 on digits, {_CLIENTS} clients of {_SAMPLES} samples, batch size {_BATCH}, "
        f"phi {PHI}, float32; the second round, kB (1,000 bytes) of all clients, both ways, without labels "
        f"({8 * _CLIENTS * _SAMPLES:,} bytes where there are any) and framing. "
        "`formula` is Table 6's with what is particular here: the average is of every step, travels once to each node "
        "that has an active client, and segments travel once for a node. `Table 6` counts one sample's average once."
    )
    return Part("measured", "Table 6: formulas and counters", caption, Grid(header, lines), rows)


def _short_run(reading: _Reading) -> RunConfig:
    over = "clients-and-samples" if reading.average == "clients-and-samples" else "clients"
    return RunConfig.parse(
        {
            "method": reading.method,
            "dataset": "digits",
            "num-clients": _CLIENTS,
            "samples-per-client": _SAMPLES,
            "batch-size": _BATCH,
            "num-server-rounds": 2,  # in the first one nothing is handed out where all clients begin alike
            "evaluate-every": 0,
            "evaluate-samples": 1,
            "checkpoint-every": 2,
            "splitavg-phi": PHI,
            "splitavg-over": over,
        }
    )


def _sizes(config: RunConfig) -> Sizes:
    cut = assembly.model(config.replace(method="psl"))
    return Sizes(
        clients=_CLIENTS,
        samples=_CLIENTS * _SAMPLES,
        batch_size=_BATCH,
        cut=math.prod(cut.smashed_shape()) * cut.dtype.itemsize,
        client_segment=weight_bytes(cut.client_segment(0)),
        network=weight_bytes(cut.whole()),
    )


def _on_nodes(reading: _Reading, sizes: Sizes, nodes: int) -> EpochBytes:
    """The formula for this implementation, with one node for each client or one for all."""
    copies = splitavg.num_active(PHI, sizes.clients) if nodes > 1 else 1
    moved = epoch_bytes(METHODS[reading.method], sizes, PHI, reading.average, copies)
    share = nodes / sizes.clients
    return EpochBytes(
        moved.smashed, moved.unicast, moved.broadcast, share * moved.segments_up, share * moved.segments_down
    )


def _second_round(config: RunConfig, nodes: int) -> dict[str, int]:
    """What a run counted in its second round, by the names of `sglr_flower.split.sent.Sent`."""
    with tempfile.TemporaryDirectory() as folder:
        inprocess.run(config.replace(run_dir=str(Path(folder) / "run")), nodes)
        with (Path(folder) / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            row = list(csv.DictReader(file))[1]
    return {name.removeprefix("bytes_"): int(value) for name, value in row.items() if name.startswith("bytes_")}


def _parts(moved: EpochBytes) -> dict[str, float]:
    segments = moved.segments_up + moved.segments_down
    return dict(zip(PARTS, (moved.smashed, moved.unicast, moved.broadcast, segments), strict=True))


# ---- Figure 5

_FIGURE_5_METHODS = ("sglr", "psl", "sfl", "fedavg")
_FIGURE_5_SAMPLES = (25_000, 50_000, 500_000, 2_000_000)
_FIGURE_5_SETTINGS = ((20, 100e6), (100, 100e6), (100, 200e6))


def seconds(method: str, samples: int, clients: int, network: float) -> float:
    """Seconds in which a client's share of an epoch's bytes travels (Table 6: per client, divided by R), without T."""
    sizes = Sizes(clients, samples, 8, CUT, SEGMENT_SHARE * network, network)
    return epoch_bytes(METHODS[method], sizes, PHI, "once").total / clients / RATE


def training_time() -> Part:
    """Figure 5's panels as a table."""
    lines, rows = [], []
    for samples in _FIGURE_5_SAMPLES:
        for clients, network in _FIGURE_5_SETTINGS:
            times = {method: seconds(method, samples, clients, network) for method in _FIGURE_5_METHODS}
            place = [f"{samples:,}", f"{clients}", f"{network / 1e6:.0f}"]
            lines.append([*place, *(f"{time:,.1f}" for time in times.values())])
            rows.append(Row({"samples": samples, "clients": clients, "model_bytes": network}, times))
    caption = (
        "Seconds of an epoch in which a client's bytes travel, by Table 6's formulas. Samples, clients and model sizes "
        f"are the figure's. Our choice, as the figure does not state them: R = {8 * RATE / 1e6:.0f} Mbit/s both ways, "
        f"S(L) = {CUT / 1e6:g} MB, S(w_c) = {SEGMENT_SHARE:.3f} S(w) and phi = {PHI}, which are the worked example's. "
        "The time T of computation is left out: no value of it is given."
    )
    header = ["samples", "clients", "model (MB)", *(f"{method} (s)" for method in _FIGURE_5_METHODS)]
    return Part("seconds", FIGURE_5.title, caption, Grid(header, lines), rows)


# ---- pictures


def _draw_table_6(parts: Sequence[Part]) -> bytes:
    """What each method moves, in its parts: the worked example, and the counters beside Table 6."""
    figure = drawing.new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    by_formula, counted = parts
    _bars(left, [f"{row.labels['method']}" for row in by_formula.rows], by_formula.rows, 1e9)
    left.set_xlabel("GB an epoch, all clients")
    left.set_title("worked example, by formula", fontsize="medium")
    places = {_CLIENTS: "a node each", 1: "one node"}
    names = [f"{row.labels['method']}, {places[int(row.labels['nodes'])]}" for row in counted.rows]
    _bars(right, names, counted.rows, 1e6)
    table6 = [row.figures["table6"] / 1e6 for row in counted.rows]
    right.plot(table6, range(len(names)), "kD", markersize=4, label="Table 6")
    right.set_xlabel("MB an epoch, all clients")
    right.set_title(f"measured: resnet16 on digits, {_CLIENTS} clients", fontsize="medium")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    figure.suptitle(TABLE_6.title, fontsize="medium")
    return drawing.png(figure)


def _bars(axes: Axes, names: Sequence[str], rows: Sequence[Row], unit: float) -> None:
    left = [0.0] * len(names)
    for part in PARTS:
        widths = [row.figures[part] / unit for row in rows]
        axes.barh(range(len(names)), widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for position, end in enumerate(left):
        axes.annotate(f"{end:.3g}", (end, position), (7, 0), textcoords="offset points", va="center", fontsize="small")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    drawing.plain(axes, "x")


def _draw_figure_5(parts: Sequence[Part]) -> bytes:
    """A panel for each number of samples, a group of bars for each number of clients and model size."""
    figure = drawing.new_figure(10, 6)
    panels = figure.subplots(2, 2, sharey=True).flat
    for axes, samples in zip(panels, _FIGURE_5_SAMPLES, strict=True):
        rows = [row for row in parts[0].rows if row.labels["samples"] == samples]
        for index, method in enumerate(_FIGURE_5_METHODS):
            positions = [group + 0.2 * (index - 1.5) for group in range(len(rows))]
            bars = axes.bar(positions, [row.figures[method] for row in rows], 0.18, label=method)
            axes.bar_label(bars, fmt="%.3g", fontsize="x-small")
        axes.set_yscale("log")
        axes.margins(y=0.15)
        axes.set_xticks(
            range(len(rows)),
            [f"{row.labels['clients']} clients, {float(row.labels['model_bytes']) / 1e6:.0f} MB" for row in rows],
            fontsize="small",
        )
        axes.set_title(f"{samples:,} samples", fontsize="medium")
        axes.set_ylabel("seconds an epoch")
        axes.set_axisbelow(True)
        drawing.plain(axes, "y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"{FIGURE_5.title}\nby formula, without computation; R = {8 * RATE / 1e6:.0f} Mbit/s", fontsize="medium"
    )
    return drawing.png(figure)


TABLE_6 = Calculation("Table 6: what training moves", lambda: [example(), measured()], _draw_table_6)
FIGURE_5 = Calculation(
    "Figure 5: training time by clients, samples and model", lambda: [training_time()], _draw_figure_5
)
CALCULATIONS = {"table6": TABLE_6, "fig5": FIGURE_5}
