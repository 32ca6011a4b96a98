"""SGLR, PSL and SFL as a plain PyTorch loop in which clients come and go: what a run with dropouts must reproduce.

The arithmetic of `reference` (arXiv 2112.05929, "eq." below) with a schedule of departures. A client that is gone from
a step on is absent: the joint batch, SplitLr's C and SplitAvg's draw are over the clients present. It has not taken
part in the round then: its segment, batch-norm buffers and optimizer go back to what they were before it, and where
segments are averaged it is not in the mean. What the server learned from its earlier steps stays learned.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping

import reference as plain
import torch
from reference import Weights

from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig

Departures = Mapping[int, Mapping[int, int]]
"""Round -> client -> the step from which it is gone; 0: it is away for the whole round.

A step beyond the round's last one: all of its steps counted, and yet the client did not finish the round.
"""

METHODS = ("sglr", "slr", "sgl", "psl", "sfl")


def plain_rounds(
    config: RunConfig, gone: Departures, fresh: Mapping[int, Collection[int]] | None = None
) -> Iterator[Weights]:
    """Train round by round.

    Parameters
    ----------
    config : RunConfig
        The run; one of `METHODS`.
    gone : Departures
        Who leaves when. A round that was trained again has only its last attempt here. It is read when a round begins,
        so it may grow in between.
    fresh : Mapping[int, Collection[int]] | None
        Round -> the clients that begin it with their initial segment and an optimizer without moments, because their
        node lost its disk.

    Yields
    ------
    Weights
        After each round: the weights and buffers of ``server`` and of every ``client-N``.
    """
    # A setting that the loop does not know must not look as if it were tested.
    assert config.method in METHODS
    assert (config.splitavg_over, config.cut_gradient_scale) == ("clients", "own")
    model, data = assembly.model(config), plain._shares(config)
    sfl = config.method == "sfl"
    clients = {i: model.client_segment(0 if sfl else i) for i in data}
    server = model.server_segment()
    optimizers = {i: plain._optimizer(config, clients[i]) for i in data}
    server_optimizer = plain._optimizer(config, server)
    alpha = config.splitlr_alpha if config.method in ("sglr", "slr") else 0.0
    for server_round in plain._rounds(config):
        for i in (fresh or {}).get(server_round, ()):
            if not sfl:  # there the server brings the segment that all share
                clients[i] = model.client_segment(i)
            optimizers[i] = plain._optimizer(config, clients[i])
        leaves = gone.get(server_round, {})
        before = {i: copy.deepcopy((clients[i].state_dict(), optimizers[i].state_dict())) for i in leaves}
        phi = plain._phi(config, server_round)
        participants = plain._participants(config, server_round)
        order = {i: plain._batches(config, server_round, i, len(data[i])) for i in participants}
        steps = max(len(batches) for batches in order.values())
        stays = {i: min(len(order[i]), leaves.get(i, len(order[i]))) for i in order}
        for step in range(max(stays.values())):
            here = [i for i in order if step < stays[i]]
            smashed, cut, labels = {}, {}, {}
            for i in here:  # eq. 1: s_i = f(w_c,i; B_i)
                images, labels[i] = plain._read(config, data[i], order[i][step])
                smashed[i] = clients[i](images)
                cut[i] = smashed[i].detach().requires_grad_()
            joint = plain._loss(config, server(torch.cat([cut[i] for i in here])), torch.cat([labels[i] for i in here]))
            joint.backward()
            rate = plain._server_rate(config, server_round, step, steps)
            plain._update(server_optimizer, rate * len(here) ** alpha)  # eq. 13, C: the clients that are left
            samples = sum(len(labels[i]) for i in here)
            own = {i: cut[i].grad * samples / len(labels[i]) for i in here}  # eq. 5
            active = plain._active(config, phi, server_round, step, here)
            for i in here:
                averaged = plain._position_average(own, active, len(own[i])) if i in active else own[i]
                smashed[i].backward(averaged)
                plain._update(optimizers[i], plain._client_rate(config, server_round, step, len(order[i])))
        for i, (segment, moments) in before.items():
            clients[i].load_state_dict(segment)
            optimizers[i].load_state_dict(moments)
        finished = {i: clients[i] for i in order if i not in leaves}
        if sfl and finished:  # eq. 9-10; in a SplitFed round everybody receives the mean
            plain._share(plain._average(finished, data), clients.values())
        yield plain._named(clients, server)
