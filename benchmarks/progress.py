"""What a benchmark is doing, what it has found, and how long it will take: a line for each of its parts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO, TypeVar

from rich.console import Console

T = TypeVar("T")


class Progress:
    """The parts of a benchmark, one after the other.

    It writes plain lines, the same to a terminal, a file and a pipe, and each as soon as it is known. A repetition is
    taken to need as long as the earlier ones of its part did, another part as long as all so far on average.

    Parameters
    ----------
    parts : Sequence[str]
        What will be measured, in that order; repetitions have the same name.
    out : Path
        The file in which the benchmark keeps what it has measured after every part.
    file : TextIO | None
        Where the lines go; None: standard output.
    clock : Callable[[], float]
        Seconds.
    """

    def __init__(
        self,
        parts: Sequence[str],
        out: Path,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts, self._out, self._clock = list(parts), out, clock
        self._console = Console(file=file, highlight=False, soft_wrap=True, markup=False)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Where it is ended from outside, say what is kept."""
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            return
        kept = f"they are kept in {self._out}" if self._done else "nothing is measured yet"
        self._console.print(f"\nstopped after {self._done} of {len(self._parts)} parts: {kept}")

    def measure(self, part: str, take: Callable[[], T], tell: Callable[[T], str]) -> T:
        """Measure the next part.

        Parameters
        ----------
        part : str
            The next of the parts.
        take : Callable[[], T]
            Measures it.
        tell : Callable[[T], str]
            What was measured, for people.
        """
        assert part == self._parts[self._done]
        number = f"{self._done + 1:{len(str(len(self._parts)))}}/{len(self._parts)}"
        self._console.print(f"{number} {part} ... ", end="")
        started = self._clock()
        found = take()
        self._seconds[part].append(self._clock() - started)
        self._done += 1
        self._console.print(f"{tell(found)}{self._left()}")
        return found

    def pass_over(self, part: str) -> None:
        """Leave the next part out."""
        assert part == self._parts[self._done]
        self._done += 1

    def next_seconds(self) -> float:
        """How long the next part is expected to take; 0 if nothing is known yet."""
        return self._expected(self._parts[self._done]) if self._seconds else 0.0

    def _left(self) -> str:
        parts = self._parts[self._done :]
        return f"; about {duration(sum(map(self._expected, parts)))} left" if parts else ""

    def _expected(self, part: str) -> float:
        seconds = self._seconds.get(part) or [sum(map(sum, self._seconds.values())) / self._done]
        return sum(seconds) / len(seconds)


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
