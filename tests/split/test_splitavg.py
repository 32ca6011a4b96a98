"""SplitAvg by hand-computed arrays, by statistics, and by properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from sglr_flower.seeds import generator
from sglr_flower.split.splitavg import average, draw_active, in_phase, num_active, received


@pytest.mark.parametrize(
    ("phi", "clients", "expected"),
    [
        (0.0, 20, 0),
        (0.25, 20, 5),
        (0.5, 20, 10),
        (0.75, 20, 15),
        (1.0, 20, 20),
        (0.25, 2, 1),
        (0.25, 1, 0),
        (0.5, 1, 1),
    ],
)
def test_number_of_active_clients(phi: float, clients: int, expected: int) -> None:
    assert num_active(phi, clients) == expected


def test_average_is_taken_position_by_position_over_the_active_clients_only() -> None:
    gradients = {
        0: tensor([[1.0, 2.0], [3.0, 4.0]]),
        1: tensor([[100.0, 100.0], [100.0, 100.0]]),
        2: tensor([[3.0, 6.0], [5.0, 0.0]]),
    }

    assert_close(average(gradients, [0, 2]), tensor([[2.0, 4.0], [4.0, 2.0]]))


def test_ragged_positions_are_averaged_over_the_clients_that_have_them_by_batch_size() -> None:
    # b = 3, 1, 2: at position 0 the weights are 3/6, 1/6, 2/6; at position 1 3/5 and 2/5; at 2 only client 0.
    gradients = {0: tensor([[6.0], [5.0], [7.0]]), 1: tensor([[12.0]]), 2: tensor([[3.0], [10.0]])}

    assert_close(average(gradients, [0, 1, 2]), tensor([[(18 + 12 + 6) / 6], [(15 + 20) / 5], [7.0]]))


def test_average_over_samples_too_is_one_row_that_every_position_receives() -> None:
    gradients = {0: tensor([[1.0], [2.0], [3.0]]), 1: tensor([[10.0]])}

    mean = average(gradients, [0, 1], "clients-and-samples")

    assert_close(mean, tensor([[4.0]]))
    assert_close(received(mean, 3), tensor([[4.0], [4.0], [4.0]]))


def test_a_client_with_a_smaller_batch_receives_the_first_positions() -> None:
    mean = tensor([[1.0], [2.0], [3.0]])

    assert_close(received(mean, 2), tensor([[1.0], [2.0]]))


def test_sampling_is_uniform_over_many_draws() -> None:
    draws, clients, phi = 4000, tuple(range(10, 20)), 0.3
    counts = dict.fromkeys(clients, 0)
    for step in range(draws):
        for client in draw_active(clients, phi, generator(1, "test", step)):
            counts[client] += 1

    # Each client is active with probability 0.3: 4000 * 0.3 = 1200 with a standard deviation of 29; 5 of them.
    assert all(abs(count - 1200) < 145 for count in counts.values()), counts


def test_pairs_are_active_together_as_often_as_without_replacement() -> None:
    draws, clients = 4000, tuple(range(6))
    together = sum({0, 1} <= set(draw_active(clients, 0.5, generator(2, "test", step))) for step in range(draws))

    # 3 of 6 without replacement: 3/6 * 2/5 = 0.2 (0.25 if drawn independently); standard deviation 25.
    assert abs(together - 800) < 126


@pytest.mark.parametrize(
    ("phase", "acting"),
    [
        ("all", range(1, 11)),
        ("first:0.6", range(1, 7)),
        ("first:0.4", range(1, 5)),
        ("last:0.6", range(5, 11)),
        ("last:0.4", range(7, 11)),
        ("last:1", range(1, 11)),
    ],
)
def test_phases_of_ten_rounds(phase: str, acting: range) -> None:
    assert [r for r in range(1, 11) if in_phase(phase, r, 10)] == list(acting)


@pytest.mark.parametrize("phase", ["", "none", "first", "first:", "first:0", "first:1.1", "middle:0.5", "last:x"])
def test_a_wrong_phase_says_what_is_allowed(phase: str) -> None:
    with pytest.raises(ValueError, match="all, first:F or last:F"):
        in_phase(phase, 1, 10)


def gradients(equal: bool = False) -> st.SearchStrategy[dict[int, torch.Tensor]]:
    """Cut gradients of 1 to 6 clients with batches of 1 to 5 samples of 3 values."""

    def make(sizes: list[int], seed: int) -> dict[int, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        if equal:
            sizes = [sizes[0]] * len(sizes)
        return {i: torch.randn(size, 3, generator=draw, dtype=torch.float64) for i, size in enumerate(sizes)}

    return st.builds(make, st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2**31))


@given(gradients(), st.integers(0, 1000))
def test_phi_zero_leaves_nobody_active(own: dict[int, torch.Tensor], seed: int) -> None:
    assert draw_active(tuple(own), 0.0, generator(seed, "test")) == ()


@given(gradients())
def test_the_average_of_one_client_is_its_own_gradient(own: dict[int, torch.Tensor]) -> None:
    assert_close(average(own, [0]), own[0])


@settings(max_examples=200)
@given(gradients(), st.sampled_from(["clients", "clients-and-samples"]))
def test_the_weighted_sum_over_active_clients_is_kept(own: dict[int, torch.Tensor], over: str) -> None:
    """Averaging moves gradient between clients but keeps the delta-weighted total."""
    mean = average(own, list(own), over)
    before = sum(len(gradient) * gradient.sum(0) for gradient in own.values())
    after = sum(len(gradient) * received(mean, len(gradient)).sum(0) for gradient in own.values())

    if over == "clients":
        assert_close(after, before)
    else:
        # Over samples the delta-weighted *mean* per sample is kept.
        samples = sum(len(gradient) for gradient in own.values())
        assert_close(mean[0], sum(gradient.sum(0) for gradient in own.values()) / samples)


@given(gradients(equal=True))
def test_with_equal_batches_it_is_the_plain_mean(own: dict[int, torch.Tensor]) -> None:
    assert_close(average(own, list(own)), torch.stack(list(own.values())).mean(0))


@given(st.permutations(range(5)), st.integers(0, 2**31))
def test_the_order_of_the_active_clients_does_not_matter(order: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    own = {i: torch.randn(i + 1, 2, generator=draw, dtype=torch.float64) for i in range(5)}

    assert_close(average(own, order), average(own, range(5)))
