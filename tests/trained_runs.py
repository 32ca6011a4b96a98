"""Tiny real runs, in-process, for the tests of what is made of a run's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.summary import Summary


def run(run_dir: Path, **changes: Any) -> Summary:
    """Train two clients on 16 digits each; returns the run's summary. ``changes``: run-config keys with underscores."""
    values = {
        "num-clients": 2,
        "samples-per-client": 16,
        "num-server-rounds": 1,
        "evaluate-samples": 0,
        "batch-size": 4,
        "client-lr": 0.003,
        "run-dir": str(run_dir),
    }
    values |= {key.replace("_", "-"): value for key, value in changes.items()}
    return inprocess.run(RunConfig.parse(values))
