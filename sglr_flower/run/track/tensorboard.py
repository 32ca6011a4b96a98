"""TensorBoard's events, in ``tensorboard/`` of the run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sglr_flower.run.metrics import RoundMetrics, figures
from sglr_flower.run.summary import Summary

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes a scalar for each column of a round; the rounds that a resumed run has lost are hidden.

    Parameters
    ----------
    run_dir : Path
        The run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "tensorboard"
        self._events: SummaryWriter | None = None

    def begin(self, rows: Sequence[RoundMetrics]) -> None:
        """Open a new file of events; the rounds before it are in older ones."""
        from torch.utils.tensorboard import SummaryWriter  # half a second to import

        self._events = SummaryWriter(str(self._folder), purge_step=len(rows) + 1)

    def round(self, row: RoundMetrics) -> None:
        """Write a round."""
        assert self._events is not None
        for name, value in figures(row).items():
            self._events.add_scalar(name, value, row.round)
        self._events.flush()

    def end(self, summary: Summary) -> None:
        """Nothing: a summary is no curve."""

    def close(self) -> None:
        """Close the file."""
        if self._events is not None:
            self._events.close()
