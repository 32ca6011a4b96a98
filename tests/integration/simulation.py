"""Runs a function as ServerApp in a real Flower simulation with our real ClientApp."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import client_app


def simulate(body: Callable[[Grid], None], nodes: int, cpus_per_node: float) -> None:
    """Run ``body`` with a grid of ``nodes`` simulated SuperNodes; whatever it raises is raised here."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        body(grid)

    logging.getLogger("flwr").setLevel(logging.INFO)
    resources = {"num_cpus": cpus_per_node, "num_gpus": 0.0}
    run_simulation(
        app, client_app.app, num_supernodes=nodes, backend_config={"client_resources": resources}
    )
