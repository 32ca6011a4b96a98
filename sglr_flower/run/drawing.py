"""How all figures are drawn: without a screen, with the same margins, axes and resolution.

Matplotlib is imported when a figure is made, as it takes half a second.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def plain(axes: Axes, grid: Literal["both", "x", "y", ""] = "both", **line: Any) -> None:
    """Axes without a frame, with a faint grid along the axes that are named; ``line`` as of `Axes.grid`."""
    if grid:
        axes.grid(axis=grid, **{"alpha": 0.3, **line})
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers alone, one for a single round or client."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
