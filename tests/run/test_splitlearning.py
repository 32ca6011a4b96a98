"""`SplitLearning`: its weights are a plain loop's and a run's, it goes on from a state, and says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sglr_flower as sglr
from sglr_flower.errors import UserError
from sglr_flower.run import checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.seeds import generator, seed_torch
from sglr_flower.split import codecs, methods, optimizers
from sglr_flower.split.defences import StandardDefence
from tests.own_task import lower, tables, upper

CLIENTS = 3
NAMES = [*methods.METHODS]
SAME = lower()


def trained(rounds: int = 3, **changes: Any) -> sglr.SplitLearning:
    settings: dict[str, Any] = {
        "lower": lower,
        "upper": upper,
        "clients": tables(),
        "optimizer": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
        "dtype": torch.float64,
        "seed": 3,
        "batch_size": 4,
    }
    run = sglr.SplitLearning(**{**settings, **changes})
    for done in run.rounds(rounds) if rounds else ():
        assert done.loss > 0
    return run


def plain(rounds: int, alpha: float, phi: float) -> list[nn.Module]:
    """Algorithm 1 in torch's own words, for tables of unequal sizes; client segments, and last the server's."""
    data = [(x.double(), y) for x, y in tables()]
    segments, server = [], nn.Module()
    for client in range(CLIENTS):
        with torch.random.fork_rng():
            seed_torch(torch.device("cpu"), 3, "model", client)
            segments.append(lower().double())
            server = upper().double() if client == 0 else server
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2, weight_decay=0.1) for each in (*segments, server)]
    for number in range(1, rounds + 1):
        orders = [
            torch.randperm(len(y), generator=generator(3, "order", client, number - 1)).split(4)
            for client, (_, y) in enumerate(data)
        ]
        for step in range(max(map(len, orders))):
            here = [client for client in range(CLIENTS) if step < len(orders[client])]
            smashed = {client: segments[client](data[client][0][orders[client][step]]) for client in here}
            sent = {client: own.detach().requires_grad_() for client, own in smashed.items()}
            labels = torch.cat([data[client][1][orders[client][step]] for client in here])
            outputs = server(torch.cat(list(sent.values())))
            optimizers[-1].param_groups[0]["lr"] = 1e-2 * len(here) ** alpha
            optimizers[-1].zero_grad()
            F.cross_entropy(outputs, labels).backward()
            optimizers[-1].step()
            own = {client: sent[client].grad * (len(labels) / len(sent[client])) for client in here}
            answered = received(own, phi, number, step)
            for client in here:
                optimizers[client].zero_grad()
                smashed[client].backward(answered[client])
                optimizers[client].step()
    return [*segments, server]


def received(own: dict[int, Tensor], phi: float, number: int, step: int) -> dict[int, Tensor]:
    """SplitAvg: a drawn fraction of the step's clients receive the average, position by position."""
    active = sglr.splitavg.draw_active(list(own), phi, generator(3, "active", number, step))
    if not active:
        return own
    length = max(len(own[client]) for client in active)
    average = []
    for position in range(length):
        having = [client for client in active if position < len(own[client])]
        total = sum(len(own[client]) * own[client][position] for client in having)
        average.append(total / sum(len(own[client]) for client in having))
    return {client: torch.stack(average)[: len(g)] if client in active else g for client, g in own.items()}


@pytest.mark.parametrize("phi", [0.0, 1.0])
def test_the_weights_are_those_of_a_plain_loop(phi: float) -> None:
    run = trained(method=sglr.methods.sglr(alpha=0.5, phi=phi))
    *segments, server = plain(3, 0.5, phi)
    for client, segment in enumerate(segments):
        network = run.network(client)
        near(network.lower.state_dict(), segment.state_dict())
        near(network.upper.state_dict(), server.state_dict())


