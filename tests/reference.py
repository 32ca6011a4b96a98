"""Every method as a plain PyTorch loop, from the papers' equations alone: what the engine must reproduce.

SGLR and what it is compared with: arXiv 2112.05929 ("eq." below); SplitFed's two versions: arXiv 2004.12088; federated
averaging: arXiv 1602.05629.

The loops share with the package the data, the initial weights and the *names* of the random draws (sample order, active
clients, participants, turns), because the keel says "for the same seeds"; every sum, mean and update is their own, and
so is the order in which they are made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from sglr_flower.data import partition
from sglr_flower.data.samples import Batch
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.seeds import generator

State = dict[str, Tensor]
Weights = dict[str, State]


def plain_loop(config: RunConfig) -> Weights:
    """Train by ``config.method``; the final weights and buffers of ``server`` and of every ``client-N``.

    Of a method that does not cut the network (fedavg, centralized) ``server`` is empty and ``client-N`` whole.
    """
    # A setting that no loop knows must not look as if it were tested.
    assert (config.splitavg_over, config.cut_gradient_scale) == ("clients", "own")
    return _LOOPS[config.method](config)


def _parallel(config: RunConfig) -> Weights:
    """SGLR's Algorithm 1 and what is left of it without its parts; SFL averages the client segments every round."""
    model, data = assembly.model(config), _shares(config)
    sfl = config.method == "sfl"
    clients = {i: model.client_segment(0 if sfl else i) for i in data}
    server = model.server_segment()
    optimizers = {i: _optimizer(config, clients[i]) for i in data}
    server_optimizer = _optimizer(config, server)
    alpha = config.splitlr_alpha if config.method in ("sglr", "slr") else 0.0
    for server_round in _rounds(config):
        phi = _phi(config, server_round)
        order = {i: _batches(config, server_round, i, len(data[i])) for i in _participants(config, server_round)}
        steps = max(len(batches) for batches in order.values())
        for step in range(steps):
            here = [i for i in order if step < len(order[i])]
            rate = _server_rate(config, server_round, step, steps)
            smashed, cut, labels = {}, {}, {}
            for i in here:  # eq. 1: s_i = f(w_c,i; B_i)
                images, labels[i] = _read(config, data[i], order[i][step])
                smashed[i] = clients[i](images)
                cut[i] = smashed[i].detach().requires_grad_()
            loss = _loss(config, server(torch.cat([cut[i] for i in here])), torch.cat([labels[i] for i in here]))
            loss.backward()
            _update(server_optimizer, rate * len(here) ** alpha)  # eq. 13: eta_s = eta_0 * C^alpha
            joint = sum(len(labels[i]) for i in here)
            own = {i: cut[i].grad * joint / len(labels[i]) for i in here}  # eq. 5: of the own batch's mean
            active = _active(config, phi, server_round, step, here)
            for i in here:
                smashed[i].backward(_position_average(own, active, len(own[i])) if i in active else own[i])
                _update(optimizers[i], _client_rate(config, server_round, step, len(order[i])))
        if sfl:  # eq. 9-10
            _share(_average({i: clients[i] for i in order}, data), clients.values())
    return _named(clients, server)


def _split_fed_v1(config: RunConfig) -> Weights:
    """SplitFed V1: a server copy per client, and at the end of the round both sides are averaged."""
    model, data = assembly.model(config), _shares(config)
    clients = {i: model.client_segment(0) for i in data}
    copies = {i: model.server_segment() for i in data}
    optimizers = {i: _optimizer(config, clients[i]) for i in data}
    copy_optimizers = {i: _optimizer(config, copies[i]) for i in data}
    for server_round in _rounds(config):
        here = _participants(config, server_round)
        order = {i: _batches(config, server_round, i, len(data[i])) for i in here}
        steps = max(len(batches) for batches in order.values())
        for i in here:
            for step, batch in enumerate(order[i]):
                images, labels = _read(config, data[i], batch)
                smashed = clients[i](images)
                cut = smashed.detach().requires_grad_()
                _loss(config, copies[i](cut), labels).backward()
                _update(copy_optimizers[i], _server_rate(config, server_round, step, steps))
                smashed.backward(cut.grad)
                _update(optimizers[i], _client_rate(config, server_round, step, len(order[i])))
        _share(_average({i: clients[i] for i in here}, data), clients.values())
        _share(_average({i: copies[i] for i in here}, data), copies.values())
    return _named(clients, copies[0])


