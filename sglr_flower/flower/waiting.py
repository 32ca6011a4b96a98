"""Saying for whom the server waits, and how long it still will: while it does, not when it has given up."""

from __future__ import annotations

import logging
import time

from sglr_flower.run.nodetable import printable
from sglr_flower.run.rundir import RunDirectory

log = logging.getLogger("flwr.sglr")
TELL_SECONDS = 15.0
"""Between two such lines; the first comes as late, as nobody need read of what is over in a moment."""


class Wait:
    """One time of waiting.

    Parameters
    ----------
    directory : RunDirectory
        Shows it as ``waiting`` of ``status.json``.
    seconds : float
        How long it may last.
    key : str
        The run-config's key that says so; empty: none does.
    """

    def __init__(self, directory: RunDirectory, seconds: float, key: str = "start-timeout") -> None:
        self._directory, self._key = directory, key
        self._began = time.monotonic()
        self._due = self._began + TELL_SECONDS
        self._told = False
        self.seconds = self._said = seconds

    @property
    def key(self) -> str:
        """The key in brackets, where it is what the time follows from."""
        return f" ({self._key})" if self._key and self.seconds == self._said else ""

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether it has lasted as long as it may."""
        return self.waited > self.seconds

    def tell(self, whom: str) -> None:
        """Say whom it is for, if that is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due, self._told = now + TELL_SECONDS, True
        left = f"{max(0.0, self.seconds - self.waited):.0f} s left"
        line = printable(f"waiting for {whom}, {left}{self.key}")
        log.info(line)
        self._directory.status(waiting=line)

    def end(self) -> None:
        """It is over."""
        if self._told:
            self._directory.status(waiting="")


def listed(names: tuple[str, ...] | list[str], most: int = 10) -> str:
    """Names as part of a sentence: the first of them, and how many more."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
