"""Runs a function as ServerApp in a real Flower simulation with our real ClientApp."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import client_app


def simulate(body: Callable[[Grid], None], nodes: int, workers: int, app_of_nodes: ClientApp = client_app.app) -> None:
    """Run ``body`` with a grid of simulated SuperNodes; whatever it raises is raised here.

    Parameters
    ----------
    body : Callable[[Grid], None]
        What the ServerApp does.
    nodes : int
        SuperNodes.
    workers : int
        How many of them can run at the same time.
    app_of_nodes : ClientApp
        What the nodes run.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        body(grid)

    # Flower takes whole CPUs only, so the machine is said to have as many as workers are wanted.
    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": workers}}
    run_simulation(app, app_of_nodes, num_supernodes=nodes, backend_config=backend)
