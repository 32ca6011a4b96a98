"""Pictures of figures over a size: clients, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglr_flower.run import drawing


def lines(
    path: Path, values: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, *, log_up: bool = False
) -> Path:
    """Draw lines over a logarithmic axis with a tick at every point that was measured.

    Parameters
    ----------
    path : Path
        The PNG to write.
    values : Mapping[str, Sequence[tuple[float, float]]]
        Label -> its points (size, figure), ascending.
    across, up : str
        What the axes show.
    log_up : bool
        Whether the figures' axis is logarithmic too.

    Returns
    -------
    Path
        ``path``.
    """
    figure = drawing.new_figure(7, 3.8)
    axes: Any = figure.subplots()
    values = {label: points for label, points in values.items() if points}
    for label, points in values.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    sizes = sorted({size for points in values.values() for size, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,g}" for size in sizes])
    axes.minorticks_off()
    top = max((figure for points in values.values() for _, figure in points), default=1.0)
    axes.set(xlabel=across, ylabel=up, **({"yscale": "log"} if log_up else {"ylim": (0, 1.1 * top)}))
    drawing.plain(axes)
    if values:
        axes.legend(frameon=False)
    path.write_bytes(drawing.png(figure))
    return path
