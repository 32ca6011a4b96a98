"""What ``sglr analyze`` writes and shows: a row per checkpoint as CSV, JSON, a table and a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from sglr_flower.files import write_atomic
from sglr_flower.run import drawing
from sglr_flower.studies.convergence.smoothness import MULTIPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Row:
    """One checkpoint of one run, as a row of ``convergence.csv``; see `analysis.convergence` for the figures.

    Attributes
    ----------
    run : str
        Its directory as it was given.
    name : str
        What tells the run from the others: clients, alpha and phi, as far as they differ.
    clients, alpha, phi : int, float, float
        C of a step, and the exponent and fraction in that round; 0 where the method has none.
    round : int
        After which the checkpoint is.
    active : int
        n, the clients that SplitAvg averages; 0: none.
    own_norm, average_norm, cosine : float | None
        Of a client's own cut gradient and the average; None where none is averaged.
    gradient_norm2, client_gradient_norm2, variance, own_variance, bias2, kept, kept_error : float
        As in `analysis.convergence.Gradients`.
    weights_spread, function_spread : float
        As in `analysis.convergence.Spread`.
    smoothness, rate_smoothness : float
        As in `analysis.smoothness.Along`.
    losses : tuple[float, ...]
        At 0 and at each of `MULTIPLES` of the step.
    """

    run: str
    name: str
    clients: int
    alpha: float
    phi: float
    round: int
    active: int
    own_norm: float | None
    average_norm: float | None
    cosine: float | None
    gradient_norm2: float
    client_gradient_norm2: float
    variance: float
    own_variance: float
    bias2: float
    kept: float
    kept_error: float
    weights_spread: float
    function_spread: float
    smoothness: float
    rate_smoothness: float
    losses: tuple[float, ...]

    @property
    def cosine_expected(self) -> float | None:
        """Of gradients of one length that are orthogonal: 1 / sqrt(n)."""
        return 1 / math.sqrt(self.active) if self.active else None

    @property
    def kept_expected(self) -> float:
        """1 - phi (1 - 1/n): what is left of a client's own gradient if those of others say nothing about it."""
        return 1 - self.active / self.clients * (1 - 1 / self.active) if self.active else 1.0


def save(folder: Path, rows: Sequence[Row], batches: int) -> None:
    """Write ``convergence.csv``, ``convergence.json`` and ``convergence.png``."""
    write_atomic(folder / "convergence.csv", _to_csv(rows))
    values = {"batches": batches, "multiples": MULTIPLES, "checkpoints": [_finite(asdict(row)) for row in rows]}
    write_atomic(folder / "convergence.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomic(folder / "convergence.png", draw(rows))


def _to_csv(rows: Sequence[Row]) -> bytes:
    """A row per checkpoint, its losses in columns of their own."""
    text = io.StringIO()
    columns = [key for key in asdict(rows[0]) if key != "losses"]
    along = [f"loss_at_{multiple:g}" for multiple in (0.0, *MULTIPLES)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *along])
    for row in rows:
        writer.writerow([*(asdict(row)[key] for key in columns), *row.losses])
    return text.getvalue().encode()