def _split_fed_v2(config: RunConfig) -> Weights:
    """SplitFed V2: one server segment takes the clients' batches one after the other, in a random order."""
    model, data = assembly.model(config), _shares(config)
    clients = {i: model.client_segment(0) for i in data}
    server = model.server_segment()
    optimizers = {i: _optimizer(config, clients[i]) for i in data}
    server_optimizer = _optimizer(config, server)
    for server_round in _rounds(config):
        order = {i: _batches(config, server_round, i, len(data[i])) for i in _participants(config, server_round)}
        steps = max(len(batches) for batches in order.values())
        for step in range(steps):
            here = [i for i in order if step < len(order[i])]
            read = {i: _read(config, data[i], order[i][step]) for i in here}
            smashed = {i: clients[i](read[i][0]) for i in here}
            turns = torch.randperm(len(here), generator=generator(config.seed, "turns", server_round, step))
            for i in (here[k] for k in turns.tolist()):
                cut = smashed[i].detach().requires_grad_()
                _loss(config, server(cut), read[i][1]).backward()
                _update(server_optimizer, _server_rate(config, server_round, step, steps))
                smashed[i].backward(cut.grad)
                _update(optimizers[i], _client_rate(config, server_round, step, len(order[i])))
        _share(_average({i: clients[i] for i in order}, data), clients.values())
    return _named(clients, server)


def _sequential(config: RunConfig) -> Weights:
    """Vanilla split learning, eq. 1-3: there is one client segment, and it goes from client to client."""
    model, data = assembly.model(config), _shares(config)
    client, server = model.client_segment(0), model.server_segment()
    optimizers = {i: _optimizer(config, client) for i in data}  # each client's own moments, of the one segment
    server_optimizer = _optimizer(config, server)
    for server_round in _rounds(config):
        order = {i: _batches(config, server_round, i, len(data[i])) for i in _participants(config, server_round)}
        steps, done = sum(len(batches) for batches in order.values()), 0  # the server sees one client after the other
        for i, batches in order.items():
            for step, batch in enumerate(batches):
                images, labels = _read(config, data[i], batch)
                smashed = client(images)
                cut = smashed.detach().requires_grad_()
                _loss(config, server(cut), labels).backward()
                _update(server_optimizer, _server_rate(config, server_round, done, steps))
                smashed.backward(cut.grad)
                _update(optimizers[i], _client_rate(config, server_round, step, len(batches)))
                done += 1
    return _named(dict.fromkeys(data, client), server)


def _fed_avg(config: RunConfig) -> Weights:
    """FedAvg, eq. 7-8: every participant trains the whole network on its own, then they are averaged."""
    data = _shares(config)
    networks = {i: assembly.model(config).whole(0) for i in data}
    optimizers = {i: _optimizer(config, networks[i]) for i in data}
    for server_round in _rounds(config):
        here = _participants(config, server_round)
        for i in here:
            _train_whole(config, server_round, i, networks[i], optimizers[i], data[i])
        _share(_average({i: networks[i] for i in here}, data), networks.values())
    return _named(networks, None)


def _centralized(config: RunConfig) -> Weights:
    """The whole network on everybody's images, laid end to end in client order and drawn from as client 0 would."""
    shares = _shares(config)
    union = Batch(
        torch.cat([share.images for share in shares.values()]), torch.cat([share.labels for share in shares.values()])
    )
    network = assembly.model(config).whole(0)
    optimizer = _optimizer(config, network)
    for server_round in _rounds(config):
        _train_whole(config, server_round, 0, network, optimizer, union)
    return _named({0: network}, None)


_LOOPS: Mapping[str, Callable[[RunConfig], Weights]] = {
    "sglr": _parallel,
    "slr": _parallel,
    "sgl": _parallel,
    "psl": _parallel,
    "sfl": _parallel,
    "sfl-v1": _split_fed_v1,
    "sfl-v2": _split_fed_v2,
    "ssl": _sequential,
    "fedavg": _fed_avg,
    "centralized": _centralized,
}

METHODS = tuple(_LOOPS)


def _train_whole(
    config: RunConfig, server_round: int, client: int, network: nn.Module, optimizer: Optimizer, data: Batch
) -> None:
    batches = _batches(config, server_round, client, len(data))
    for step, batch in enumerate(batches):
        images, labels = _read(config, data, batch)
        _loss(config, network(images), labels).backward()
        _update(optimizer, _client_rate(config, server_round, step, len(batches)))


# What the loops read and draw ---------------------------------------------------------------------------------------


def _shares(config: RunConfig) -> dict[int, Batch]:
    train = assembly.splits(config).train
    shares = partition.partition(
        train.labels, config.partition, config.num_clients, config.samples_per_client, config.seed
    )
    return {i: train.take(share) for i, share in enumerate(shares)}


def _rounds(config: RunConfig) -> range:
    return range(1, config.num_server_rounds + 1)


def _participants(config: RunConfig, server_round: int) -> list[int]:
    if config.fraction_train == 1:
        return list(range(config.num_clients))
    draw = torch.randperm(config.num_clients, generator=generator(config.seed, "participants", server_round)).tolist()
    return sorted(draw[: max(1, int(config.fraction_train * config.num_clients + 0.5))])


