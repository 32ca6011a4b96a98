"""Small runs whose bytes are counted, and what the formulas of Table 6 say of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglr_flower.models.footprint import weight_bytes
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.seeds import generator
from sglr_flower.split import splitavg
from sglr_flower.split.methods import METHODS
from sglr_flower.split.plan import spread
from sglr_flower.studies.costs.communication import Average, Sizes, epoch_bytes

CLIENTS, SAMPLES, BATCH, ROUNDS = 4, 24, 8, 2


def counted_run(run_dir: Path, method: str, phi: float, over: Average, **more: object) -> RunConfig:
    """4 clients of 3 whole batches each, 2 rounds."""
    return RunConfig.parse(
        {
            "dataset": "digits",
            "method": method,
            "num-clients": CLIENTS,
            "samples-per-client": SAMPLES,
            "batch-size": BATCH,
            "num-server-rounds": ROUNDS,
            "evaluate-every": 0,
            "evaluate-samples": 4,
            "checkpoint-every": ROUNDS,
            "splitavg-phi": phi,
            "splitavg-over": over,
            "run-dir": str(run_dir),
            **more,
        }
    )


def by_formula(config: RunConfig, nodes: int) -> dict[str, float]:
    """What such a run on so many nodes has to count, framing left out."""
    cut = assembly.model(config.replace(method="psl"))
    sizes = Sizes(
        clients=CLIENTS,
        samples=CLIENTS * SAMPLES,
        batch_size=BATCH,
        cut=math.prod(cut.smashed_shape()) * cut.dtype.itemsize,
        client_segment=weight_bytes(cut.client_segment(0)),
        network=weight_bytes(cut.whole()),
    )
    method, over = METHODS[config.method], "clients" if config.splitavg_over == "clients" else "clients-and-samples"
    moved = epoch_bytes(method, sizes, config.splitavg_phi, over, _copies(config, nodes))
    nodes_share = nodes / CLIENTS  # a segment travels once for a node, which the formula counts for every client
    # Where a method averages, clients begin alike: the first round has nothing to bring.
    rounds_down = ROUNDS - 1
    return {
        "smashed": ROUNDS * moved.smashed,
        "labels": 0 if method.whole else ROUNDS * CLIENTS * SAMPLES * 8,
        "unicast": ROUNDS * moved.unicast,
        "broadcast": ROUNDS * moved.broadcast,
        "segments_up": ROUNDS * nodes_share * moved.segments_up,
        "segments_down": rounds_down * nodes_share * moved.segments_down,
    }


def counted(figures: Mapping[str, Any]) -> dict[str, float]:
    """The same of a run's ``summary.json``, or of a sum of rows of ``metrics.csv``."""
    parts = ("smashed", "labels", "unicast", "broadcast", "segments_up", "segments_down")
    return {part: figures[f"bytes_{part}"] for part in parts}


def _copies(config: RunConfig, nodes: int) -> float:
    """Nodes with an active client in a step, on the average over the run: by the draws that the run itself makes."""
    hosted = spread(CLIENTS, nodes)
    counts = []
    for server_round in range(1, ROUNDS + 1):
        for step in range(SAMPLES // BATCH):
            draw = generator(config.seed, "splitavg", server_round, step)
            active = set(splitavg.draw_active(range(CLIENTS), config.splitavg_phi, draw))
            counts.append(sum(bool(active & set(clients)) for clients in hosted))
    return sum(counts) / len(counts)
