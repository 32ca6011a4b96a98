"""Runs a function as ServerApp in a real Flower simulation with our real ClientApp."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import ray
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import client_app
from sglr_flower.federation.simulation import ray_was_late

Started = TypeVar("Started")


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
    _start_ray(workers)
    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(app, app_of_nodes, num_supernodes=nodes, backend_config=backend)


def _start_ray(cpus: int) -> None:
    """Start Ray for Flower, as Flower itself would."""
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

    def start() -> None:
        ray.init(num_cpus=cpus, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})

    in_time(start)


def in_time(start: Callable[[], Started]) -> Started:
    """Start Ray, and a second time if it was late: a busy machine may not do it in the 30 s that it gives itself."""
    try:
        return start()
    except Exception as error:
        if not ray_was_late(str(error)):
            raise
        ray.shutdown()
        return start()
