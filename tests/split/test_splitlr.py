"""SplitLr and the schedules by number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglr_flower.split.splitlr import Cyclic, OneCycle, schedule, server_lr


@pytest.mark.parametrize(
    ("clients", "alpha", "factor"),
    [(20, 2.0, 400.0), (20, 1.0, 20.0), (20, 0.5, math.sqrt(20)), (20, 1.5, 20**1.5), (20, 0.0, 1.0), (1, 2.0, 1.0)],
)
def test_the_servers_rate(clients: int, alpha: float, factor: float) -> None:
    assert server_lr(1e-3, clients, alpha) == pytest.approx(1e-3 * factor)


def factors(text: str, num_rounds: int) -> list[float]:
    """At the beginning of each round."""
    return [schedule(text, num_rounds)(done) for done in range(num_rounds)]


def test_step_falls_to_a_tenth_once_80_percent_of_the_rounds_are_done() -> None:
    assert factors("step", 15) == [1.0] * 12 + [0.1] * 3


def test_cosine_falls_from_one_and_is_a_half_in_the_middle() -> None:
    found = factors("cosine", 10)
    assert found[0] == 1.0
    assert found[5] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)


def test_constant() -> None:
    assert set(factors("constant", 10)) == {1.0}


@pytest.mark.parametrize("text", ["constant", "step", "cosine"])
@given(st.integers(1, 300), st.integers(0, 299), st.floats(0, 1, exclude_max=True))
def test_these_stay_the_same_within_a_round(text: str, rounds: int, done: int, part: float) -> None:
    assert schedule(text, rounds)(done % rounds + 0.999 * part) == schedule(text, rounds)(done % rounds)


def test_a_triangle_by_hand() -> None:
    up_and_down = schedule("cyclic:low=0.2,high=1,period=4", 10)
    times = [0, 0.5, 1, 2, 3, 4, 5.5, 6]
    assert [up_and_down(done) for done in times] == pytest.approx([0.2, 0.4, 0.6, 1.0, 0.6, 0.2, 0.8, 1.0])


def test_a_phase_of_a_half_begins_at_the_top() -> None:
    falling = schedule("cyclic:low=0.5,high=2,period=3,phase=0.5", 10)
    assert [falling(done) for done in (0, 0.75, 1.5, 2.25, 3)] == pytest.approx([2.0, 1.25, 0.5, 1.25, 2.0])


def test_one_cycle_by_hand() -> None:
    # 20 rounds: low until round 2 is done, up until 9, down until 16, and to a hundredth of low at 20.
    cycle = schedule("one-cycle:low=0.5,high=2,length=0.7,start=0.1", 20)
    times = [0, 1, 2, 5.5, 9, 12.5, 16, 18, 20]
    expected = [0.5, 0.5, 0.5, 1.25, 2.0, 1.25, 0.5, 0.2525, 0.005]
    assert [cycle(done) for done in times] == pytest.approx(expected)


def test_one_cycle_may_last_to_the_end() -> None:
    cycle = schedule("one-cycle:low=0.5,high=2,length=0.65,start=0.35", 10)
    assert [cycle(done) for done in (3.5, 6.75, 10)] == pytest.approx([0.5, 2.0, 0.005])
    assert cycle(9.999) == pytest.approx(0.5, abs=1e-3)


BOUNDS = st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)).map(sorted)
PERIODS, FRACTIONS, TIMES = st.floats(0.01, 100), st.floats(0, 0.999), st.floats(0, 300)


@given(BOUNDS, PERIODS, FRACTIONS, TIMES)
def test_a_cycle_keeps_its_bounds_and_comes_back(bounds: list[float], period: float, phase: float, done: float) -> None:
    cycle = Cyclic(*bounds, period, phase)
    assert bounds[0] * (1 - 1e-12) <= cycle(done) <= bounds[1] * (1 + 1e-12)
    assert cycle(done + period) == pytest.approx(cycle(done), abs=1e-9 * bounds[1] * (1 + done / period))


@given(BOUNDS, PERIODS, FRACTIONS, TIMES)
def test_a_phase_is_a_shift_in_time(bounds: list[float], period: float, phase: float, done: float) -> None:
    shifted, plain = Cyclic(*bounds, period, phase), Cyclic(*bounds, period)
    assert shifted(done) == pytest.approx(plain(done + phase * period), abs=1e-9 * bounds[1] * (1 + done / period))


@given(BOUNDS, PERIODS, TIMES)
def test_opposite_phases_add_up_to_low_and_high(bounds: list[float], period: float, done: float) -> None:
    both = Cyclic(*bounds, period)(done) + Cyclic(*bounds, period, 0.5)(done)
    assert both == pytest.approx(sum(bounds))


@given(BOUNDS, st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_one_cycle_keeps_its_bounds_and_has_its_top_in_the_middle(
    bounds: list[float], length: float, start: float, done: float
) -> None:
    cycle = OneCycle(*bounds, length, start * (1 - length))
    assert bounds[0] / 100 * (1 - 1e-12) <= cycle(done) <= bounds[1] * (1 + 1e-12)
    assert cycle(cycle.start + length / 2) == pytest.approx(bounds[1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("linear", "constant, step, cosine, cyclic:low=L,high=H,period=P,phase=F, or one-cycle"),
        ("cyclic", "low and high and period must be there"),
        ("cyclic:low=0.1,high=1", "period must be there"),
        ("cyclic:low=0.1,high=1,periods=4", "low=NUMBER, high=NUMBER, period=NUMBER, phase=NUMBER, .*'periods=4'"),
        ("cyclic:low=0.1,high=1,period=4,low=0.2", "'low=0.2' is not one of these, or not the only one"),
        ("cyclic:low=0.1,high=one,period=4", "'high=one'"),
        ("cyclic:low=0.1,high=inf,period=4", "'high=inf'"),
        ("cyclic:low=0.1,high=1,period=4,", "''"),
        ("cyclic:low=0,high=1,period=4", "low = 0 must be above 0"),
        ("cyclic:low=0.5,high=0.1,period=4", "low = 0.5 .* high = 0.1"),
        ("cyclic:low=0.5,high=1001,period=4", "at most 1000"),
        ("cyclic:low=0.1,high=1,period=0", "period = 0 must be at least 0.01"),
        ("cyclic:low=0.1,high=1,period=4,phase=1", "phase = 1 must be at least 0 and below 1"),
        ("one-cycle:low=0.1,high=1,period=4", "'period=4'"),
        ("one-cycle:low=0.1,high=1,length=1.5", "length = 1.5 must be a fraction"),
        ("one-cycle:low=0.1,high=1,start=0.2", "start = 0.2 must be at least 0, and with its length at most 1"),
        ("one-cycle:low=0.1,high=1,start=-0.2", "start = -0.2"),
    ],
)
def test_a_wrong_schedule_says_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedule(text, 10)
