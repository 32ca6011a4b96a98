"""Weights & Biases: its own variables and login say where; who is not logged in gets an offline run to upload later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb
from wandb.errors import UsageError

from sglr_flower.run.track.tracker import PROJECT, TrackedRun


class Tracker:
    """A run at Weights & Biases; see `tracker.Tracker`."""

    def __init__(self, run: TrackedRun) -> None:
        settings: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT") or PROJECT,
            "name": os.environ.get("WANDB_NAME") or run.name,
            "id": run.id,
            "resume": "allow",
            "config": dict(run.config),
        }
        offline = "offline"
        try:
            self._run = wandb.init(**settings)
        except UsageError:  # there is no key, and nobody to ask for one
            self._run = wandb.init(**settings, mode="offline")
            offline = "offline, as nobody is logged in"
        self.where = self._run.url or f"{offline}; upload it with `wandb sync {self._run.settings.sync_dir}`"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a round."""
        self._run.log(dict(metrics), step=step)

    def end(self, step: int, summary: Mapping[str, float] | None) -> None:
        """Finish the run, all of it uploaded."""
        if summary is not None:
            self._run.summary.update({f"summary/{name}": value for name, value in summary.items()})
        self._run.finish(exit_code=1 if summary is None else 0)
        wandb.teardown()
