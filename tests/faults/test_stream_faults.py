"""Faults of real node processes on the real stream: each leaves the weights of a plain loop without that node.

As `test_faults`, with the same judge, but without Flower around it: seconds become tenths of a second, so that every
fault can be tried with many seeds. ``SGLR_FAULT_SEEDS=20`` is the full suite; ``SGLR_STREAM_FAULT_REPORT`` names a JSON
file for the table.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import pytest
from faults.stream_faults import IMPATIENT, PATIENT, Attempt, Ground, StreamRun, clients_left
from faults.stream_nodes import CLIENTS, HOSTED, KILL_OUTSIDE, STEPS, WITHHELD, WRONG_SECRET, Strike
from faults.table import Line
from integration.runs import largest_difference
from reference_dropouts import plain_rounds

from sglr_flower.exchange.link import BROKEN
from sglr_flower.split.optimizers import segment_weights

UNBORN = 8.0
"""Start-timeout where a process dies: one that dies before its call has reached the server is missed only by that."""
REPORT = "SGLR_STREAM_FAULT_REPORT"
TOLERANCE = 1e-9
FINISHED_NOT = 99
"""A step beyond the round's last one (`reference_dropouts.Departures`)."""


@dataclass(frozen=True)
class Specimen:
    """A fault as the table names it.

    Attributes
    ----------
    kind : str
        Of `Strike`.
    reason : str
        Pattern of the recorded reason.
    first, last : int
        Between which steps it is drawn.
    far : bool
        Whether the nodes reach the server through the proxy.
    timeout, start_timeout : float
        The round's.
    stays : bool
        Whether the node is to stay in the round.
    """

    kind: str
    reason: str
    first: int = 0
    last: int = STEPS - 1
    far: bool = False
    timeout: float = PATIENT
    start_timeout: float = PATIENT
    stays: bool = False


_NO_FRAME = f"no frame within {IMPATIENT:g} s"
_NO_FIRST_FRAME = f"no first frame within {IMPATIENT:g} s"
_DEAD = f"{BROKEN}|no first frame within {UNBORN:g} s"
_PLACE = r"'\w+' step \d+ of round \d+ instead of train step \d+ of round \d+"
SPECIMENS: Mapping[str, Specimen] = {
    "process kills itself": Specimen("kill", _DEAD, start_timeout=UNBORN),
    "process killed from outside": Specimen(KILL_OUTSIDE, _DEAD, start_timeout=UNBORN),
    "connection reset": Specimen("cut", "UNAVAILABLE", far=True),
    "connection closed": Specimen("close off", "UNAVAILABLE", far=True),
    "connection silent": Specimen("silence", _NO_FRAME, first=1, far=True, timeout=IMPATIENT),
    "process stopped": Specimen("stop", _NO_FRAME, first=1, timeout=IMPATIENT),
    "process asleep": Specimen("sleep", _NO_FRAME, first=1, timeout=IMPATIENT),
    "no stream": Specimen(WITHHELD, _NO_FIRST_FRAME, last=0, start_timeout=IMPATIENT),
    "a stream without a frame": Specimen("hold", _NO_FIRST_FRAME, last=0, start_timeout=IMPATIENT),
    "wrong secret": Specimen(WRONG_SECRET, "wrong, used or outdated secret", last=0),
    "secret shown twice": Specimen("steal", "", first=1, stays=True),
    "NaN": Specimen("nan", "not finite"),
    "wrong shape": Specimen("shape", "smashed data of shape"),
    "wrong dtype": Specimen("dtype", "smashed data of shape .* torch.float32"),
    "labels out of range": Specimen("labels", r"labels from \d+ to \d+"),
    "wrong round": Specimen("round", _PLACE),
    "wrong step": Specimen("step", _PLACE),
    "frame replayed": Specimen("replay", _PLACE, first=1),
    "another split": Specimen("split", _PLACE),
    "another node's client": Specimen("client", r"clients \(.*\) with"),
    "wrong `last`": Specimen("last", "the node's last one"),
    "random bytes": Specimen("random bytes", "the frame is no upload|client"),
    "random tensors": Specimen("random tensors", "tensors that cannot be read|a header of"),
    "tensors truncated": Specimen("truncated tensors", "tensors that cannot be read|a header of"),
    "frame truncated": Specimen("truncated frame", "the frame is no upload|client|tensors that cannot be read"),
    "frame too large": Specimen("oversized", "RESOURCE_EXHAUSTED|larger than max"),
}
QUICK = ("kill", "cut", "nan", "shape", "client", "random bytes", "oversized")
"""Kinds of which two strike one round."""


