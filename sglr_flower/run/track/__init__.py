"""What watches a run: observers of its rounds, none of which can end it.

TensorBoard's events are always written, in the run's own process. Each tracker of the run-config key ``track`` is in a
process of its own (`apart`), so that neither a network that is gone nor whatever its library does reaches the training;
an observer of one's own, by its import path, is in the run's process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from sglr_flower import imports
from sglr_flower.errors import UserError
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import RoundMetrics
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.summary import Summary
from sglr_flower.run.track.apart import Apart
from sglr_flower.run.track.tensorboard import TensorBoard

log = logging.getLogger("flwr.sglr")
_HOOKS = ("begin", "round", "end", "close")
"""The methods of an `Observer`."""


class Observer(Protocol):
    """Is told of a run's rounds. Whatever it raises ends its own part only."""

    def begin(self, rows: Sequence[RoundMetrics]) -> None:
        """The run begins, or goes on after these rounds."""

    def round(self, row: RoundMetrics) -> None:
        """A round is done; must return at once."""

    def end(self, summary: Summary) -> None:
        """The run has come to its end; not called of one that fails or is stopped."""

    def close(self) -> None:
        """Nothing more will be told: finish, after `end` or without it."""


class Observers:
    """Several observers as one: one that raises is named once and told no more.

    Parameters
    ----------
    observers : Mapping[str, Observer]
        By name.
    directory : RunDirectory
        Whose status says what they say.
    """

    def __init__(self, observers: Mapping[str, Observer], directory: RunDirectory) -> None:
        self._observers = dict(observers)
        self._directory = directory
        self._said: list[dict[str, Any]] = []

    def begin(self, rows: Sequence[RoundMetrics]) -> None:
        """Tell that the run begins, or goes on after these rounds."""
        self._each(lambda observer: observer.begin(rows))

    def round(self, row: RoundMetrics) -> None:
        """Tell of a round."""
        self._each(lambda observer: observer.round(row))

    def end(self, summary: Summary) -> None:
        """Tell that the run has come to its end."""
        self._each(lambda observer: observer.end(summary))

    def close(self) -> None:
        """Wait until all have finished, those of other processes for at most `apart.END_SECONDS`."""
        self._each(lambda observer: observer.close())

    def say(self, sentence: str, *, failed: bool = False) -> None:
        """Write what an observer says to the log and the status, where `sglr run` reads it."""
        log.log(logging.WARNING if failed else logging.INFO, "%s", sentence)
        self._said.append({"sentence": sentence, "failed": failed})
        self._directory.status(observers=self._said)

    def add(self, name: str, observer: Observer) -> None:
        """One more."""
        self._observers[name] = observer

    def _each(self, tell: Callable[[Observer], None]) -> None:
        for name, observer in list(self._observers.items()):
            try:
                tell(observer)
            except Exception as error:  # whatever a library raises: the training is worth more than its picture
                del self._observers[name]
                self.say(f"{name} is off: {error}; the run goes on without it", failed=True)


def check(config: RunConfig) -> None:
    """Find out whether the libraries of a run's trackers are installed, and one's own observers are some.

    Raises
    ------
    UserError
        If one is not.
    """
    for name in config.trackers:
        if imports.is_path(name):
            _own(name)
            continue
        found = find_spec(name)
        if found is None or found.origin is None:  # without an origin it is a folder of that name, as wandb leaves one
            raise UserError(
                f"run-config key track = {config.track!r}: {name} is not installed: pip install 'sglr-flower[{name}]'"
            )


def _own(path: str) -> Observer:
    """An observer of one's own by its import path: an object, or a class that is made without arguments."""
    found: Observer = imports.instance(path, "track")
    if missing := [hook for hook in _HOOKS if not callable(getattr(found, hook, None))]:
        wrong = f"run-config key track = {path!r}: it must have the methods {', '.join(_HOOKS)}"
        raise UserError(f"{wrong}, and it has no {missing[0]}")
    return found


@contextmanager
def observers(config: RunConfig, directory: RunDirectory) -> Iterator[Observers]:
    """The observers of a run, closed at the end of the block in whatever way it ends.

    Raises
    ------
    UserError
        If the library of one is not installed.
    """
    check(config)
    several = Observers({"TensorBoard": TensorBoard(directory.path)}, directory)
    for name in config.trackers:
        several.add(name, _own(name) if imports.is_path(name) else Apart(name, config, directory, several.say))
    try:
        yield several
    finally:
        several.close()
