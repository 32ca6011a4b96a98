"""sglr-flower: SGLR split learning (arXiv 2112.05929) as a Flower app."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglr_flower.run.config import RunConfig
    from sglr_flower.run.splitlearning import SplitLearning
    from sglr_flower.run.task import Task
    from sglr_flower.split import methods, splitavg, splitlr

__version__ = "0.1.0"
__all__ = ["RunConfig", "SplitLearning", "Task", "methods", "splitavg", "splitlr"]

_HOMES = {
    "RunConfig": "sglr_flower.run.config",
    "SplitLearning": "sglr_flower.run.splitlearning",
    "Task": "sglr_flower.run.task",
}
"""Where a public name that is no module is; the others are modules of `sglr_flower.split`."""


def __getattr__(name: str) -> Any:
    # When they are asked for: a command's help, or a process that only forwards, needs none of them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return importlib.import_module(f"sglr_flower.split.{name}")