@pytest.fixture(scope="module")
def seeds() -> int:
    """How often each fault is tried: here that takes a second, so twice where nobody asks for more."""
    return int(os.environ.get("SGLR_FAULT_SEEDS", "2"))


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    """Ports and processes, ended and looked after at the end."""
    made = Ground()
    yield made
    wrong = made.close()
    assert not wrong, wrong


@pytest.fixture(scope="module")
def table(lines: dict[str, Line]) -> Iterator[dict[str, Line]]:
    """The suite's table, printed at the end of the session; this file's part of it also goes into a file."""
    yield lines
    if path := os.environ.get(REPORT):
        mine = [asdict(line) for name, line in lines.items() if name.startswith("stream: ")]
        Path(path).write_text(json.dumps(mine, indent=2) + "\n")


class Beside:
    """A run beside the plain loop of the same departures; begins with a round in which nothing happens."""

    def __init__(self, ground: Ground, folder: Path, seed: int, *, far: bool = False) -> None:
        self.run = StreamRun(ground, ground.far if far else ground.near, folder, seed)
        self.round = 1
        self._gone: dict[int, dict[int, int]] = {}
        self._expected = plain_rounds(self.run.config, self._gone)
        wrong = self.calm()
        assert not wrong, wrong

    def calm(self) -> list[str]:
        """A round in which nothing is struck; what is wrong with it."""
        attempt = self.run.attempt(self.round, {})
        return [f"in the round after it: {what}" for what in others_wrong(attempt, set()) + self.compare({})]

    def compare(self, gone: Mapping[int, int]) -> list[str]:
        """The round is over, nodes are ``gone`` from a step on: all weights, the server's and the clients'."""
        self._gone[self.round] = {client: step for number, step in gone.items() for client in HOSTED[number]}
        expected = next(self._expected)
        self.round += 1
        weights = {f"client-{i}": segment_weights(state) for i, state in self.run.client_states().items()}
        weights["server"] = segment_weights(self.run.segment.state())
        if weights.keys() != expected.keys():
            return [f"there are states of {sorted(weights)} only"]
        off = {part: largest_difference({"": weights[part]}, {"": expected[part]}) for part in expected}
        return [f"{part} is {much:.1e} off the plain loop" for part, much in off.items() if not much < TOLERANCE]


def others_wrong(attempt: Attempt, struck: set[int]) -> list[str]:
    """What is wrong with the nodes to which nothing has happened, or with the end of the round."""
    fine = {n for n in attempt.done - attempt.dropped.keys() if attempt.frames[n] == STEPS}
    return [f"node {number} did not end the round" for number in attempt.busy] + [
        f"node {number}, to which nothing had happened: {attempt}" for number in HOSTED.keys() - struck - fine
    ]


def draw_strike(kind: str, first: int, last: int, draw: Random) -> Strike:
    seconds = IMPATIENT + 0.3 if kind == "sleep" else draw.uniform(0, 0.02)
    return Strike(kind, draw.randint(first, last), draw.getrandbits(32), seconds)


def strike_one(beside: Beside, specimen: Specimen, draw: Random) -> tuple[list[str], float | None]:
    """One node, one fault, and the round after it: what is wrong, and the seconds until the server went on."""
    number, strike = draw.choice(list(HOSTED)), draw_strike(specimen.kind, specimen.first, specimen.last, draw)
    attempt = beside.run.attempt(
        beside.round, {number: strike}, timeout=specimen.timeout, start_timeout=specimen.start_timeout
    )
    gone, wrong = _departure(attempt, specimen, number, strike)
    wrong += others_wrong(attempt, {number}) + beside.compare(gone)
    wrong += beside.calm()
    went_on = [*attempt.stamps, attempt.over][min(gone.get(number, strike.step), STEPS)]
    seconds = went_on - attempt.struck[number] if number in attempt.struck else None
    return wrong, seconds if seconds is None or seconds > 0 else None  # it may be killed when the round is over


def _departure(attempt: Attempt, specimen: Specimen, number: int, strike: Strike) -> tuple[dict[int, int], list[str]]:
    """When the node left for the plain loop, and what is wrong with it."""
    wrong = ["it ended by TooFewClients"] if attempt.too_few else []
    if number not in attempt.struck:
        wrong.append("it was not struck")
    if specimen.stays:
        if "wrong, used or outdated secret" not in attempt.stolen:
            wrong.append(f"whoever showed the secret again was told {attempt.stolen!r}")
        return {}, wrong + others_wrong(attempt, set())
    if number not in attempt.dropped:
        if specimen.kind != KILL_OUTSIDE:
            wrong.append(f"it was not dropped: {attempt}")
        # Killed after its last frame: the server has all of it, and whether the node had finished is the node's to say.
        return ({} if number in attempt.done else {number: FINISHED_NOT}), wrong
    step, reason = attempt.dropped[number]
    if specimen.kind != KILL_OUTSIDE and step != strike.step:
        wrong.append(f"recorded at step {step} instead of {strike.step}")
    if not re.search(specimen.reason, reason):
        wrong.append(f"the recorded reason is {reason!r}")
    return {number: step}, wrong


