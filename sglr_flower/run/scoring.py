"""The evaluation at the end of a round: every client's segment with the server's, on the server or over the nodes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from sglr_flower.data.samples import Samples
from sglr_flower.errors import TooFewClients
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodes import Nodes, Weights
from sglr_flower.split import averaging, optimizers
from sglr_flower.split.rounds import EvaluateSession, LocalLink, Score, evaluate_round
from sglr_flower.split.server import ServerSegment

CLIENTS_AT_ONCE = 20
"""Clients that are scored together: their segments are in memory, however many clients a run has."""


def scores(
    config: RunConfig,
    server: ServerSegment,
    nodes: Nodes,
    images: Mapping[str, Samples],
    server_round: int,
    states: Mapping[int, Mapping[str, Tensor]],
    shared: Weights | None,
) -> tuple[dict[int, Score], int]:
    """Score every client, on the server with the ``states`` it was sent or over the nodes; and the bytes it took.

    A client whose node has no samples to score it on has no score.

    Raises
    ------
    TooFewClients
        If no client is left to be scored.
    """
    if config.evaluate == "client":
        before = nodes.absent
        with nodes.evaluate(server_round, shared) as link:
            found = evaluate_round(server, link, assembly.wire_codecs(config)[0], assembly.scoring(config))
        # Of who left in the middle only a part of the samples was scored.
        found = {client: score for client, score in found.items() if client not in nodes.absent}
        if not found and nodes.absent - before:  # else no node has samples to score on
            raise TooFewClients(f"round {server_round}: no client is left to be evaluated")
        return found, link.sent.up + link.sent.down
    if shared is not None:  # all clients are the same: scored once
        found = _on_server(config, server, images, server_round, {0: shared})
        return dict.fromkeys(assembly.clients(config), found[0]) if found else {}, 0
    here = [client for client in assembly.clients(config) if client not in nodes.absent]
    if not here:
        raise TooFewClients(f"round {server_round}: no client is left to be evaluated")
    found = {}
    for first in range(0, len(here), CLIENTS_AT_ONCE):
        group = here[first : first + CLIENTS_AT_ONCE]
        weights = {client: optimizers.segment_weights(states[client]) if client in states else None for client in group}
        found |= _on_server(config, server, images, server_round, weights)
    return found, 0


def _on_server(
    config: RunConfig,
    server: ServerSegment,
    images: Mapping[str, Samples],
    server_round: int,
    weights: Mapping[int, Weights | None],
) -> dict[int, Score]:
    """Score some clients on the server; those without weights have their initial segments."""
    if not any(map(len, images.values())):
        return {}
    network = assembly.model(config)
    template = network.client_segment(0)
    segments: dict[int, torch.nn.Module] = {}
    for client, own in weights.items():
        segment = network.client_segment(client) if own is None else copy.deepcopy(template)
        if own is not None:
            averaging.load(segment, own)
        segments[client] = segment.to(server.device)
    defence, (up, _) = assembly.defence(config), assembly.wire_codecs(config)
    dtype, layout = assembly.dtype(config), server.memory_format
    session = EvaluateSession(segments, dtype, server_round, images, layout, defence, up)
    return evaluate_round(server, LocalLink({0: session}), up, assembly.scoring(config))
