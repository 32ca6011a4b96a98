"""The driver without Flower: all nodes in this process, for tests, benchmarks and sweeps on one GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from sglr_flower.run import assembly, checks, training
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodes import Attended, OpenRound, Weights
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.summary import Summary
from sglr_flower.split import averaging
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.plan import RoundPlan, spread
from sglr_flower.split.rounds import EvaluateSession, Link, LocalLink, RoundResult, TrainSession, train_locally
from sglr_flower.split.sent import Sent
from sglr_flower.split.server import ServerSegment
from sglr_flower.split.whole import WholeStep

# Below Flower's logger, as `training`'s.
log = logging.getLogger("flwr.sglr")


class LocalNodes:
    """Cohorts in this process behind the `nodes.Nodes` interface, without an evaluation of their own.

    Parameters
    ----------
    cohorts : Mapping[int, Cohort]
        Node -> its clients.
    versions : Mapping[int, int]
        Client -> the round that its state is from; 0 of those left out.
    graph : bool
        Whether steps are to be recorded where they can be (``cohort = "graph"``).
    """

    exchange = "in-process"
    absent = frozenset[int]()

    def __init__(
        self, cohorts: Mapping[int, Cohort], versions: Mapping[int, int] | None = None, *, graph: bool = False
    ) -> None:
        self.cohorts = dict(cohorts)
        self.count = len(self.cohorts)
        self.sizes = {i: len(data) for cohort in self.cohorts.values() for i, data in cohort.data.items()}
        self._versions = dict.fromkeys(self.sizes, 0) | dict(versions or {})
        self._graph = graph
        self._whole: WholeStep | None = None
        self._refused: set[str] = set()

    def versions(self, server_round: int) -> dict[int, int]:
        """Client -> the last round that it has trained in, 0 if none, of those that did not in ``server_round``."""
        return {client: version for client, version in self._versions.items() if version != server_round}

    @contextmanager
    def attempt(self, plan: RoundPlan, number: int) -> Iterator[Attended]:
        """All are there."""
        yield Attended(plan, nodes=self.count)
        self._versions |= dict.fromkeys(plan.clients, plan.server_round)

    @contextmanager
    def train(self, plan: RoundPlan, shared: Weights | None) -> Iterator[OpenRound]:
        """A link to the cohorts that have a client in the round."""
        here = [cohort for cohort in self.cohorts.values() if set(cohort.clients) & set(plan.clients)]
        opened = OpenRound(LocalLink({}))
        if self._graph and plan.server is None:
            self.refuse("the server has no part in them")
        elif self._graph and len(self.cohorts) > 1:
            self.refuse("the clients are on several nodes")
        elif self._graph:
            opened = _Recorded(self, here[0])
        if shared is not None:
            for cohort in here:
                cohort.load_shared(shared, plan.clients)
                opened.segments += Sent(segments_down=_nbytes(shared))
        if plan.server is None:
            opened.local = [train_locally(cohort, plan) for cohort in here]
        elif not isinstance(opened, _Recorded):
            opened.link = LocalLink({node: TrainSession(cohort, plan) for node, cohort in enumerate(here)})
        yield opened
        if plan.shares_segment:
            means, samples = zip(*(cohort.average(plan) for cohort in here), strict=True)
            opened.average = averaging.mean(means, samples)
            opened.segments += Sent(segments_up=len(here) * _nbytes(opened.average))

    def collect(self, server_round: int, *, checkpoint: bool) -> dict[int, dict[str, Tensor]]:
        """The states of the clients that have trained, as live tensors: in this process they need not travel."""
        return {client: state for cohort in self.cohorts.values() for client, state in cohort.states().items()}

    def whole_step(self, server: ServerSegment) -> WholeStep:
        """The only cohort's step with this server segment, and what has been recorded of it."""
        if self._whole is None or self._whole.server is not server:
            self._whole = WholeStep(next(iter(self.cohorts.values())), server)
        return self._whole

    def refuse(self, reason: str) -> None:
        """Say why steps are not recorded, once."""
        if reason not in self._refused:
            log.info("steps are not recorded: %s", reason)
        self._refused.add(reason)


class InProcessNodes(LocalNodes):
    """The nodes of a run-config, in this process.

    Parameters
    ----------
    config : RunConfig
        The run.
    hosted : Sequence[Sequence[int]]
        The clients of each node.
    states : Mapping[int, Mapping[str, Tensor]]
        Client -> the state to start from; those left out start from their initial segments.
    versions : Mapping[int, int]
        Client -> the round that this state is from.
    """

    def __init__(
        self,
        config: RunConfig,
        hosted: Sequence[Sequence[int]],
        states: Mapping[int, Mapping[str, Tensor]] | None = None,
        versions: Mapping[int, int] | None = None,
    ) -> None:
        cohorts = {node: assembly.cohort(config, clients, states) for node, clients in enumerate(hosted) if clients}
        super().__init__(cohorts, versions, graph=config.cohort == "graph")
        self._config = config

    @contextmanager
    def evaluate(self, server_round: int, shared: Weights | None) -> Iterator[Link]:
        """A link to all cohorts' evaluation."""
        images = assembly.evaluation_images(self._config)
        scored = self.cohorts if any(map(len, images.values())) else {}
        dtype, defence = assembly.dtype(self._config), assembly.defence(self._config)
        up, _ = assembly.wire_codecs(self._config)
        if shared is not None:
            for cohort in self.cohorts.values():
                cohort.load_shared(shared, cohort.clients)
        yield LocalLink(
            {
                node: EvaluateSession(cohort.segments, dtype, server_round, images, cohort.memory_format, defence, up)
                for node, cohort in scored.items()
            }
        )


class _Recorded(OpenRound):
    """A round of all clients in one process, of which a step is recorded where it can be."""

    def __init__(self, nodes: LocalNodes, cohort: Cohort) -> None:
        super().__init__(LocalLink({}))
        self._nodes, self._cohort = nodes, cohort

    def train(
        self, server: ServerSegment, plan: RoundPlan, on_step: Callable[[int, float], None] | None = None
    ) -> RoundResult:
        """All steps, by `WholeStep` or over a link."""
        whole = self._nodes.whole_step(server)
        if reason := whole.refusal(plan):
            self._nodes.refuse(reason)
            self.link = LocalLink({0: TrainSession(self._cohort, plan)})
            return super().train(server, plan, on_step)
        result, sent = whole.train_round(plan, on_step)
        if whole.unfit:
            self._nodes.refuse(whole.unfit)
        self.link = LocalLink({}, sent)
        return result


def run(config: RunConfig, num_nodes: int = 1) -> Summary:
    """Train a run in this process; returns what it came to.

    Raises
    ------
    UserError
        If data are missing or the run directory cannot be used.
    """
    checks.refuse_own_partition(config)
    checks.check_parts(config)
    directory = RunDirectory(Path(config.run_dir))
    with directory.session(config):
        assembly.pin_data(config)
        restored = directory.latest_checkpoint() if config.resume else None
        clients = assembly.clients(config)
        states = restored.client_states(clients) if restored else {}
        versions = restored.state_versions(clients) if restored else {}
        nodes = InProcessNodes(config, spread(len(clients), num_nodes), states, versions)
        return training.train(config, nodes, directory, restored)


def _nbytes(weights: Weights) -> int:
    return sum(tensor.nbytes for tensor in weights.values())
