"""Table 6: what training moves, by the paper's formulas and as short real runs count it."""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sglr_flower.models.footprint import weight_bytes
from sglr_flower.run import assembly, drawing, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import splitavg
from sglr_flower.split.methods import METHODS
from sglr_flower.studies.costs.communication import Average, EpochBytes, Sizes, epoch_bytes
from sglr_flower.studies.paper.calculation import CUT, PHI, Calculation, Part, Row
from sglr_flower.studies.paper.layout import Grid
from sglr_flower.studies.paper.published import TABLE_6_EXAMPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = ("smashed", "unicast", "broadcast", "segments")


# ---- the worked example


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


# ---- formula and counters of real runs

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


# ---- the picture


def _draw(parts: Sequence[Part]) -> bytes:
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


TABLE_6 = Calculation("Table 6: what training moves", lambda: [example(), measured()], _draw)
