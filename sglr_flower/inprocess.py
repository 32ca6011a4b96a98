"""The driver without Flower: all nodes in this process, for tests, benchmarks and sweeps on one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sglr_flower import assembly, training
from sglr_flower.config import RunConfig
from sglr_flower.rundir import RunDirectory
from sglr_flower.split.plan import RoundPlan, spread
from sglr_flower.split.rounds import EvaluateSession, Link, LocalLink, TrainSession


class InProcessNodes:
    """Cohorts in this process behind the `training.Nodes` interface.

    Parameters
    ----------
    config : RunConfig
        The run.
    hosted : Sequence[Sequence[int]]
        The clients of each node.
    states : Mapping[int, Mapping[str, Tensor]]
        Client -> the state to start from; those left out start from their initial segments.
    """

    exchange = "in-process"

    def __init__(
        self,
        config: RunConfig,
        hosted: Sequence[Sequence[int]],
        states: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._config = config
        self.cohorts = {
            node: assembly.cohort(config, clients, states) for node, clients in enumerate(hosted) if clients
        }
        self.count = len(self.cohorts)
        self.sizes = {i: len(data) for cohort in self.cohorts.values() for i, data in cohort.data.items()}

    @contextmanager
    def train(self, plan: RoundPlan) -> Iterator[Link]:
        """A link to the cohorts that have a client in the round."""
        yield LocalLink(
            {
                node: TrainSession(cohort, plan)
                for node, cohort in self.cohorts.items()
                if set(cohort.clients) & set(plan.clients)
            }
        )

    @contextmanager
    def evaluate(self, server_round: int) -> Iterator[Link]:
        """A link to all cohorts' evaluation."""
        images = assembly.evaluation_images(self._config)
        dtype = assembly.dtype(self._config)
        yield LocalLink(
            {
                node: EvaluateSession(cohort.segments, dtype, server_round, images)
                for node, cohort in self.cohorts.items()
            }
        )

    def collect(self, server_round: int, *, checkpoint: bool) -> dict[int, dict[str, Tensor]]:
        """The clients' states; they are the live tensors, in this process they need not travel."""
        return {client: cohort.state(client) for cohort in self.cohorts.values() for client in cohort.clients}


def run(config: RunConfig, num_nodes: int = 1) -> dict[str, Any]:
    """Train a run in this process; returns what ``summary.json`` holds.

    Raises
    ------
    UserError
        If data are missing or the run directory cannot be used.
    """
    directory = RunDirectory(Path(config.run_dir))
    with directory.session(config):
        restored = directory.latest_checkpoint() if config.resume else None
        states = restored.client_states(range(config.num_clients)) if restored else {}
        nodes = InProcessNodes(config, spread(config.num_clients, num_nodes), states)
        return training.train(config, nodes, directory, restored)
