"""Who takes which place, which exchange is used, who is away and how it comes back: over a grid in this process."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flower.fakegrid import Clock, Device, FakeGrid, devices
from flwr.app import Error, RecordDict

from sglr_flower.errors import TooFewClients, UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.federation.folder import VARIABLE
from sglr_flower.flower.attendance import Attendance
from sglr_flower.flower.delivery import Failure
from sglr_flower.flower.greeting import ASK_SECONDS
from sglr_flower.flower.protocol import ANSWER, AssignOrder, HelloAnswer, Refusal
from sglr_flower.flower.roster import NOT_YET, Roster
from sglr_flower.flower.seating import Seating
from sglr_flower.flower.staterecords import STATES, unpack_states
from sglr_flower.run import assembly, checkpoint
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory, read_json

SETTINGS: dict[str, Any] = {
    "model": "flower.smallnet:network",
    "num-clients": 5,
    "samples-per-client": 16,
    "exchange": "grid",
    "start-timeout": 20.0,
}
TOLERANT = {"min-clients": 1}


def roster(tmp_path: Path, grid: FakeGrid, **settings: object) -> Roster:
    config = RunConfig.parse({**SETTINGS, **settings})
    directory = RunDirectory(tmp_path / "run")
    directory.claim(config)
    return Roster(grid, config, directory, None)  # type: ignore[arg-type]


def seats(made: Roster) -> dict[tuple[int, ...], int]:
    return {member.clients: member.node for member in made.members}


# ---- taking places


@pytest.mark.parametrize(
    ("count", "numbered", "expected"),
    [
        (2, True, {(0, 1, 2): 12, (3, 4): 11}),  # by their partitions
        (2, False, {(0, 1, 2): 11, (3, 4): 12}),  # by their ids
        (1, True, {(0, 1, 2, 3, 4): 11}),
        (6, True, {(0,): 16, (1,): 15, (2,): 14, (3,): 13, (4,): 12}),  # the last has no client
    ],
)
def test_clients_are_spread_over_the_nodes(
    count: int, numbered: bool, expected: dict[tuple[int, ...], int], tmp_path: Path, clock: Clock
) -> None:
    made = devices(tmp_path, count, numbered=numbered)
    grid = FakeGrid(made[:1])
    get = grid.get_node_ids

    def appearing() -> list[int]:  # all at once where they do not know of each other
        grid.devices = {device.number: device for device in made}
        return get()

    grid.get_node_ids = appearing  # type: ignore[method-assign]
    gathered = roster(tmp_path, grid)
    gathered.gather(None)
    assert seats(gathered) == expected
    assert gathered.sizes == dict.fromkeys(range(5), 16)
    assert not gathered.absent_clients


def test_two_nodes_of_one_partition_are_not_numbered(tmp_path: Path, clock: Clock) -> None:
    made = devices(tmp_path)
    made[1].context.node_config["partition-id"] = 1
    gathered = roster(tmp_path, FakeGrid(made))
    gathered.gather(None)
    assert seats(gathered) == {(0, 1, 2): 11, (3, 4): 12}


def test_a_node_config_with_no_number_is_the_nodes_own_sentence(tmp_path: Path, clock: Clock) -> None:
    made = devices(tmp_path)
    made[0].context.node_config["partition-id"] = "one"
    said = r"node device-0 \(11\): node-config key partition-id = 'one': it should be a whole number from 0"
    with pytest.raises(UserError, match=said):
        roster(tmp_path, FakeGrid(made)).gather(None)


def test_a_strict_run_waits_for_all_and_gives_up_after_start_timeout(tmp_path: Path, clock: Clock) -> None:
    began = clock.now
    with pytest.raises(ExchangeError, match=r"^still missing after 20 s \(start-timeout\): 1 of 2 node\(s\)$"):
        roster(tmp_path, FakeGrid(devices(tmp_path)[:1])).gather(None)
    assert 20 < clock.now - began < 21


def test_it_says_for_whom_it_waits_by_the_names_of_the_federation(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "lab" / "keys"
    keys.mkdir(parents=True)
    for name in ("device-0", "device-1", "attic"):
        (keys / f"{name}.pub").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lab"))
    grid, told = FakeGrid(devices(tmp_path, 3)[:2]), list[str]()
    waiting = roster(tmp_path, grid, **{"start-timeout": 40.0})
    status = RunDirectory.status

    def noted(self: RunDirectory, **changes: Any) -> None:
        told.extend([changes["waiting"]] if "waiting" in changes else [])
        status(self, **changes)

    monkeypatch.setattr(RunDirectory, "status", noted)
    with pytest.raises(ExchangeError, match=r"1 of 3 node\(s\): attic$"):
        waiting.gather(None)
    assert told == [f"waiting for 1 of 3 node(s): attic, {left} s left (start-timeout)" for left in (25, 10)]


def test_a_node_that_is_slow_to_read_its_data_is_named(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO)
    made = devices(tmp_path)
    made[0].changes["query.assign"] = lambda content: None
    gathered = roster(tmp_path, FakeGrid(made), **TOLERANT)
    gathered.gather(None)
    assert gathered.reasons() == "node device-0 (11): no reply within 300 s"
    assert "waiting for 1 node(s) that make their data ready: node device-0 (11), 285 s left" in caplog.text
    assert read_json(tmp_path / "run" / "status.json")["waiting"] == ""


def test_a_strict_run_ends_with_the_first_node_that_cannot_not_when_the_others_have_answered(
    tmp_path: Path, clock: Clock
) -> None:
    """One device has no such data and another's answer is lost: it is not waited for."""
    made = devices(tmp_path, 3)
    made[0].changes["query.assign"] = lambda content: None
    made[1].changes["query.assign"] = lambda content: RecordDict({ANSWER: Refusal("no images", "device-1").to_record()})
    began = clock.now
    with pytest.raises(UserError, match=r"^node device-1 \(12\): no images$"):
        roster(tmp_path, FakeGrid(made)).gather(None)
    assert clock.now - began < 1


