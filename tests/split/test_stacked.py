"""Clients computed together have the weights of a loop over them, and both work on the same memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import plans
import pytest
import safetensors.torch
import torch
from integration.runs import final_weights, largest_difference
from reference import plain_loop
from torch import Tensor, nn
from torch.testing import assert_close

from sglr_flower.data.samples import Batch
from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import loss as losses
from sglr_flower.split import optimizers, rounds, stacked
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.optimizers import ADAM, SGD, OptimizerFactory, StandardOptimizer
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import LocalLink, TrainSession
from sglr_flower.split.server import ServerSegment

Build = Callable[[int], nn.Module]
EQUAL = {0: 8, 1: 8, 2: 8, 3: 8}
OPTIMIZERS = (ADAM, SGD, StandardOptimizer("adamw", weight_decay=0.1), StandardOptimizer("sgd", 0.9, 0.01))
RAGGED = {0: 7, 1: 4, 2: 10, 3: 2}
PLAN = replace(plans.PLAN, clients=tuple(EQUAL), client_lr=1e-3, alpha=0.5, phi=0.5)


def images(count: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 16, 16), generator=draw, dtype=torch.uint8)
    return Batch(pixels, torch.randint(0, 10, (count,), generator=draw))


def model(dtype: str = "float64"):
    return assembly.model(RunConfig.parse({"dtype": dtype}))


def cohort(sizes: dict[int, int], optimizer: OptimizerFactory = ADAM, build: Build | None = None, **options) -> Cohort:
    data = {client: images(size, client) for client, size in sizes.items()}
    return Cohort(data, build or model().client_segment, optimizer, torch.float64, **options)


def server(optimizer: OptimizerFactory = ADAM) -> ServerSegment:
    return ServerSegment(model().server_segment(), optimizer)


def weights(trained: Cohort) -> dict[str, Tensor]:
    return {f"{i}.{name}": tensor.clone() for i in trained.clients for name, tensor in trained.state(i).items()}


def train(trained: Cohort, upper: ServerSegment, plans: Iterable[RoundPlan]) -> dict[str, Tensor]:
    """Train rounds; the clients' weights, buffers and moments."""
    for plan in plans:
        rounds.train_round(upper, plan, LocalLink({0: TrainSession(trained, plan)}))
    return weights(trained)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients were computed together, forward by forward."""
    counts: list[int] = []
    forward = stacked.Stack.forward

    def counted(self, clients, inputs, lr, **options):
        counts.append(len(clients))
        return forward(self, clients, inputs, lr, **options)

    monkeypatch.setattr(stacked.Stack, "forward", counted)
    return counts


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda factory: factory.name)
@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_clients_together_have_the_weights_of_a_loop(
    phi: float, optimizer: StandardOptimizer, together: list[int]
) -> None:
    plans = [replace(PLAN, server_round=k, phi=phi, client_lr=1e-3 / k) for k in (1, 2)]
    start = weights(cohort(EQUAL, optimizer))
    loop = train(cohort(EQUAL, optimizer), server(optimizer), plans)
    assert not together

    stack = train(cohort(EQUAL, optimizer, stacked=True), server(optimizer), plans)

    assert together == [4] * 4  # two rounds of two steps
    assert_same(stack, loop)
    assert all(not torch.equal(stack[name], start[name]) for name in start)
    assert {int(count) for name, count in stack.items() if name.endswith("num_batches_tracked")} == {4}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda factory: factory.name)
def test_clients_who_missed_rounds_are_at_steps_of_their_own(optimizer: StandardOptimizer, together: list[int]) -> None:
    taking_part = [(0, 1, 2), (1, 3), (2,), (0, 1, 2, 3), (0, 1)]
    plans = [replace(PLAN, server_round=k, clients=clients) for k, clients in enumerate(taking_part, start=1)]

    loop = train(cohort(EQUAL, optimizer), server(optimizer), plans)
    stack = train(cohort(EQUAL, optimizer, stacked=True), server(optimizer), plans)

    assert together == [3, 3, 2, 2, 4, 4, 2, 2]
    assert_same(stack, loop)
    if optimizer.name != "sgd":
        assert [int(stack[f"{client}.optimizer.0.step"]) for client in EQUAL] == [6, 8, 6, 4]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda factory: factory.name)
def test_batches_of_a_size_are_computed_together(optimizer: StandardOptimizer, together: list[int]) -> None:
    plans = [replace(PLAN, server_round=k, local_epochs=2) for k in (1, 2)]

    loop = train(cohort(RAGGED, optimizer), server(optimizer), plans)
    stack = train(cohort(RAGGED, optimizer, stacked=True), server(optimizer), plans)

    assert together[:5] == [1, 3, 1, 1, 2]  # batches of 2, 4; then of 2, 3, 4
    assert_same(stack, loop)


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "own_parts:weighted"])
def test_local_training_together_is_that_of_a_loop(loss: str, together: list[int]) -> None:
    plan = replace(PLAN, loss=losses.get(loss), server=None, local_epochs=2)
    ends = []
    for form in (False, True):
        trained = cohort(RAGGED, build=model().whole, stacked=form)
        ends.append((rounds.train_locally(trained, plan), weights(trained)))
    (loop, theirs), (stack, ours) = ends

    assert together[:5] == [1, 3, 1, 1, 2]
    assert_same(ours, theirs)
    assert (stack.steps, stack.samples) == (loop.steps, loop.samples) == (6, 46)
    assert stack.loss == pytest.approx(loop.loss, rel=1e-12)


@pytest.mark.parametrize("method", ["sglr", "sfl-v1", "fedavg"])
def test_a_run_with_stacked_cohorts_has_the_weights_of_a_plain_loop(method: str, tmp_path: Path) -> None:
    config = RunConfig.parse(
        {
            "method": method,
            "cohort": "stacked",
            "num-clients": 5,
            "image-size": 8,
            "samples-per-client": 20,  # two batches of 8 and one of 4
            "fraction-train": 0.6,
            "num-server-rounds": 3,
            "evaluate-samples": 10,
            "dtype": "float64",
            "run-dir": str(tmp_path / "run"),
        }
    )
    inprocess.run(config, num_nodes=2)

    assert largest_difference(final_weights(tmp_path / "run"), plain_loop(config)) < 1e-9


def test_clients_are_computed_together_in_mixed_precision_too(together: list[int]) -> None:
    """An output's distance from float32 is that of bfloat16, whichever way clients are computed."""
    drawn = {mixed: assembly.model(RunConfig.parse({"autocast": mixed})) for mixed in ("none", "bfloat16")}
    data, outputs = {client: images(4, client) for client in EQUAL}, {}
    for kind, mixed, is_stacked in (("exact", "none", False), ("loop", "bfloat16", False), ("stack", "bfloat16", True)):
        trained = Cohort(data, drawn[mixed].client_segment, ADAM, stacked=is_stacked)
        trained.begin(PLAN)
        outputs[kind] = trained.forward(PLAN, 0).smashed
    assert together == [4]
    rounding = (outputs["loop"] - outputs["exact"]).norm()
    assert 0 < (outputs["stack"] - outputs["exact"]).norm() < 1.5 * rounding
    assert (outputs["stack"] - outputs["loop"]).norm() < 1.5 * rounding < 0.02 * outputs["exact"].norm()


