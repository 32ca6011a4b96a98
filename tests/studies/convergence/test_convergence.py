"""What `sglr analyze` measures, on networks small enough for their gradients and smoothness to be known by hand."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower.split.optimizers import ADAM, SGD, StandardOptimizer
from sglr_flower.split.plan import RoundPlan
from sglr_flower.studies.convergence.convergence import _compared, _gradients, _ratio, measure, relative_spread, spread
from sglr_flower.studies.convergence.point import Batches, Point, Side, metric, update
from sglr_flower.studies.convergence.smoothness import MULTIPLES, along_step


def plan(**changes: object) -> RoundPlan:
    values = {
        "seed": 0,
        "server_round": 1,
        "clients": (0, 1),
        "local_epochs": 1,
        "batch_size": 1,
        "reshuffle": True,
        "client_lr": 0.1,
        "alpha": 0.0,
        "phi": 0.0,
        "average_over": "clients",
        "gradient_scale": "own",
        "loss": squared,
    }
    return RoundPlan(**{**values, **changes})
    values = {"clients": (0, 1), "batch_size": 1, "loss": "squared"}
    return replace(PLAN, **{**values, **changes})


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance, mean over samples: with linear networks everything is known."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def fixed(weight: list[list[float]]) -> nn.Linear:
    return linear(weight).requires_grad_(False)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- cut gradients ---


def test_norms_and_cosine_by_hand() -> None:
    assert _compared(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])) == pytest.approx((5.0, 2.0, 0.8))
    assert _compared(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])) == (0.0, 2.0, 0.0)


def test_two_clients_with_known_cut_gradients() -> None:
    """Client 0 passes (3, 0) on and client 1 (0, 1); the server is the identity and the targets are 0.

    A client's own cut gradient is its own batch's, (3, 0) and (0, 1), whatever the joint batch; their average
    (1.5, 0.5) is of norm sqrt(2.5) and at cosines 3 / sqrt(10) and 1 / sqrt(10).
    """
    identity = [[1.0, 0.0], [0.0, 1.0]]
    there = Point(
        {i: Side(linear(identity), {}) for i in (0, 1)}, Side(linear(identity), {}), plan(phi=1.0, client_lr=0.1), SGD
    )
    batches: Batches = {0: (rows([3, 0]), rows([0, 0])), 1: (rows([0, 1]), rows([0, 0]))}
    cut, gradients, _ = measure(there, [batches] * 3)

    assert cut is not None
    assert cut.active == 2
    assert (cut.own_norm, cut.average_norm) == pytest.approx(((3 + 1) / 2, math.sqrt(2.5)))
    assert cut.cosine == pytest.approx((3 + 1) / math.sqrt(10) / 2)
    # Weights' gradients are g x^T: own 9 and 1 at one place each; received (4.5, 1.5) and (0.5 * 1, 1.5 * 1).
    assert gradients.client_norm2 == pytest.approx(0.5 * 81 + 0.5 * 1)
    assert gradients.bias2 == pytest.approx(0.5 * ((4.5 - 9) ** 2 + 1.5**2) + 0.5 * (1.5**2 + (0.5 - 1) ** 2))
    assert gradients.kept == pytest.approx((0.5 * 4.5 * 9 + 0.5 * 0.5 * 1) / 41)
    # The server's gradient is the mean of o x^T over both samples: 9/2 and 1/2; the same batches have no variance.
    assert gradients.norm2 == pytest.approx(41 + 4.5**2 + 0.5**2)
    assert (gradients.variance, gradients.own_variance) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert gradients.kept_error == pytest.approx(0.0, abs=1e-9)


def test_where_nobody_is_active_there_is_no_bias() -> None:
    there = Point({i: Side(linear([[1.0]]), {}) for i in (0, 1)}, Side(linear([[2.0]]), {}), plan(), SGD)
    steps: list[Batches] = [{i: (rows([x + i]), rows([1.0])) for i in (0, 1)} for x in (1.0, 2.0, 4.0)]
    cut, gradients, _ = measure(there, steps)

    assert cut is None
    assert (gradients.bias2, gradients.kept, gradients.kept_error) == pytest.approx((0.0, 1.0, 0.0))
    assert gradients.variance == gradients.own_variance > 0


@pytest.mark.parametrize("count", [2, 3])
def test_of_a_clients_own_gradient_one_nth_is_kept_where_others_say_nothing_about_it(count: int) -> None:
    """All sign patterns of the clients' inputs x_i, targets 3 x_i and weights 1: the own gradient is x (x - 3 x) = -2.

    Received from the average of all n it is -2 x_i mean(x_j), of which x_i's own part is 1/n and the rest 0 on average.
    """
    clients = {i: Side(linear([[1.0]]), {}) for i in range(count)}
    there = Point(clients, Side(linear([[1.0]]), {}), plan(clients=tuple(range(count)), phi=1.0), SGD)
    steps: list[Batches] = [
        {i: (rows([sign]), rows([3 * sign])) for i, sign in enumerate(signs)}
        for signs in itertools.product((-1.0, 1.0), repeat=count)
    ]
    _, gradients, _ = measure(there, steps)

    assert gradients.client_norm2 == pytest.approx(4.0)
    assert gradients.kept == pytest.approx(1 / count)


# --- expectations from draws ---


def test_squares_of_expectations_are_taken_from_pairs_of_different_draws() -> None:
    # Draws 1, 2, 6 of a server gradient: pairs 1*2, 1*6, 2*6, mean 20/3; mean square 41/3, so the variance is 7.
    found = _gradients({"server": rows([1], [2], [6]), "own": rows([0], [0], [0]), "received": rows([0], [0], [0])})
    assert (found.norm2, found.variance) == pytest.approx((20 / 3, 7.0))
    assert found.variance == pytest.approx(torch.tensor([1.0, 2.0, 6.0]).var().item())


def test_they_are_unbiased() -> None:
    """Mean (1, 1), noise of variance 2 in each of 2 numbers: ||E||^2 = 2 and sigma^2 = 4, over 4000 trials of 4 draws.

    ||mean of 4||^2 would be 2 + 4/4 = 3. The standard errors are below 0.06.
    """
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(4000):
        own = 1 + math.sqrt(2) * torch.randn(4, 2, generator=draw, dtype=torch.float64)
        nothing = torch.zeros(4, 1, dtype=torch.float64)
        found.append(_gradients({"server": nothing, "own": own, "received": 0.25 * own}))
    assert sum(one.norm2 for one in found) / 4000 == pytest.approx(2, abs=0.2)
    assert sum(one.own_variance for one in found) / 4000 == pytest.approx(4, abs=0.2)
    assert sum(one.variance for one in found) / 4000 == pytest.approx(4 / 16, abs=0.02)
    assert sum(one.bias2 for one in found) / 4000 == pytest.approx(2 * 0.75**2, abs=0.2)
    assert all(one.kept == pytest.approx(0.25) for one in found)


def test_the_error_of_a_ratio_is_that_of_leaving_one_out() -> None:
    # Draws a = 1, 2, 3 and b = 2, 1, 5: <E b, E a> = (1*1 + 1*5 + 2*2 + 2*5 + 3*2 + 3*1) / 6 = 29/6, <E a, E a> = 11/3.
    a, b = rows([1], [2], [3]), rows([2], [1], [5])
    ratio, error = _ratio(b @ a.T, a @ a.T)
    without = [(2 * 5 + 3 * 1) / 2 / 6, (1 * 5 + 3 * 2) / 2 / 3, (1 * 1 + 2 * 2) / 2 / 2]
    mean = sum(without) / 3
    assert ratio == pytest.approx(29 / 22)
    assert error == pytest.approx(math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in without)))


# --- spread ---


def test_spread_by_hand() -> None:
    # Mean (1, 1), distances sqrt(2) each; norms 2 and 2: sqrt(2 / 4).
    assert relative_spread([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])]) == pytest.approx(math.sqrt(0.5))
    assert relative_spread([torch.ones(3)] * 4) == 0.0
    assert relative_spread([torch.zeros(3)] * 2) == 0.0


@given(st.integers(2, 6), st.floats(0.1, 10), st.integers(0, 100))
def test_spread_is_of_no_unit_and_that_of_orthogonal_vectors_at_most(count: int, scale: float, seed: int) -> None:
    vectors = list(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    found = relative_spread(vectors)
    assert 0 <= found <= 1 + 1e-12
    assert relative_spread([scale * vector for vector in vectors]) == pytest.approx(found)
    assert relative_spread(list(torch.eye(count))) == pytest.approx(math.sqrt(1 - 1 / count))


def test_the_same_function_may_be_of_different_weights() -> None:
    """A ReLU network with its two hidden numbers exchanged."""
    first = nn.Sequential(linear([[1.0], [-2.0]]), nn.ReLU(), fixed([[1.0, 1.0]]))
    second = nn.Sequential(linear([[-2.0], [1.0]]), nn.ReLU(), fixed([[1.0, 1.0]]))
    found = spread({0: Side(first, {}), 1: Side(second, {})}, rows([1.0], [-1.0], [0.5]))
    # Weights (1, -2) and (-2, 1): mean (-0.5, -0.5), squared distances 4.5, squared norms 5.
    assert found.weights == pytest.approx(math.sqrt(4.5 / 5))
    assert found.function == 0.0


# --- along the step ---


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_smoothness_and_loss_along_the_step_of_a_quadratic(alpha: float) -> None:
    """Two clients w_0, w_1 of one weight each and a fixed server: L = (w_0^2 + 9 w_1^2) / 4 with inputs 1 and 3.

    At (1, 1) own gradients are 1 and 9, the step is -0.1 (1, 9). The Hessian is diag(1/2, 9/2), and along (1, 9) the
    gradient turns by |(0.5, 40.5)| / |(1, 9)|. In the metric, where clients weigh 1 / delta = 2: the same, times 2.
    """
    there = Point(
        {i: Side(linear([[1.0]]), {}) for i in (0, 1)},
        Side(nn.Sequential(fixed([[1.0]])), {}),
        plan(alpha=alpha),
        SGD,
    )
    batches: Batches = {0: (rows([1.0]), rows([0.0])), 1: (rows([3.0]), rows([0.0]))}
    _, _, along = measure(there, [batches] * 3)

    smooth = math.hypot(0.5, 40.5) / math.hypot(1, 9)
    assert along.smoothness == pytest.approx(smooth)
    assert along.rate_smoothness == pytest.approx(0.1 * 2 * smooth)  # the server has nothing to train
    expected = [((1 - 0.1 * t) ** 2 + 9 * (1 - 0.9 * t) ** 2) / 4 for t in (0.0, *MULTIPLES)]
    assert along.losses == pytest.approx(expected)


def test_in_the_metric_of_the_bound_the_servers_block_weighs_its_rate() -> None:
    """A fixed client and a server weight v with input 2: L = (2 v)^2 / 2, L'' = 4; kappa = 1^alpha = 1 for one client.

    With two clients and alpha 1 kappa is 2, so the server's smoothness counts twice.
    """
    one = Point({0: Side(fixed([[2.0]]), {})}, Side(linear([[3.0]]), {}), plan(clients=(0,), alpha=1.0), SGD)
    along = along_step(one, {0: (rows([1.0]), rows([0.0]))}, 0, [rows([12.0])], {0: []})
    assert (along.smoothness, along.rate_smoothness) == pytest.approx((4.0, 0.1 * 4))

    sides = {i: Side(fixed([[2.0]]), {}) for i in (0, 1)}
    two = Point(sides, Side(linear([[3.0]]), {}), plan(alpha=1.0), SGD)
    batches: Batches = {i: (rows([1.0]), rows([0.0])) for i in (0, 1)}
    along = along_step(two, batches, 0, [rows([12.0])], {0: [], 1: []})
    assert metric(two, batches) == (2.0, {0: 0.5, 1: 0.5})
    assert (along.smoothness, along.rate_smoothness) == pytest.approx((4.0, 0.1 * 2 * 4))
    assert along.losses[3] == pytest.approx((2 * (3 - 0.2 * 12)) ** 2 / 2)


def test_where_cut_gradients_are_of_the_joint_mean_a_clients_gradient_weighs_one() -> None:
    two = Point({i: Side(fixed([[2.0]]), {}) for i in (0, 1)}, Side(linear([[3.0]]), {}), plan(), SGD)
    joint = Point(two.clients, two.server, plan(gradient_scale="joint"), SGD)
    batches: Batches = {0: (rows([1.0]), rows([0.0])), 1: (rows([1.0], [1.0], [1.0]), rows([0.0], [0.0], [0.0]))}
    assert metric(two, batches) == (1.0, {0: 0.25, 1: 0.75})
    assert metric(joint, batches) == (1.0, {0: 1.0, 1: 1.0})


@pytest.mark.parametrize("optimizer", [ADAM, SGD])
def test_an_update_is_what_the_optimizer_does_next(optimizer: StandardOptimizer) -> None:
    layer = nn.Linear(3, 2, dtype=torch.float64)
    layer.bias.requires_grad_(False)
    stepping = optimizer(layer.parameters())
    stepping.lr = 0.1
    for k in (1, 2):
        layer.weight.grad = torch.full((2, 3), 0.5 * k, dtype=torch.float64)
        stepping.step()
    here = Side(copy.deepcopy(layer), copy.deepcopy(stepping.state()))
    gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (added,) = update(here, optimizer, [gradient], 0.1)
    before = layer.weight.detach().clone()
    layer.weight.grad = gradient.clone()
    stepping.step()
    torch.testing.assert_close(added, layer.weight.detach() - before)
    torch.testing.assert_close(here.segment.weight.detach(), before, rtol=0, atol=0)


def test_nothing_of_the_point_is_changed() -> None:
    """Weights, batch-norm statistics, modes, optimizer states, gradients and the caller's random numbers."""
    torch.manual_seed(3)
    clients = {i: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).eval() for i in (0, 1)}
    server = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    states = {}
    for name, segment in (*clients.items(), ("server", server)):
        stepping = ADAM(segment.parameters())
        F.cross_entropy(torch.zeros(1, 3) + sum(p.sum() for p in segment.parameters()), torch.tensor([1])).backward()
        stepping.lr = 0.01
        stepping.step()
        stepping.zero_grad()
        states[name] = stepping.state()
    there = Point(
        {i: Side(segment, states[i]) for i, segment in clients.items()},
        Side(server, states["server"]),
        plan(loss=F.cross_entropy, phi=0.5),
        ADAM,
    )
    before = copy.deepcopy([*(s.state_dict() for s in clients.values()), server.state_dict()])
    slots, random = copy.deepcopy(states), torch.get_rng_state()
    steps = [{i: (torch.randn(4, 4), torch.tensor([0, 1, 2, 0])) for i in (0, 1)} for _ in range(3)]
    torch.set_rng_state(random)

    first = measure(there, steps)
    spread(there.clients, steps[0][0][0])
    assert measure(there, steps) == first
    after = [*(s.state_dict() for s in clients.values()), server.state_dict()]
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    for name, old in slots.items():
        for index, kept in old.items():
            assert all(torch.equal(tensor, states[name][index][slot]) for slot, tensor in kept.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for segment in (*clients.values(), server) for module in segment.modules())
    assert all(p.grad is None for segment in (*clients.values(), server) for p in segment.parameters())