def test_a_tolerant_run_begins_without_one_which_takes_its_place_later(tmp_path: Path, clock: Clock) -> None:
    first, late = devices(tmp_path)
    grid = FakeGrid([first])
    gathered = roster(tmp_path, grid, **TOLERANT)
    gathered.gather(None)
    assert seats(gathered) == {(0, 1, 2): 0, (3, 4): 11}
    assert gathered.absent_clients == {0, 1, 2}
    assert gathered.reasons() == f"the node of partition 0: {NOT_YET}"
    grid.devices[late.number] = late
    come(gathered, clock)
    assert seats(gathered) == {(0, 1, 2): 12, (3, 4): 11}


def come(gathered: Roster, clock: Clock, seconds: float = 3.0) -> None:
    until = clock.now + seconds
    while clock.now < until:
        gathered.take_back()
        clock.sleep(0.2)


# ---- how tensors travel


def hello(**changes: Any) -> HelloAnswer:
    right = {"name": "", "partition_id": -1, "num_partitions": -1, "capacity": 0, "threads": 1, "gpus": ()}
    return HelloAnswer(**{**right, "device": "cpu", "blocked": "", "memory": "", **changes})


PORT = SimpleNamespace(memory=SimpleNamespace(accepts=lambda said: said == "right"))


@pytest.mark.parametrize(
    ("nodes", "streams", "memory"),
    [
        ({1: hello(), 2: hello(blocked="a wall")}, {1}, set()),
        ({1: hello(memory="right"), 2: hello(memory="wrong")}, {1, 2}, {1}),
        ({1: hello(capacity=1), 2: hello(capacity=1)}, set(), set()),
        ({1: hello(capacity=2), 2: hello(capacity=2)}, {1, 2}, set()),
    ],
)
def test_who_streams(nodes: dict[int, HelloAnswer], streams: set[int], memory: set[int]) -> None:
    members = Seating(PORT, insists=False).seat(nodes, 2, 1, 0, NOT_YET)  # type: ignore[arg-type]
    assert {member.node for member in members if member.streams} == streams
    assert {member.node for member in members if member.memory} == memory


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ({1: hello(blocked="a\x1b wall")}, "exchange = 'stream': node 1 cannot open a stream (a wall); open the"),
        ({1: hello(capacity=1), 2: hello(capacity=1)}, "2 nodes take part but only 1 can run at the same time; use"),
    ],
)
def test_insisting_on_streams(nodes: dict[int, HelloAnswer], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        Seating(PORT, insists=True).seat(nodes, 2, 1, 0, NOT_YET)  # type: ignore[arg-type]
    assert sentence in str(raised.value)


# ---- away and back


@pytest.fixture
def two(tmp_path: Path, clock: Clock) -> tuple[Roster, FakeGrid]:
    grid = FakeGrid(devices(tmp_path))
    gathered = roster(tmp_path, grid, **TOLERANT)
    gathered.gather(None)
    return gathered, grid


def test_a_node_that_left_is_back_when_it_has_answered(two: tuple[Roster, FakeGrid], clock: Clock) -> None:
    gathered, _ = two
    gathered.lose(11, Failure("its disk is full"))
    assert gathered.absent_clients == {3, 4}
    assert gathered.reasons() == "node device-0 (11): its disk is full"
    assert gathered.left_lately
    come(gathered, clock)
    assert not gathered.absent_clients


def test_its_lost_states_are_named(
    two: tuple[Roster, FakeGrid], clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    gathered, _ = two
    member = gathered.of_node(11)
    gathered.finished(member, assembly.plan(RunConfig.parse({**SETTINGS, **TOLERANT}), 3))
    gathered.lose(11, Failure("gone"))
    come(gathered, clock)
    assert "device-0 (11) has no state of client 3, which starts from its initial segment" in caplog.text
    assert gathered.versions_of(member) == [3, 3]


def test_a_device_with_a_new_id_takes_its_own_place(two: tuple[Roster, FakeGrid], clock: Clock) -> None:
    gathered, grid = two
    old = grid.devices.pop(11)
    gathered.lose(11, Failure("gone", gone=True))
    grid.devices[99] = Device(99, dict(old.context.node_config), Path(str(old.context.node_config["state-dir"])))
    come(gathered, clock)
    assert seats(gathered) == {(0, 1, 2): 12, (3, 4): 99}


def test_a_node_that_says_why_it_cannot_is_left_alone_for_a_while(two: tuple[Roster, FakeGrid], clock: Clock) -> None:
    gathered, grid = two
    grid.devices[11].changes["query.assign"] = lambda content: Error(2, "ValueError: its data are gone")
    before = grid.asked[11, "query.assign"]
    gathered.lose(11, Failure("left"))
    come(gathered, clock, 4 * ASK_SECONDS)
    assert gathered.of_node(11).away == "ValueError: its data are gone"
    assert 3 <= grid.asked[11, "query.assign"] - before <= 6


def test_a_stranger_that_talks_nonsense_is_left_alone_for_a_while(two: tuple[Roster, FakeGrid], clock: Clock) -> None:
    gathered, grid = two
    gathered.lose(grid.devices.pop(11).number, Failure("gone", gone=True))
    stranger = Device(50, {"partition-id": 1, "num-partitions": 2}, Path("unused"))
    stranger.changes["query.hello"] = lambda content: RecordDict()
    grid.devices[50] = stranger
    come(gathered, clock, 4 * ASK_SECONDS)
    assert gathered.of_node(11).away == "gone"
    assert 3 <= grid.asked[50, "query.hello"] <= 5


def test_when_all_have_left_and_nobody_comes_back(two: tuple[Roster, FakeGrid], clock: Clock) -> None:
    gathered, grid = two
    grid.devices.clear()
    for node in (11, 12):
        gathered.lose(node, Failure("its network is gone"))
    with pytest.raises(TooFewClients, match=r"all nodes have left: node device-1 \(12\): its network is gone; node"):
        gathered.wait_for_anybody()


@pytest.mark.parametrize(
    ("failure", "error", "sentence"),
    [
        (Failure("batch-size = 0", mistake=True), UserError, r"^node device-0 \(11\): batch-size = 0"),
        (Failure("no memory"), ExchangeError, r"node device-0 \(11\) failed: no memory"),
        (Failure("rubbish", nonsense=True), ExchangeError, r"node device-0 \(11\) failed: rubbish"),
    ],
)
def test_a_strict_run_ends_with_a_node(
    failure: Failure, error: type[Exception], sentence: str, tmp_path: Path, clock: Clock
) -> None:
    gathered = roster(tmp_path, FakeGrid(devices(tmp_path)))
    gathered.gather(None)
    with pytest.raises(error, match=sentence):
        gathered.lose(11, failure)


# ---- states of a checkpoint


@pytest.mark.parametrize(("evaluate", "travel"), [("server", True), ("client", False)])
def test_a_resumed_run_sends_a_device_the_states_of_its_clients(
    evaluate: str, travel: bool, tmp_path: Path, clock: Clock
) -> None:
    grid = FakeGrid(devices(tmp_path))
    gathered = roster(tmp_path, grid, evaluate=evaluate)
    config = RunConfig.parse({**SETTINGS, "evaluate": evaluate})
    directory = RunDirectory(tmp_path / "run")
    cohort = assembly.cohort(config, [0, 3])
    states = {client: cohort.state(client) for client in ((0, 3) if travel else ())}
    server = assembly.server(config).state()
    checkpoint.save(directory.checkpoints, 4, server, states, {"rows": []}, None, {1: 0, 2: 0, 4: 0}, {})
    gathered.gather(directory.latest_checkpoint())
    for message in grid.sent:
        if message.metadata.message_type == "query.assign":
            order = AssignOrder.from_content(message.content)
            sent = dict(zip(order.clients, order.sent or (), strict=False))
            assert {client for client, version in sent.items() if version} == set(order.clients) & states.keys()
            assert (STATES in message.content) == travel
            if travel:
                assert unpack_states(message.content).keys() == set(order.clients) & states.keys()
    assert gathered.versions(4) == {1: 0, 2: 0, 4: 0}


# ---- an attempt of a round


def test_an_attempt_counts_who_is_left(two: tuple[Roster, FakeGrid]) -> None:
    gathered, _ = two
    config = RunConfig.parse({**SETTINGS, **TOLERANT})
    plan = assembly.plan(config, 1)
    attempt = Attendance(gathered, plan, 1, 3)
    assert attempt.enough
    assert attempt.complete
    attempt.leave(11, Failure("odd"))
    attempt.leave(11, Failure("again"))  # it has left already
    assert attempt.enough
    assert (attempt.nodes, attempt.dropped_clients) == (1, 2)
    assert attempt.left(11)
    with pytest.raises(TooFewClients, match=r"round 1: 0 of its 5 client\(s\) are there and it needs 3 .min-clients"):
        attempt.leave(12, Failure("its cable"))
    assert {row.clients: (row.state, row.reason) for row in attempt.rows()} == {
        (0, 1, 2): ("dropped", "its cable"),
        (3, 4): ("dropped", "odd"),
    }
    assert {entry["state"] for entry in attempt.entries()} == {"returning"}
    attempt.finish()
    assert gathered.versions(1) == dict.fromkeys(range(5), 0)


def test_who_remains_has_finished_the_round(two: tuple[Roster, FakeGrid]) -> None:
    gathered, _ = two
    plan = assembly.plan(RunConfig.parse({**SETTINGS, **TOLERANT}), 1)
    gathered.lose(11, Failure("left before"))
    attempt = Attendance(gathered, plan, 1, 1)
    assert attempt.plan.clients == (0, 1, 2)
    attempt.finish()
    assert gathered.versions(1) == {3: 0, 4: 0}
    assert {row.clients: row.state for row in attempt.rows()} == {(0, 1, 2): "finished", (3, 4): "away"}