def test_states_are_saved_and_loaded_as_without_a_stack() -> None:
    plans = [replace(PLAN, server_round=k, clients=clients) for k, clients in ((1, (0, 1, 2)), (2, (0, 1, 3)))]
    loop = train(cohort(EQUAL), server(), plans)

    upper, first = server(), cohort(EQUAL, stacked=True)
    train(first, upper, plans[:1])
    assert set(first.states()) == {0, 1, 2}
    blob = safetensors.torch.save({f"{i}.{k}": v.detach() for i, own in first.states().items() for k, v in own.items()})
    kept: dict[int, dict[str, Tensor]] = {}
    for key, tensor in safetensors.torch.load(blob).items():
        client, name = key.split(".", 1)
        kept.setdefault(int(client), {})[name] = tensor
    later = cohort(EQUAL, stacked=True, states=kept)

    assert_same(train(later, upper, plans[1:]), loop)


@pytest.mark.parametrize("form", ["loop", "stacked"])
def test_a_shared_segment_is_loaded_and_averaged(form: str) -> None:
    expected = cohort(EQUAL)
    train(expected, server(), [PLAN])
    mean, samples = expected.average(PLAN)
    expected.load_shared(mean, PLAN.clients)
    end = train(expected, server(), [replace(PLAN, server_round=2)])

    trained = cohort(EQUAL, stacked=form == "stacked")
    train(trained, server(), [PLAN])
    ours, count = trained.average(PLAN)
    trained.load_shared(ours, PLAN.clients)

    assert count == samples
    assert_same(ours, mean)
    assert_same(train(trained, server(), [replace(PLAN, server_round=2)]), end)


@pytest.mark.parametrize("sizes", [EQUAL, RAGGED])
def test_a_forward_for_its_graph_only_moves_no_statistics(sizes: dict[int, int]) -> None:
    straight, interrupted = cohort(sizes, stacked=True), cohort(sizes, stacked=True)
    session, upper = TrainSession(straight, PLAN), server()
    upload = session.start()
    downloads, _ = upper.step(PLAN, {0: upload})
    session.advance(downloads[0])

    TrainSession(interrupted, PLAN).start()
    later = TrainSession(interrupted, PLAN)  # another process: the graph of the forward is gone
    assert_close(later.restore(0).smashed, upload.smashed, rtol=0, atol=0)
    later.advance(downloads[0])

    assert_close(weights(interrupted), weights(straight), rtol=0, atol=0)