def near(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "centralized"])
def test_the_weights_are_those_of_a_run_of_the_same_task(name: str, tmp_path: Path) -> None:
    settings = {
        "task": "tests.own_task:task",
        "method": name,
        "partition": "own",
        "num-clients": CLIENTS,
        "samples-per-client": 0,
        "batch-size": 4,
        "num-server-rounds": 2,
        "client-lr": 1e-2,
        "dtype": "float64",
        "seed": 3,
        "splitlr-alpha": 0.5,
        "splitavg-phi": 0.5,
        "run-dir": str(tmp_path / "run"),
    }
    inprocess.run(RunConfig.parse(settings), num_nodes=2)
    saved = RunDirectory(tmp_path / "run").latest_checkpoint()
    assert saved is not None

    method = methods.sglr(alpha=0.5, phi=0.5) if name == "sglr" else replace(methods.get(name), alpha=0.5, phi=0.5)
    run = trained(2, method=method, optimizer=partial(torch.optim.Adam, lr=1e-2))
    states = {client: optimizers.segment_weights(own) for client, own in saved.client_states(range(CLIENTS)).items()}
    if shared := saved.shared_weights():
        states = dict.fromkeys(range(CLIENTS), shared)
    assert len(states) == CLIENTS
    for client, theirs in states.items():
        ours = run.network(client).state_dict()
        near({name: tensor for name, tensor in ours.items() if name in theirs}, theirs)
    for key, tensor in optimizers.segment_weights(saved.server_state()).items():
        torch.testing.assert_close(run.network().state_dict()[key], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["sglr", "sfl", "sfl-v1", "ssl", "fedavg"])
def test_it_goes_on_from_a_state_as_if_nothing_had_been_in_between(name: str) -> None:
    method = methods.get(name)
    whole = trained(4, method=method)
    first = trained(2, method=method)
    state = first.state_dict()
    resumed = trained(3, method=method)  # what it has trained itself is forgotten
    resumed.load_state_dict(state)
    assert resumed.round == 2
    numbers = [done.number for done in resumed.rounds(2)]

    assert numbers == [3, 4]
    for client in range(CLIENTS):
        near(resumed.network(client).state_dict(), whole.network(client).state_dict())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clients": tables()[:2]}, "state: it must be what state_dict gave, with round, and 2 clients"),
        ({"upper": lambda: nn.Linear(12, 3)}, "state: the weights of server are not those of this network"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)}, "state: the optimizer of "),
    ],
)
def test_the_state_of_another_one_is_refused(changes: dict[str, Any], sentence: str) -> None:
    state = trained(1).state_dict()
    other = trained(0, **changes)
    with pytest.raises(UserError) as caught:
        other.load_state_dict(state)
    assert str(caught.value).startswith(sentence)
    assert other.round == 0


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_trained() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    trained(2)
    assert torch.equal(torch.rand(3), expected)


def test_a_network_is_what_is_evaluated() -> None:
    x, y = tables()[0]
    run = trained(1, defence=StandardDefence(clip=0.1), wire_up=codecs.parse("int8"))
    outputs = run.network(1)(x.double())
    assert run.evaluate((x, y)).losses[1] == pytest.approx(float(F.cross_entropy(outputs, y)))


def test_data_sets_pairs_and_arrays_are_the_same_data() -> None:
    as_arrays = [(x.numpy(), y.numpy()) for x, y in tables()]
    as_sets = [torch.utils.data.TensorDataset(x, y) for x, y in tables()]
    expected = trained(1).network(2).state_dict()
    for clients in (as_arrays, as_sets):
        near(trained(1, clients=clients).network(2).state_dict(), expected)


def test_a_module_that_is_there_already_is_where_the_server_begins() -> None:
    begins = upper().double()
    run = trained(0, upper=begins)
    near(run.network().upper.state_dict(), begins.state_dict())
    next(iter(run.rounds(1)))
    assert not torch.equal(run.network().upper[0].weight, begins[0].weight)  # and it stays as it was


def test_scores_are_of_whole_numbers_accuracies_and_of_others_squared_errors() -> None:
    x, y = tables()[0]
    run = trained(1)
    network = run.network(1)
    right = (network(x.double()).argmax(1) == y).double().mean()
    assert run.evaluate((x, y)).scores[1] == pytest.approx(float(right))
    assert run.evaluate((x, y)).name == "accuracy"

    values = [(x, x.sum(1, keepdim=True)) for x, _ in tables()]
    run = trained(1, upper=lambda: nn.Linear(12, 1), clients=values, loss=F.mse_loss)
    x, z = values[0]
    error = (run.network(1)(x.double()) - z).square().mean()
    found = run.evaluate((x, z))
    assert (found.name, found.scores[1]) == ("mse", pytest.approx(float(error)))
    assert found.score == pytest.approx(sum(found.scores.values()) / CLIENTS)


