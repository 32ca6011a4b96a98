"""What a tracker's own module brings: a class ``Tracker``, made and used in the process of `apart.serve`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

PROJECT = "sglr-flower"
"""Experiment or project of a run whose user names none."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is told of.

    Attributes
    ----------
    name : str
        The name of its directory.
    id : str
        32 hexadecimal digits that are no other run's.
    config : Mapping[str, Any]
        The run-config, kebab-case keys.
    kept : dict[str, Any]
        What the tracker kept of this run when it was tracked before; empty at its beginning. What is put into it is
        kept in the run directory.
    """

    name: str
    id: str
    config: Mapping[str, Any]
    kept: dict[str, Any]


class Tracker(Protocol):
    """A run at a tracker, begun or continued by ``__init__(run: TrackedRun)``; it may raise anything at any time."""

    where: str
    """Where the run is to be found, for the user."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a round's figures; rounds come in ascending order, each once, also of a run that is resumed."""

    def end(self, step: int, summary: Mapping[str, float] | None) -> None:
        """Finish with figures of the whole run, after so many rounds; None: it failed or was stopped."""
