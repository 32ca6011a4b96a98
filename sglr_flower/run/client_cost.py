"""What one client bears in a run, as ``summary.json`` has it: operations, memory, and how long its steps took."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Mapping

from sglr_flower.models.compute import segment_flops
from sglr_flower.models.footprint import footprint
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodetable import NodeRow
from sglr_flower.run.summary import Client, ClientCost
from sglr_flower.split.plan import draw_participants

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")


def client_cost(config: RunConfig) -> ClientCost:
    """Count and measure on a client segment of the run's model, with a few samples: a fraction of a second."""
    model = assembly.model(config)
    segment = model.client_segment(0)
    forward, backward = segment_flops(segment, model.inputs)
    held = footprint(segment, assembly.optimizer(config).nbytes(segment), config.batch_size, model.inputs)
    return ClientCost(forward, backward, held.weights, held.gradients, held.optimizer, held.activations)


def samples_trained(config: RunConfig, rounds: int, sizes: Mapping[int, int]) -> float:
    """Samples that a client trained on, each as often as it was used: the mean over all clients, as the run planned it.

    Parameters
    ----------
    config : RunConfig
        The run.
    rounds : int
        How many it has made.
    sizes : Mapping[int, int]
        Client -> its number of samples; those that were never reached are left out.
    """
    clients, made = assembly.clients(config), range(1, rounds + 1)
    if config.fraction_train == 1:
        each = rounds * sum(sizes.values())
    else:
        drawn = (draw_participants(config.seed, r, len(clients), config.fraction_train) for r in made)
        each = sum(sizes.get(client, 0) for taking_part in drawn for client in taking_part)
    return config.local_epochs * each / len(clients)


def step_seconds(nodes: Iterable[NodeRow]) -> float | None:
    """Wall time of a client's step: a node's time from an answer to its next frame, by its number of clients.

    Backward, optimizer, the next forward, and the way there and back; the median over nodes and rounds. None where no
    node was timed.
    """
    times = [row.latency_median / len(row.clients) for row in nodes if row.latency_median is not None and row.clients]
    return statistics.median(times) if times else None


def bore(config: RunConfig, rounds: int, sizes: Mapping[int, int], nodes: Iterable[NodeRow]) -> Client:
    """What one client bore in so many rounds.

    A network that cannot be counted does not make a run that is done a failure: operations and memory are then left
    out, and the log says why.
    """
    cost: ClientCost | None = None
    try:
        cost = client_cost(config)
    except Exception as error:
        log.warning("a client's operations and memory could not be counted: %s", error)
    return Client(cost, samples_trained(config, rounds, sizes), step_seconds(nodes))
