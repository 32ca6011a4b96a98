"""SGLR as a plain PyTorch loop, from the equations of arXiv 2112.05929 alone: what every exchange must reproduce.

It shares with the package the *names* of the random draws (initial weights, sample order, active clients), because the
keel says "for the same seeds"; every sum, mean and update is its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower import assembly
from sglr_flower.config import RunConfig
from sglr_flower.seeds import generator

Weights = dict[str, dict[str, Tensor]]


def plain_loop(config: RunConfig) -> Weights:
    """Train; the final weights and buffers of ``server`` and of every ``client-N``."""
    model = assembly.model(config)
    everyone = range(config.num_clients)
    data = assembly.client_data(config, everyone)
    clients = {i: model.client_segment(i) for i in everyone}
    server = model.server_segment()
    make = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
    optimizers = {i: make(clients[i].parameters(), lr=config.client_lr) for i in everyone}
    server_optimizer = make(server.parameters(), lr=1.0)
    for server_round in range(1, config.num_server_rounds + 1):
        order = {i: assembly.plan(config, server_round).batches(i, len(data[i])) for i in everyone}
        for step in range(max(len(batches) for batches in order.values())):
            here = [i for i in everyone if step < len(order[i])]
            smashed, cut, labels = {}, {}, {}
            for i in here:  # eq. 1: s_i = f(w_c,i; B_i)
                images = data[i].images[order[i][step]].to(assembly.dtype(config))
                smashed[i] = clients[i]((images / 127.5 - 1).repeat(1, 3, 1, 1))
                cut[i] = smashed[i].detach().requires_grad_()
                labels[i] = data[i].labels[order[i][step]]
            logits = server(torch.cat([cut[i] for i in here]))
            loss = F.cross_entropy(logits, torch.cat([labels[i] for i in here]))
            server_optimizer.zero_grad()
            loss.backward()
            for group in server_optimizer.param_groups:  # eq. 13: eta_s = eta_0 * C^alpha
                group["lr"] = config.client_lr * len(here) ** config.splitlr_alpha
            server_optimizer.step()
            joint = sum(len(labels[i]) for i in here)
            own = {i: cut[i].grad * joint / len(labels[i]) for i in here}  # eq. 5: of the own batch's mean
            active = _active(config, server_round, step, here)
            for i in here:
                smashed[i].backward(_position_average(own, active, len(own[i])) if i in active else own[i])
                optimizers[i].step()
                optimizers[i].zero_grad()
    return {"server": _weights(server)} | {f"client-{i}": _weights(clients[i]) for i in everyone}


def _active(config: RunConfig, server_round: int, step: int, here: list[int]) -> set[int]:
    draw = torch.randperm(len(here), generator=generator(config.seed, "splitavg", server_round, step)).tolist()
    return {here[k] for k in draw[: int(config.splitavg_phi * len(here) + 0.5)]}


def _position_average(own: dict[int, Tensor], active: set[int], length: int) -> Tensor:
    """Eq. 16, sample by sample: each position over the active clients that have it, weighted by batch size."""
    rows = []
    for position in range(length):
        having = [i for i in sorted(active) if position < len(own[i])]
        total = sum(len(own[i]) for i in having)
        rows.append(sum(own[i][position] * (len(own[i]) / total) for i in having))
    return torch.stack(rows)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
