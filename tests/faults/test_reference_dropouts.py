"""The loop with dropouts is what the engine does, with a link that drops nodes and nothing of Flower."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
import reference
from integration.runs import largest_difference
from reference_dropouts import Departures, plain_rounds
from torch import Tensor

from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.split import averaging, optimizers
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import spread
from sglr_flower.split.rounds import LocalLink, TrainSession, train_round

SETTINGS = {
    "model": "faults.faulty:network",
    "num-clients": 5,
    "samples-per-client": 26,
    "batch-size": 4,
    "num-server-rounds": 6,
    "dtype": "float64",
}


class LeavingLink(LocalLink):
    """A link without a wire that some nodes leave: ``gone`` is node -> the step from which it is gone."""

    def __init__(self, sessions: Mapping[int, TrainSession], gone: Mapping[int, int]) -> None:
        super().__init__(sessions)
        self._gone = gone

    def receive(self) -> dict[int, Upload]:
        here = {n: u for n, u in super().receive().items() if u.step < self._gone.get(n, u.step + 1)}
        self._pending = dict(here)
        return here

    def send(self, downloads: Mapping[int, Download]) -> None:
        super().send({node: download for node, download in downloads.items() if node in self._pending})


def engine(config: RunConfig, gone: Departures, fresh: Mapping[int, set[int]]) -> reference.Weights:
    """The same schedule through the package's engine, the nodes' rollback by its own states; departures are by node."""
    hosted = dict(enumerate(spread(config.num_clients, 4)))
    server = assembly.server(config)
    cohorts = {node: assembly.cohort(config, clients) for node, clients in hosted.items()}
    shared = None
    for server_round in range(1, config.num_server_rounds + 1):
        plan = assembly.plan(config, server_round)
        for node in fresh.get(server_round, ()):
            cohorts[node] = assembly.cohort(config, hosted[node])
        if shared is not None:
            for cohort in cohorts.values():
                cohort.load_shared(shared, cohort.clients)
        leaves = gone.get(server_round, {})
        before = {node: states(cohorts[node]) for node in leaves}
        sessions = {node: TrainSession(cohorts[node], plan) for node in cohorts if leaves.get(node) != 0}
        train_round(server, plan, LeavingLink(sessions, leaves))
        if plan.shares_segment:
            means, samples = zip(*(cohorts[n].average(plan) for n in cohorts if n not in leaves), strict=True)
            shared = averaging.mean(means, samples)
        for node in leaves:
            cohorts[node] = assembly.cohort(config, hosted[node], before[node])
    if shared is not None:
        for cohort in cohorts.values():
            cohort.load_shared(shared, cohort.clients)
    named = {"server": server.state()} | {f"client-{i}": c.state(i) for c in cohorts.values() for i in c.clients}
    return {part: optimizers.segment_weights(state) for part, state in named.items()}


def states(cohort: Cohort) -> dict[int, dict[str, Tensor]]:
    return {i: {name: tensor.clone() for name, tensor in cohort.state(i).items()} for i in cohort.clients}


def draw(seed: int, rounds: int) -> tuple[dict[int, dict[int, int]], dict[int, set[int]]]:
    """A schedule by node: in each round up to three of the four leave, some for the whole of it, some at its end."""
    random_ = random.Random(seed)
    gone = {
        r: {n: random_.randrange(8) for n in random_.sample(range(4), random_.randrange(4))}
        for r in range(1, rounds + 1)
    }
    return gone, {rounds // 2: {random_.randrange(4)}}


def by_client(config: RunConfig, schedule: Mapping[int, Mapping[int, int]]) -> dict[int, dict[int, int]]:
    hosted = spread(config.num_clients, 4)
    return {r: {i: step for n, step in leaves.items() for i in hosted[n]} for r, leaves in schedule.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["sglr", "psl", "sfl"])
def test_nodes_that_leave_at_any_step_leave_the_same_weights_behind_as_in_a_plain_loop(method: str, seed: int) -> None:
    config = RunConfig.parse({**SETTINGS, "method": method, "seed": seed})
    gone, lost = draw(seed, config.num_server_rounds)
    fresh = {r: {i for n in nodes for i in spread(config.num_clients, 4)[n]} for r, nodes in lost.items()}

    *_, expected = plain_rounds(config, by_client(config, gone), fresh)

    assert largest_difference(engine(config, gone, lost), expected) < 1e-9
    *_, undisturbed = plain_rounds(config, {})
    assert largest_difference(undisturbed, expected) > 1e-3, "the schedule changes nothing, so the test shows nothing"


@pytest.mark.parametrize("method", ["sglr", "sfl"])
def test_without_departures_it_is_the_plain_loop(method: str) -> None:
    config = RunConfig.parse({**SETTINGS, "method": method, "num-server-rounds": 2, "fraction-train": 0.6})

    *_, weights = plain_rounds(config, {})

    assert largest_difference(weights, reference.plain_loop(config)) == 0.0


def test_a_client_that_leaves_after_its_last_step_has_taught_the_server_and_is_as_before_itself() -> None:
    config = RunConfig.parse({**SETTINGS, "num-server-rounds": 2})
    whole, left = list(plain_rounds(config, {})), list(plain_rounds(config, {2: {3: 99}}))

    assert largest_difference({"server": whole[1]["server"]}, {"server": left[1]["server"]}) == 0.0
    assert largest_difference({"": left[0]["client-3"]}, {"": left[1]["client-3"]}) == 0.0
    assert largest_difference({"": whole[1]["client-3"]}, {"": left[1]["client-3"]}) > 1e-3