def _finite(value: Any) -> Any:
    """The same with None in place of numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tables(rows: Iterable[Row], batches: int) -> list[Table]:
    """The figures for the terminal, of the cut and of the bound; docs/convergence.md says what they are."""
    cut = Table(
        title=f"SplitAvg and the client segments, each figure from {batches} steps",
        caption="in brackets: where clients' cut gradients say nothing about each other's",
    )
    bound = Table(
        title="In the metric of the bound",
        caption="σ² in brackets: with own cut gradients alone; below 0 is noise around 0; L is Euclidean",
    )
    for shown, headings in (
        (cut, ("round", "cosine", "‖average‖ / ‖own‖", "kept", "spread of weights", "of functions")),
        (bound, ("round", "‖∇F‖²", "σ²", "‖b‖²", "L along the step", "η_c L, metric")),
    ):
        shown.add_column("run")
        for heading in headings:
            shown.add_column(heading, justify="right")
    for row in rows:
        compared = ["-", "-"]
        if row.cosine is not None and row.own_norm and row.average_norm is not None:
            expected = f"({row.cosine_expected:.2f})"
            compared = [f"{row.cosine:.2f} {expected}", f"{row.average_norm / row.own_norm:.2f} {expected}"]
        cut.add_row(
            row.name,
            str(row.round),
            *compared,
            f"{row.kept:.2f} ± {row.kept_error:.2f} ({row.kept_expected:.2f})",
            f"{row.weights_spread:.3f}",
            f"{row.function_spread:.3f}",
        )
        bound.add_row(
            row.name,
            str(row.round),
            f"{row.gradient_norm2:.3g}",
            f"{row.variance:.3g} ({row.own_variance:.3g})",
            f"{row.bias2:.2g}",
            f"{row.smoothness:.3g}",
            f"{row.rate_smoothness:.3g}",
        )
    return [cut, bound]


Figure = Callable[[Row], float | None]
_LEGEND_WIDTH = 150  # letters, roughly


def draw(rows: Sequence[Row]) -> bytes:
    """The picture as PNG.

    Parameters
    ----------
    rows : Sequence[Row]
        Of all runs, each one's checkpoints oldest first; not empty.
    """
    import matplotlib as mpl  # half a second

    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.run, []).append(row)
    few, many = mpl.colormaps["tab10"], mpl.colormaps["viridis"]
    shades = [few(k) if len(runs) <= few.N else many(0.9 * k / len(runs)) for k in range(len(runs))]
    canvas = drawing.new_figure(13, 7.2)
    panels = canvas.subplots(2, 3).flatten()
    for colour, own in zip(shades, runs.values(), strict=True):
        _line(panels[0], own, lambda row: row.cosine, colour, "-")
        _line(panels[0], own, lambda row: row.cosine_expected, colour, ":")
        _line(panels[1], own, lambda row: row.kept, colour, "-", lambda row: row.kept_error)
        _line(panels[1], own, lambda row: row.kept_expected, colour, ":")
        for style, figure in zip(("-", "--", ":"), _NOISE, strict=True):
            _line(panels[2], own, figure, colour, style)
        _line(panels[3], own, lambda row: row.weights_spread, colour, "-")
        _line(panels[3], own, lambda row: row.function_spread, colour, "--")
        _line(panels[4], own, lambda row: row.rate_smoothness, colour, "-")
        changes = [loss - own[-1].losses[0] for loss in own[-1].losses]
        panels[5].plot((0.0, *MULTIPLES), changes, color=colour, marker="o", markersize=3, label=own[0].name)
    panels[0].set(title="cosine of own and averaged cut gradient\n(dotted: orthogonal ones)")
    panels[1].set(title="kept of a client's own gradient\n(dotted: 1 - φ (1 - 1/n))")
    panels[2].set(title="‖∇F‖² (solid), σ² (dashed), ‖b‖² (dotted)\nin the metric of the bound")
    panels[2].set_yscale("log")
    panels[3].set(title="spread of the client segments\nin weights (solid), in function (dashed)", ylim=(0, None))
    panels[4].set(title="η_c times the smoothness along the step\n(the bound asks for 1 at most)", yscale="log")
    panels[4].axhline(1, color="tab:gray", linewidth=0.8)
    panels[5].set(title="loss along the step, last checkpoint", xlabel="multiples of the step", ylabel="change of loss")
    for axes in panels:
        axes.title.set_fontsize("medium")
        drawing.plain(axes)
        if not axes.get_xlabel():
            axes.set_xlabel("round")
            drawing.whole_numbers(axes.xaxis)
    if len(runs) > 1:
        handles, labels = panels[5].get_legend_handles_labels()
        columns = max(1, min(5, _LEGEND_WIDTH // (max(map(len, labels)) + 8)))
        canvas.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return drawing.png(canvas)


_NOISE: tuple[Figure, ...] = (lambda row: row.gradient_norm2, lambda row: row.variance, lambda row: row.bias2)


def _line(
    axes: Axes, rows: Sequence[Row], figure: Figure, colour: object, style: str, error: Figure | None = None
) -> None:
    """A figure over the rounds; nothing where it is None or, an estimate of a square, not above 0."""
    log = figure in _NOISE
    values = [np.nan if (value := figure(row)) is None or (log and value <= 0) else value for row in rows]
    widths = None if error is None else [error(row) or 0.0 for row in rows]
    rounds = [row.round for row in rows]
    axes.errorbar(rounds, values, widths, color=colour, linestyle=style, marker="o", markersize=3, capsize=2)