def test_a_new_cohort_for_every_step_goes_on_from_the_states() -> None:
    """As over Flower's messages, where any process may get a node's next one."""
    plan = replace(PLAN, clients=(0, 1, 3), local_epochs=2)
    loop = train(cohort(RAGGED), server(), [plan])

    trained, upper = cohort(RAGGED, stacked=True), server()
    upload = TrainSession(trained, plan).start()
    while upload is not None:
        downloads, _ = upper.step(plan, {0: upload})
        kept = {
            i: {name: tensor.detach().clone() for name, tensor in own.items()} for i, own in trained.states().items()
        }
        trained = cohort(RAGGED, stacked=True, states=kept)
        session = TrainSession(trained, plan)
        session.restore(upload.step)
        upload = session.advance(downloads[0])

    assert_same(weights(trained), loop)


def test_of_a_stack_no_more_is_kept_than_who_is_in_it() -> None:
    trained = cohort(EQUAL, stacked=True)
    for k, clients in enumerate([(0, 1, 2, 3), (0, 1), (2, 3)], start=1):
        train(trained, server(), [replace(PLAN, server_round=k, clients=clients)])

    for client in (0, 1):
        for name, tensor in trained.state(client).items():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def dropout(client: int) -> nn.Module:
    torch.manual_seed(client)
    return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.Dropout(0.3)).double()


class Reading(nn.Module):
    """Reads a number out of its batch, as vmap cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().abs().mean() < 100)


class Counting(nn.Module):
    """Puts a new tensor where its buffer was, which vmap's caller never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x


def ending_in(last: type[nn.Module]) -> Build:
    def build(client: int) -> nn.Module:
        torch.manual_seed(client)
        return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), last()).double()

    return build


@pytest.mark.parametrize(
    ("build", "said"),
    [(dropout, "random"), (ending_in(Reading), "vmap"), (ending_in(Counting), "its buffer 1.count moves otherwise")],
)
def test_what_cannot_be_computed_together_is_looped_over(
    build: Build, said: str, together: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    plans = [PLAN, replace(PLAN, server_round=2)]
    loop = train(cohort(EQUAL, build=build), server(), plans)
    with caplog.at_level(logging.INFO, "flwr.sglr"):
        stack = train(cohort(EQUAL, build=build, stacked=True), server(), plans)

    assert not together
    assert_close(stack, loop, rtol=0, atol=0)
    (record,) = caplog.records  # tried once
    assert "one after the other" in record.message
    assert said in record.message


def test_with_recompute_clients_are_looped_over(together: list[int]) -> None:
    loop = train(cohort(EQUAL), server(), [PLAN])
    assert_close(train(cohort(EQUAL, stacked=True, recompute=True), server(), [PLAN]), loop, rtol=0, atol=0)
    assert not together


def test_frozen_weights_stay_as_they_are() -> None:
    def build(client: int) -> nn.Module:
        segment = model().client_segment(client)
        next(segment.parameters()).requires_grad_(False)
        return segment

    loop = train(cohort(EQUAL, build=build), server(), [PLAN])
    stack = train(cohort(EQUAL, build=build, stacked=True), server(), [PLAN])

    assert_same(stack, loop)
    assert "0.optimizer.0.step" not in stack


@pytest.mark.parametrize(("cohort_key", "expected"), [("auto", False), ("loop", False), ("stacked", True)])
def test_the_run_config_chooses(cohort_key: str, expected: bool, together: list[int]) -> None:
    config = RunConfig.parse({"cohort": cohort_key, "num-clients": 2, "samples-per-client": 16})
    trained = assembly.cohort(config, [0, 1])  # on a CPU: without a GPU auto is the loop
    TrainSession(trained, assembly.plan(config, 1)).start()
    assert bool(together) == (expected or (cohort_key == "auto" and trained.device.type == "cuda"))


def test_adam_of_many_clients_is_torchs_for_each() -> None:
    draw = torch.Generator().manual_seed(0)
    start, steps = torch.randn(3, 4, 2, dtype=torch.float64, generator=draw), [0, 5, 400]
    alone = [nn.Parameter(row.clone()) for row in start]
    singles = [optimizers.ADAM([parameter]) for parameter in alone]
    for single, step in zip(singles, steps, strict=True):
        single.lr = 0.01
        if step:
            moments = {
                name: torch.rand(4, 2, dtype=torch.float64, generator=draw) for name in ("exp_avg", "exp_avg_sq")
            }
            single.load_state({0: {"step": torch.tensor(float(step)), **moments}})
    zeros = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(start[0]), "exp_avg_sq": torch.zeros_like(start[0])}
    states = [single.state().get(0, zeros) for single in singles]
    rows = start.clone().requires_grad_()
    ours = optimizers.ADAM.stacked([rows])
    ours.lr = 0.01
    ours.adopt({0: {name: torch.stack([state[name] for state in states]) for name in zeros}})

    for _ in range(3):
        gradient = torch.randn(3, 4, 2, dtype=torch.float64, generator=draw)
        rows.grad = gradient.clone()
        ours.step()
        for parameter, single, own in zip(alone, singles, gradient, strict=True):
            parameter.grad = own.clone()
            single.step()

    assert_close(rows.detach(), torch.stack([parameter.detach() for parameter in alone]), rtol=1e-13, atol=1e-15)
    for name in zeros:
        theirs = torch.stack([single.state()[0][name] for single in singles])
        assert_close(ours.state()[0][name], theirs, rtol=1e-13, atol=0)
