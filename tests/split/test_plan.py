"""What a plan says of a step is what its batches are."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 12), max_size=4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_sizes_at_a_step_are_those_of_the_batches(
    samples: dict[int, int], epochs: int, batch_size: int, server_round: int
) -> None:
    some = replace(
        PLAN,
        clients=tuple(range(0, 10, 2)),
        local_epochs=epochs,
        batch_size=batch_size,
        server_round=server_round,
    )
    batches = {i: some.batches(i, n) for i, n in samples.items() if i in some.clients}
    for step in range(max((len(found) for found in batches.values()), default=0) + 2):
        expected = {i: len(found[step]) for i, found in sorted(batches.items()) if step < len(found)}
        assert list(some.sizes_at(step, samples).items()) == list(expected.items())


def test_without_samples_nobody_has_a_batch() -> None:
    assert PLAN.sizes_at(0, {}) == {}
    assert PLAN.sizes_at(0, {0: 0, 1: 3}) == {1: 3}
