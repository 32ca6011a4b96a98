"""SplitLr and the schedules by number."""

from __future__ import annotations

import math

import pytest

from sglr_flower.splitlr import schedule_factor, server_lr


@pytest.mark.parametrize(
    ("clients", "alpha", "factor"),
    [(20, 2.0, 400.0), (20, 1.0, 20.0), (20, 0.5, math.sqrt(20)), (20, 1.5, 20**1.5), (20, 0.0, 1.0), (1, 2.0, 1.0)],
)
def test_the_servers_rate(clients: int, alpha: float, factor: float) -> None:
    assert server_lr(1e-3, clients, alpha) == pytest.approx(1e-3 * factor)


def test_step_falls_to_a_tenth_once_80_percent_of_the_rounds_are_done() -> None:
    factors = [schedule_factor("step", r, 15) for r in range(1, 16)]
    assert factors == [1.0] * 12 + [0.1] * 3


def test_cosine_falls_from_one_and_is_a_half_in_the_middle() -> None:
    factors = [schedule_factor("cosine", r, 10) for r in range(1, 11)]
    assert factors[0] == 1.0
    assert factors[5] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)


def test_constant() -> None:
    assert {schedule_factor("constant", r, 10) for r in range(1, 11)} == {1.0}


def test_an_unknown_schedule_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="constant, step or cosine"):
        schedule_factor("linear", 1, 10)
