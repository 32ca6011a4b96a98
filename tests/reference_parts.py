"""Parallel split learning with a user's own parts as a plain PyTorch loop, with torch's own classes and autograd.

Of `tests/own_parts.py` it has what is arithmetic (rounding, noise); who updates what and when is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from own_parts import Halves, Squashed
from torch import Tensor
from torch.nn import functional as F

from sglr_flower.data.inputs import to_inputs
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.seeds import generator

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Parts:
    """What the loop trains with; `config` has the same by its names."""

    client: Make
    server: Make
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    codec: bool = False
    defence: bool = False
    cautious: bool = False


def plain_loop(config: RunConfig, parts: Parts) -> dict[str, dict[str, Tensor]]:
    """The final weights and buffers of ``server`` and of every ``client-N``; of clients with batches of one size."""
    model, data = assembly.model(config), assembly.client_data(config, list(range(config.num_clients)))
    clients, server = {i: model.client_segment(i) for i in data}, model.server_segment()
    optimizers = {i: parts.client(segment.parameters()) for i, segment in clients.items()}
    of_server = parts.server(server.parameters())
    size = config.batch_size
    for server_round in range(1, config.num_server_rounds + 1):
        order = {
            i: torch.randperm(len(own), generator=generator(config.seed, "order", i, server_round - 1)).split(size)
            for i, own in data.items()
        }
        for step in range(len(order[0])):
            output, penalty, cut, labels = {}, {}, {}, {}
            for i in data:
                batch = data[i].take(order[i][step])
                inputs, labels[i] = to_inputs(batch.inputs, torch.float64), batch.targets
                smashed = clients[i](inputs)
                penalty[i] = 0.01 * smashed.square().sum() / len(inputs) if parts.defence else 0.0
                output[i] = 2 * torch.tanh(smashed / 2) if parts.defence else smashed
                seen = output[i].detach()
                if parts.defence:
                    seen = Squashed().sent(seen, "smashed", i, server_round, step)
                cut[i] = (_there_and_back(seen) if parts.codec else seen).requires_grad_()
            if parts.cautious:
                losses = {i: parts.loss(server(cut[i]), labels[i]) for i in cut}
                weights = torch.stack([loss.detach() for loss in losses.values()])
                (torch.stack(list(losses.values())) * weights / weights.sum()).sum().backward()
                scale = 1
            else:
                parts.loss(server(torch.cat(list(cut.values()))), torch.cat(list(labels.values()))).backward()
                scale = len(cut)  # from the joint batch's mean to the own one's
            _step(of_server, config.client_lr)
            for i in data:
                gradient = cut[i].grad * scale
                down = _there_and_back(gradient) if parts.codec else gradient
                ((output[i] * down).sum() + penalty[i]).backward()
                _step(optimizers[i], config.client_lr)
    return {"server": dict(server.state_dict()), **{f"client-{i}": dict(s.state_dict()) for i, s in clients.items()}}


def _there_and_back(tensor: Tensor) -> Tensor:
    return Halves().decode(Halves().encode(tensor), tuple(tensor.shape[1:]), tensor.dtype)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
