"""What was recorded is done again: on the same tensors, with the numbers that Python had then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sglr_flower.models import upstream
from sglr_flower.split import optimizers
from sglr_flower.split.recording import Recorder

CPU = torch.device("cpu")


def test_a_recording_computes_with_what_its_tensors_hold_now() -> None:
    given, result = torch.tensor([1.0, 2.0]), torch.zeros(2)
    factor = 3.0
    ran = []

    def scale() -> None:
        ran.append(1)
        result.copy_(given.view(1, 2).mul(factor).unsqueeze_(0).flatten())

    recorder = Recorder(CPU)
    assert recorder.attempt(scale) == ""
    replay = recorder.record(scale)
    assert result.tolist() == [3.0, 6.0]
    given.copy_(torch.tensor([5.0, 7.0]))
    factor = 100.0  # Python's numbers are what they were
    replay()

    assert result.tolist() == [15.0, 21.0]
    assert len(ran) == 2


OPTIMIZERS = (
    optimizers.ADAM,
    optimizers.SGD,
    optimizers.StandardOptimizer("adamw", weight_decay=0.1),
    optimizers.StandardOptimizer("adam", weight_decay=0.1),
    optimizers.StandardOptimizer("sgd", 0.9, 0.01),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_recorded_training_step_is_that_of_python(optimizer: optimizers.StandardOptimizer) -> None:
    """Forward, backward and update of stacked layers; a rate that changes; every step from another input."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Tanh()).double()
    start = {name: torch.randn(2, *weight.shape).double() for name, weight in module.named_parameters()}
    inputs, upper = torch.randn(6, 2, 5, 4).double(), torch.randn(6, 2, 5, 3).double()
    rates = [0.1 / (k + 1) for k in range(6)]

    def prepared() -> tuple[dict[str, Tensor], Callable[[Tensor, Tensor, float | Tensor], None]]:
        weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        buffers = {name: torch.stack([buffer, buffer]).clone() for name, buffer in module.named_buffers()}
        update = optimizer.stacked(list(weights.values()), alike=True)

        def step(given: Tensor, gradient: Tensor, lr: float | Tensor) -> None:
            output = vmap(lambda w, b, x: functional_call(module, (w, b), (x,)))(weights, buffers, given)
            upstream.scalar(output, gradient).backward()
            update.lr = lr
            update.step()
            update.zero_grad()

        return {**weights, **buffers}, step

    expected, step = prepared()
    for given, gradient, rate in zip(inputs, upper, rates, strict=True):
        step(given, gradient, rate)

    ours, step = prepared()
    given, gradient, lr = inputs[0].clone(), upper[0].clone(), torch.tensor(rates[0], dtype=torch.float64)
    recorder = Recorder(CPU)
    assert recorder.attempt(lambda: step(given, gradient, lr)) == ""
    replay = None
    for k in range(1, 6):
        given.copy_(inputs[k])
        gradient.copy_(upper[k])
        lr.fill_(rates[k])
        if replay is None:
            replay = recorder.record(lambda: step(given, gradient, lr))
        else:
            replay()

    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(ours["0.weight"], start["0.weight"])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: nn.functional.dropout(x, 0.5), "it draws random numbers"),
        (lambda x: x * float(x.sum()), "it waits for a value that was computed"),
        (lambda x: x[x > 0], "the shape of a result depends on the values"),
    ],
)
def test_what_cannot_be_recorded_is_done_and_told(function: Callable[[Tensor], Tensor], reason: str) -> None:
    given, done = torch.ones(3), []
    assert Recorder(CPU).attempt(lambda: done.append(function(given))).startswith(reason)
    assert len(done) == 1
