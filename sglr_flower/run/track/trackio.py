"""Trackio: its own variables say where, else its own folder on this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import trackio

from sglr_flower.run.track.tracker import PROJECT, TrackedRun


class Tracker:
    """A run at Trackio; see `tracker.Tracker`."""

    def __init__(self, run: TrackedRun) -> None:
        self._warned: list[str] = []
        warnings.showwarning = self._on_warning
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        # It finds a run by its name alone, and directories of different runs may have the same.
        name = f"{run.name}-{run.id[:6]}"
        self._run = trackio.init(project=project, name=name, config=dict(run.config), resume="allow", embed=False)
        self._check()
        self.where = f"run {name}; see it with `trackio show --project {project}`"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a round."""
        self._run.log(dict(metrics), step=step)
        self._check()

    def end(self, step: int, summary: Mapping[str, float] | None) -> None:
        """Finish the run; it has no place for figures of a whole run, so they are those of its last step."""
        if summary is not None:
            self._run.log({f"summary/{name}": value for name, value in summary.items()}, step=step)
        self._run.finish()
        self._check()

    def _on_warning(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            self._warned.append(str(message))

    def _check(self) -> None:
        """Raise what it only warns of, from threads of its own: that figures could not be written."""
        if self._warned:
            raise RuntimeError(self._warned[0])