@pytest.mark.timeout(0)  # each round has a watchdog
@pytest.mark.parametrize("name", SPECIMENS)
def test_a_round_goes_on_without_the_node_and_the_next_one_with_it(
    name: str, ground: Ground, tmp_path: Path, seeds: int, table: dict[str, Line]
) -> None:
    specimen, line = SPECIMENS[name], table.setdefault(f"stream: {name}", Line(f"stream: {name}"))
    beside: Beside | None = None
    for seed in range(seeds):
        # A run goes on from fault to fault, but not after one that went wrong: all after it would be wrong too.
        beside = beside or Beside(ground, tmp_path / f"run-{seed}", seed, far=specimen.far)
        wrong, seconds = strike_one(beside, specimen, Random(f"{name} {seed}"))
        line.count([f"seed {seed}: {what}" for what in wrong], seconds)
        beside = None if wrong else beside
    assert not line.wrong, "\n".join(line.wrong)


def strike_two(beside: Beside, draw: Random, *, enough: bool) -> tuple[list[str], float]:
    """Two nodes in one round, with so many clients needed that it goes on, or ends and is trained again."""
    numbers = draw.sample(list(HOSTED), 2)
    strikes = {number: draw_strike(draw.choice(QUICK), 0, STEPS - 1, draw) for number in numbers}
    left = clients_left(numbers)
    need = draw.randint(1, left) if enough else draw.randint(left + 1, CLIENTS)
    attempt = beside.run.attempt(beside.round, strikes, min_clients=need, start_timeout=UNBORN)
    wrong = [f"node {number} did not end the round" for number in attempt.busy]
    if attempt.too_few == enough:
        wrong.append(f"{need} clients needed, {left} left: {attempt}")
    wrong += [
        f"node {number} is recorded at step {step} ({reason})"
        for number, (step, reason) in attempt.dropped.items()
        if number not in strikes or step != strikes[number].step
    ]
    if enough:
        wrong += others_wrong(attempt, set(numbers)) + beside.compare({n: s.step for n, s in strikes.items()})
        last = max(strikes, key=lambda n: strikes[n].step)
        seconds = [*attempt.stamps, attempt.over][strikes[last].step] - attempt.struck[last]
    else:
        *earlier, last = attempt.dropped
        if not clients_left(attempt.dropped) < need <= clients_left(earlier):
            wrong.append(f"{need} clients needed, it ended when {[*earlier, last]} had left")
        if len(attempt.stamps) != strikes[last].step or attempt.done:
            wrong.append(f"it ended after {len(attempt.stamps)} steps instead of {strikes[last].step}: {attempt}")
        seconds = attempt.over - attempt.struck[last]
        wrong += beside.calm()  # the same round again
    return wrong + beside.calm(), seconds


@pytest.mark.timeout(0)
@pytest.mark.parametrize("enough", [True, False], ids=["enough", "too-few"])
def test_a_round_that_loses_two_nodes_goes_on_exactly_if_enough_clients_are_left(
    enough: bool, ground: Ground, tmp_path: Path, seeds: int, table: dict[str, Line]
) -> None:
    name = f"stream: two nodes, {'enough' if enough else 'too few'} left"
    line = table.setdefault(name, Line(name))
    beside: Beside | None = None
    for seed in range(seeds):
        beside = beside or Beside(ground, tmp_path / f"run-{seed}", seed, far=True)
        wrong, seconds = strike_two(beside, Random(f"{name} {seed}"), enough=enough)
        line.count([f"seed {seed}: {what}" for what in wrong], seconds)
        beside = None if wrong else beside
    assert not line.wrong, "\n".join(line.wrong)


def test_the_judge_sees_a_departure_one_step_beside_the_recorded_one(ground: Ground, tmp_path: Path) -> None:
    beside = Beside(ground, tmp_path, 0)
    beside.run.attempt(beside.round, {1: Strike("nan", 3)})

    wrong = beside.compare({1: 4})

    assert {what.partition(" is ")[0] for what in wrong} >= {"server", "client-0"}
