"""Figure 5: the time in which what training moves travels, by Table 6's formulas."""

from __future__ import annotations

from collections.abc import Sequence

from sglr_flower.run import drawing
from sglr_flower.split.methods import METHODS
from sglr_flower.studies.costs.communication import Sizes, epoch_bytes
from sglr_flower.studies.paper.calculation import CUT, PHI, Calculation, Part, Row
from sglr_flower.studies.paper.layout import Grid

RATE = 100e6 / 8
"""R in bytes per second, both ways; the paper's is not known here, and it scales all bars alike."""
SEGMENT_SHARE = 67 / 200
"""S(w_c) / S(w): that of the worked example, as the figure does not state it."""
_METHODS = ("sglr", "psl", "sfl", "fedavg")
_SAMPLES = (25_000, 50_000, 500_000, 2_000_000)
_SETTINGS = ((20, 100e6), (100, 100e6), (100, 200e6))


def seconds(method: str, samples: int, clients: int, network: float) -> float:
    """Seconds in which a client's share of an epoch's bytes travels (Table 6: per client, divided by R), without T."""
    sizes = Sizes(clients, samples, 8, CUT, SEGMENT_SHARE * network, network)
    return epoch_bytes(METHODS[method], sizes, PHI, "once").total / clients / RATE


def training_time() -> Part:
    """Figure 5's panels as a table."""
    lines, rows = [], []
    for samples in _SAMPLES:
        for clients, network in _SETTINGS:
            times = {method: seconds(method, samples, clients, network) for method in _METHODS}
            place = [f"{samples:,}", f"{clients}", f"{network / 1e6:.0f}"]
            lines.append([*place, *(f"{time:,.1f}" for time in times.values())])
            rows.append(Row({"samples": samples, "clients": clients, "model_bytes": network}, times))
    caption = (
        "Seconds of an epoch in which a client's bytes travel, by Table 6's formulas. Samples, clients and model sizes "
        f"are the figure's. Our choice, as the figure does not state them: R = {8 * RATE / 1e6:.0f} Mbit/s both ways, "
        f"S(L) = {CUT / 1e6:g} MB, S(w_c) = {SEGMENT_SHARE:.3f} S(w) and phi = {PHI}, which are the worked example's. "
        "The time T of computation is left out: no value of it is given."
    )
    header = ["samples", "clients", "model (MB)", *(f"{method} (s)" for method in _METHODS)]
    return Part("seconds", FIGURE_5.title, caption, Grid(header, lines), rows)


def _draw(parts: Sequence[Part]) -> bytes:
    """A panel for each number of samples, a group of bars for each number of clients and model size."""
    figure = drawing.new_figure(10, 6)
    panels = figure.subplots(2, 2, sharey=True).flat
    for axes, samples in zip(panels, _SAMPLES, strict=True):
        rows = [row for row in parts[0].rows if row.labels["samples"] == samples]
        for index, method in enumerate(_METHODS):
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


FIGURE_5 = Calculation("Figure 5: training time by clients, samples and model", lambda: [training_time()], _draw)