def _batches(config: RunConfig, server_round: int, client: int, size: int) -> list[Tensor]:
    """Indices of a client's batches in a round: epochs are counted from 0 over the whole run, each has its order."""
    batches = []
    for passed in range(config.local_epochs):
        epoch = (server_round - 1) * config.local_epochs + passed
        name = epoch if config.sample_order == "every-epoch" else "once"
        order = torch.randperm(size, generator=generator(config.seed, "order", client, name))
        batches += [order[k : k + config.batch_size] for k in range(0, size, config.batch_size)]
    return batches


def _read(config: RunConfig, data: Batch, batch: Tensor) -> tuple[Tensor, Tensor]:
    images = data.images[batch].to(assembly.dtype(config))
    return (images / 127.5 - 1).repeat(1, 3, 1, 1), data.labels[batch]


def _phi(config: RunConfig, server_round: int) -> float:
    """SplitAvg's fraction in this round (Table 3: only while its phase lasts)."""
    if config.method not in ("sglr", "sgl"):
        return 0.0
    which, _, fraction = config.splitavg_phase.partition(":")
    rounds = config.num_server_rounds
    acting = range(1, rounds + 1)
    if which == "first":
        acting = acting[: int(float(fraction) * rounds + 0.5)]
    if which == "last":
        acting = acting[rounds - int(float(fraction) * rounds + 0.5) :]
    return config.splitavg_phi if server_round in acting else 0.0


def _active(config: RunConfig, phi: float, server_round: int, step: int, here: list[int]) -> set[int]:
    draw = torch.randperm(len(here), generator=generator(config.seed, "splitavg", server_round, step)).tolist()
    return {here[k] for k in draw[: int(phi * len(here) + 0.5)]}


# What they compute --------------------------------------------------------------------------------------------------


def _optimizer(config: RunConfig, module: nn.Module) -> Optimizer:
    make = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
    return make(module.parameters(), lr=1.0)


def _update(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def _client_rate(config: RunConfig, server_round: int, step: int, steps: int) -> float:
    """eta_c with so many of the client's own steps of this round done."""
    return config.client_lr * _factor(config, config.lr_schedule, server_round, step / steps)


def _server_rate(config: RunConfig, server_round: int, step: int, steps: int) -> float:
    """eta_0 for the server, with so many of its steps of this round done."""
    return config.client_lr * _factor(
        config, config.server_lr_schedule or config.lr_schedule, server_round, step / steps
    )


def _factor(config: RunConfig, schedule: str, server_round: int, done: float) -> float:
    """What a schedule makes of eta_0: one that moves within a round after the fraction ``done`` of it."""
    if schedule == "constant":
        return 1.0
    rounds = server_round - 1 + done
    name, _, numbers = schedule.partition(":")
    n = {key: float(value) for key, value in (number.split("=") for number in filter(None, numbers.split(",")))}
    if name == "cosine":
        return math.cos(math.pi / 2 * (server_round - 1) / config.num_server_rounds) ** 2
    if name == "cyclic":
        cycles = rounds / n["period"] + n.get("phase", 0)
        return float(np.interp(cycles - int(cycles), (0, 0.5, 1), (n["low"], n["high"], n["low"])))
    assert name == "one-cycle"
    start, length, low = n.get("start", 0), n.get("length", 0.9), n["low"]
    points = (0, start, start + length / 2, start + length, 1)
    factors = (low, low, n["high"], low, low / 100)
    return float(np.interp(rounds / config.num_server_rounds, points, factors))


def _loss(config: RunConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Of the mean over the given samples."""
    if config.loss == "cross-entropy":
        return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
    return F.binary_cross_entropy(logits.softmax(1), torch.eye(logits.shape[1], dtype=logits.dtype)[labels])


def _position_average(own: dict[int, Tensor], active: set[int], length: int) -> Tensor:
    """Eq. 16, sample by sample: each position over the active clients that have it, weighted by batch size."""
    rows = []
    for position in range(length):
        having = [i for i in sorted(active) if position < len(own[i])]
        total = sum(len(own[i]) for i in having)
        rows.append(sum(own[i][position] * (len(own[i]) / total) for i in having))
    return torch.stack(rows)


def _average(modules: Mapping[int, nn.Module], data: Mapping[int, Batch]) -> State:
    """Eq. 8: sum_i delta_i w_i with delta_i = n_i / n over these clients, buffers too; of counts, rounded."""
    n = sum(len(data[i]) for i in modules)
    states = {i: module.state_dict() for i, module in modules.items()}
    mean = {}
    for name, like in next(iter(states.values())).items():
        exact = sum(states[i][name].double() * len(data[i]) for i in states) / n
        mean[name] = (exact if like.is_floating_point() else exact.round()).to(like.dtype)
    return mean


def _share(state: State, modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.load_state_dict(state)


def _named(clients: Mapping[int, nn.Module], server: nn.Module | None) -> Weights:
    named = {"server": server.state_dict() if server else {}}
    return copy.deepcopy(named | {f"client-{i}": client.state_dict() for i, client in clients.items()})
