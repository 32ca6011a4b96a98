"""SplitLr, and learning-rate schedules, of which clients and server may have different ones.

SplitLr (Pal et al., arXiv 2112.05929, eq. 12-13) accelerates the server: a step's server batch |B_s| is C times
a client's, so the server's rate is eta_s = eta_0 * C^alpha while the clients keep eta_c = eta_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields

Schedule = Callable[[float], float]
"""The factor on a side's learning rate after so many rounds of the run: 2.5 is in the middle of the third."""


def server_lr(eta_0: float, num_clients: int, alpha: float) -> float:
    """SplitLr, eq. 13: the server's learning rate eta_s = eta_0 * C^alpha.

    Parameters
    ----------
    eta_0 : float
        The run's learning rate, after the server's schedule.
    num_clients : int
        C, the clients whose batches make up this step's server batch.
    alpha : float
        Exponent in [0, 2]; 0 leaves the rate at ``eta_0``.
    """
    return float(eta_0 * num_clients**alpha)


def schedule(text: str, num_rounds: int) -> Schedule:
    """A schedule by what the run-config calls it.

    ``constant`` is 1. ``step`` is 0.1 once 80 % of the rounds are done (the authors' code). ``cosine`` falls from 1 in
    the first round towards 0 after the last (Loshchilov & Hutter, arXiv 1608.03983, without restarts). These three stay
    the same within a round. ``cyclic:...`` and ``one-cycle:...`` move with every step, see `Cyclic` and `OneCycle`,
    whose attributes follow the colon: ``cyclic:low=0.4,high=1.6,period=5,phase=0.5``.

    Parameters
    ----------
    text : str
        One of these.
    num_rounds : int
        Rounds of the whole run.

    Raises
    ------
    ValueError
        If it is none of them, or a number is out of its range.
    """
    if text == "constant":
        return constant
    if text == "step":
        # In whole numbers: 4/5 of the rounds done, without a float that falls just short of 0.8.
        return lambda done: 0.1 if 5 * math.floor(done) >= 4 * num_rounds else 1.0
    if text == "cosine":
        return lambda done: 0.5 * (1 + math.cos(math.pi * (math.floor(done) / num_rounds)))
    name, _, given = text.partition(":")
    if name == "cyclic":
        return Cyclic(**_numbers(given, Cyclic))
    if name == "one-cycle":
        cycle = OneCycle(**_numbers(given, OneCycle))
        return lambda done: cycle(done / num_rounds)
    raise ValueError(
        "it must be constant, step, cosine, cyclic:low=L,high=H,period=P,phase=F, or "
        "one-cycle:low=L,high=H,length=N,start=S"
    )


def constant(done: float) -> float:
    """The schedule that changes nothing."""
    return 1.0


@dataclass(frozen=True)
class Cyclic:
    """The triangular schedule: up from ``low`` to ``high`` and down again, in straight lines, for ever.

    Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186, section 3; his ``stepsize`` is half
    a period, and he advises 2 to 10 epochs for it, and ``high`` three to four times ``low``.

    Attributes
    ----------
    low, high : float
        The factors between which it moves, 0 < low <= high <= 1000.
    period : float
        Rounds from one ``low`` to the next, at least 0.01; need not be whole.
    phase : float
        How far into the period the run begins, in [0, 1): at ``low``, rising, with 0; at ``high``, falling, with 0.5.
    """

    low: float
    high: float
    period: float
    phase: float = 0.0

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if not self.period >= 0.01:
            raise ValueError(f"its period = {self.period:g} must be at least 0.01 rounds")
        if not 0 <= self.phase < 1:
            raise ValueError(f"its phase = {self.phase:g} must be at least 0 and below 1, a fraction of its period")

    def __call__(self, done: float) -> float:
        """The factor after ``done`` rounds of the run."""
        return _triangle(self.low, self.high, (done / self.period + self.phase) % 1.0)


@dataclass(frozen=True)
class OneCycle:
    """A single triangle over most of the run, and at its end far below it.

    Smith & Topin, "Super-Convergence", arXiv 1708.07120: one cycle that is shorter than the run, and in what is left
    the rate falls orders of magnitude below where it began; here in a straight line to a hundredth of ``low``.

    Attributes
    ----------
    low, high : float
        The factors between which it moves, 0 < low <= high <= 1000.
    length : float
        Of the cycle, as a fraction of the run's rounds, in (0, 1].
    start : float
        When the cycle begins, as a fraction of the run's rounds, in [0, 1 - length]; the factor is ``low`` before that.
    """

    low: float
    high: float
    length: float = 0.9
    start: float = 0.0

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if not 0 < self.length <= 1:
            raise ValueError(f"its length = {self.length:g} must be a fraction of the rounds in (0, 1]")
        if not (self.start >= 0 and self.start + self.length <= 1 + 1e-9):
            raise ValueError(f"its start = {self.start:g} must be at least 0, and with its length at most 1")

    def __call__(self, done: float) -> float:
        """The factor after the fraction ``done`` of the run."""
        if done <= self.start:
            return self.low
        if done < self.start + self.length:
            return _triangle(self.low, self.high, (done - self.start) / self.length)
        left = (1 - done) / (1 - self.start - self.length) if done < 1 else 0.0
        return self.low * (0.01 + 0.99 * left)


def _triangle(low: float, high: float, position: float) -> float:
    """From ``low`` at 0 to ``high`` at 0.5 and back at 1."""
    return low + (high - low) * (1 - abs(2 * position - 1))


def _check_bounds(low: float, high: float) -> None:
    if not 0 < low <= high <= 1000:
        raise ValueError(f"its low = {low:g} must be above 0, and its high = {high:g} at least that and at most 1000")


def _numbers(given: str, kind: type[Cyclic | OneCycle]) -> dict[str, float]:
    """``low=0.4,high=1.6`` as numbers by name: those of the schedule, each once, and all that have no default."""
    known = {field.name: field.default for field in fields(kind)}
    form = f"it must be given {', '.join(f'{name}=NUMBER' for name in known)}, separated by commas"
    numbers: dict[str, float] = {}
    for part in given.split(",") if given else []:
        name, _, figure = (piece.strip() for piece in part.partition("="))
        try:
            number = float(figure)
        except ValueError:
            number = math.nan
        if name not in known or name in numbers or not math.isfinite(number):
            raise ValueError(f"{form}; {part.strip()!r} is not one of these, or not the only one of its name")
        numbers[name] = number
    if missing := [name for name, default in known.items() if default is MISSING and name not in numbers]:
        raise ValueError(f"{form}; {' and '.join(missing)} must be there")
    return numbers