def test_one_value_a_sample_is_not_spread_over_all_outputs() -> None:
    """Of outputs (n, 1) and targets (n,) torch's loss would make (n, n)."""
    flat = [(x, x.sum(1)) for x, _ in tables()]
    rows = [(x, x.sum(1, keepdim=True)) for x, _ in tables()]
    one = trained(2, upper=lambda: nn.Linear(12, 1), clients=flat, loss=F.mse_loss)
    other = trained(2, upper=lambda: nn.Linear(12, 1), clients=rows, loss=F.mse_loss)
    near(one.network(1).state_dict(), other.network(1).state_dict())
    assert one.evaluate(flat[0]).score == other.evaluate(rows[0]).score


def test_an_own_score_is_the_mean_of_its_numbers() -> None:
    def within_one(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs.argmax(1) - targets).abs() <= 1).double()

    x, y = tables()[0]
    run = trained(1, score=within_one)
    near_enough = within_one(run.network(2)(x.double()), y).mean()
    found = run.evaluate((x, y))
    assert (found.name, found.scores[2]) == ("within_one", pytest.approx(float(near_enough)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clients": []}, "clients: it must be a list of at least one"),
        ({"clients": [tables()[0], (torch.zeros(0, 5), torch.zeros(0))]}, "its clients[1] part is empty"),
        ({"clients": ["mine"]}, "its clients[0] part must be"),
        ({"batch_size": 0}, "batch_size = 0: it must be a whole number from 1 up"),
        ({"lower": nn.Linear(5, 12)}, "lower: it must be a function that makes a client segment"),
        ({"lower": lambda: 3}, "lower: it must give a torch.nn.Module, not an int"),
        ({"upper": lambda: nn.Linear(7, 3)}, "lower and upper: a batch of client 0 fails with"),
        ({"loss": F.mse_loss}, "loss: on a batch of client 0 it fails"),
        ({"loss": "mse"}, "loss: it must be a callable"),
        ({"lower": lambda: SAME}, "lower: it must make a new module each time"),
        (
            {"upper": lambda: nn.Linear(12, 1), "loss": lambda o, t: o.mean()},
            "score: classes are told apart by two outputs or more",
        ),
        ({"clients": [tables()[0], (tables()[1][0][:, :3], tables()[1][1])]}, "lower and upper: a batch of client 1"),
        ({"clients": [tables()[0], (tables()[1][0], tables()[1][1] + 5)]}, "targets of client 1: labels from 5"),
        ({"clients": [tables()[0], (tables()[1][0], tables()[1][0])]}, "clients[1]: its targets are Values"),
        ({"wire_up": "int8"}, "wire_up: it must be a sglr_flower.split.codecs.Codec, not a str"),
        ({"defence": "noise"}, "defence: it must be a"),
        ({"dtype": "float64"}, "dtype = 'float64': it must be"),
        ({"device": "gpu"}, "device = 'gpu': torch cannot compute there"),
        ({"seed": None}, "seed = None: it must be a whole number from 0 up"),
        ({"score": 3}, "score: it must be a function (outputs, targets)"),
        ({"method": "sglr"}, "method: it must be a sglr_flower.split.methods.Method, not a str"),
        ({"method": methods.get("centralized")}, "method: with one that pools all data there must be one client"),
        ({"optimizer": partial(torch.optim.LBFGS, lr=1.0)}, "optimizer: "),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        trained(0, **changes)
    assert str(caught.value).startswith(sentence)


def test_rounds_are_trained_when_they_are_asked_for() -> None:
    run = trained(0)
    rounds = run.rounds(5)
    assert run.round == 0
    next(rounds)
    assert run.round == 1


def test_a_task_that_is_no_task_is_one_sentence() -> None:
    with pytest.raises(UserError, match="task"):
        inprocess.run(RunConfig.parse({"task": "tests.own_task:lower"}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num-clients": 3}, "partition = 'balanced': dataset 'tests.own_task:task.data' gives each of its 3 clients"),
        ({"num-clients": 4, "partition": "own"}, "num-clients = 4: with partition 'own' it must be 3"),
        ({"num-clients": 3, "partition": "own", "model": "vit"}, "model = 'vit': it is the task's to say"),
    ],
)
def test_a_task_with_clients_own_data_says_what_does_not_fit(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        checks.check(RunConfig.parse({"task": "tests.own_task:task", "samples-per-client": 0, **changes}))
    assert str(caught.value).startswith(f"run-config key {sentence}")
