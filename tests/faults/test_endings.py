"""A run that ends before its time, in whatever way, leaves its nodes free and its last checkpoint whole.

One run is ended again and again, at a random step each time, resumed on the same federation, and compared at its end
with a run that nothing ever ended. ``SGLR_FAULT_SEEDS=20`` is the full suite.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import faulty
from faults.campaign import PATIENCE, SETTINGS, STEPS
from faults.faulty import Fault
from faults.harness import Federation, Run, release, struck, wait
from faults.table import Line
from faults.verdict import departures, weights_differ

from sglr_flower.run.rundir import RunDirectory

pytestmark = pytest.mark.flower

NODES = 2  # each costs seconds of CPU time for every message
CLIENTS = 3
FREE_SECONDS = 30.0
"""Within this no ClientApp may be left."""
QUIET_SECONDS = 3.0
"""A run between two messages has no ClientApp for a moment; one that has none for this long has ended."""


@dataclass(frozen=True)
class Ending:
    """A way in which a run ends.

    Attributes
    ----------
    kind : str
        What the ServerApp does at the planned step (`faulty`).
    act : Callable[[Federation, Run], None] | None
        What the harness does while the ServerApp holds there.
    """

    kind: str
    act: Callable[[Federation, Run], None] | None = None


def flwr_stop(federation: Federation, run: Run) -> None:
    listed = json.loads(federation.command("flwr", "ls", Federation.NAME, "--format", "json"))["runs"]
    running = [entry["run-id"] for entry in listed if entry["status"] == "running"]
    assert len(running) == 1, listed
    said = federation.command("flwr", "stop", running[0], Federation.NAME)
    assert "successfully stopped" in said, said


ENDINGS: Mapping[str, Ending] = {
    "flwr stop": Ending("hold", flwr_stop),
    "Ctrl-C of sglr run": Ending("hold", lambda federation, run: run.interrupt()),
    "ServerApp raises": Ending("raise"),
    "ServerApp killed": Ending("kill"),
    "SuperLink killed": Ending("hold", lambda federation, run: federation.kill_link()),
}


@pytest.mark.timeout(0)
def test_a_run_ended_in_whatever_way_frees_its_nodes_and_is_resumed_to_the_weights_of_a_plain_loop(
    federation: Federation, tmp_path: Path, seeds: int, lines: dict[str, Line]
) -> None:
    draw = random.Random(seeds)
    each = _often(seeds)
    names = draw.sample(list(ENDINGS) * each, len(ENDINGS) * each)
    # A run goes on for some rounds after `flwr stop`, until its ServerApp asks the SuperLink how it is.
    settings = {"num-clients": CLIENTS, "num-server-rounds": 3 * len(names)}
    wrong: list[str] = []
    with Run(federation, tmp_path / "endings", {**SETTINGS, **settings}) as run:
        run.submit()
        for number, name in enumerate(names):
            server_round = _next_round(run) + draw.randrange(2)
            fault = Fault(f"ending-{number}", ENDINGS[name].kind, server_round, draw.randrange(STEPS))
            here, seconds = _end(run, name, fault)
            lines.setdefault(name, Line(name)).count(here, seconds)
            wrong += here
            run.resume()
        wait(run.ended, 20 * PATIENCE, "the run ends")
    if run.exit_code != 0:
        wrong.append(f"the resumed run failed: {run.said}")
    wrong += _unlike_the_plain_loop(run)
    assert not wrong, "\n".join(wrong)


def _end(run: Run, name: str, fault: Fault) -> tuple[list[str], float]:
    """End a run at the planned step; what was wrong, and after how many seconds its nodes were free."""
    federation, ending = run.federation, ENDINGS[name]
    faulty.write_plan(federation.faults, [fault])
    wait(lambda: struck(federation.faults, fault) is not None or run.ended(), 2 * PATIENCE, f"{fault} strikes")
    moment = struck(federation.faults, fault)
    assert moment is not None, f"the run ended before {name}: {run.said}"
    if ending.act is not None:
        ending.act(federation, run)
    release(federation.faults, fault)
    seconds = _free(federation) - moment
    wrong = [] if seconds <= FREE_SECONDS else [f"{name}: a ClientApp was left for {seconds:.0f} s"]
    if name == "SuperLink killed":
        federation.start_server()
    wait(run.ended, PATIENCE, f"the submitting command ends after {name}")
    if run.exit_code == 0:
        wrong.append(f"{name}: the submitting command says that all is well: {run.said}")
    return wrong + _checkpoint_lost(run), seconds


@pytest.mark.timeout(0)
def test_a_run_that_never_has_enough_clients_ends_with_an_error_and_goes_on_from_its_last_checkpoint(
    federation: Federation, tmp_path: Path, seeds: int, lines: dict[str, Line]
) -> None:
    wrong: list[str] = []
    for seed in range(_often(seeds)):
        draw = random.Random(seed)
        settings = {"num-clients": CLIENTS, "num-server-rounds": 3, "min-clients": CLIENTS, "round-retries": 1}
        fault = Fault("ever", "nan", 2, draw.randrange(STEPS), draw.randrange(NODES), again=True)
        with Run(federation, tmp_path / f"never-{seed}", {**SETTINGS, **settings, "seed": seed}) as run:
            here = _end_for_lack_of_clients(run, fault)
            federation.forget_faults()
            run.resume()
            wait(run.ended, 4 * PATIENCE, "the resumed run ends")
        if run.exit_code != 0:
            here.append(f"the resumed run failed: {run.said}")
        here += _unlike_the_plain_loop(run)
        line = "too few clients for ever: error, then resumed"
        lines.setdefault(line, Line(line)).count(here, None)
        wrong += here
    assert not wrong, "\n".join(wrong)


def _end_for_lack_of_clients(run: Run, fault: Fault) -> list[str]:
    """A node that fails in every attempt of a round that needs it; what was wrong with the run's end."""
    run.submit()
    faulty.write_plan(run.federation.faults, [fault])
    wait(run.ended, 4 * PATIENCE, "the run gives up")
    wrong = []
    error = run.status().get("error", "")
    if run.exit_code == 0 or not re.search(r"round 2: \d of its 3 client\(s\) .*min-clients", error):
        wrong.append(f"it ended with exit code {run.exit_code} and {error!r}")
    lost = [row["attempt"] for row in run.node_rows() if row["round"] == "2" and row["state"] == "dropped"]
    if lost != ["1", "2"]:
        wrong.append(f"nodes.csv has drops in attempts {lost}")
    return wrong + _checkpoint_lost(run)


def _often(seeds: int) -> int:
    """Each takes a minute or two: once is enough in the small suite."""
    return seeds if seeds > 2 else 1


def _next_round(run: Run) -> int:
    """The round that a run begins with when it is resumed."""
    restored = RunDirectory(run.directory).latest_checkpoint() if run.directory.exists() else None
    return restored.server_round + 1 if restored else 1


def _free(federation: Federation) -> float:
    """When the last process of the run's apps had ended, seconds since the epoch."""
    busy = time.time()

    def free() -> bool:
        nonlocal busy
        if federation.processes("flwr-clientapp") or federation.processes("flwr-serverapp"):
            busy = time.time()
        return time.time() - busy > QUIET_SECONDS

    wait(free, PATIENCE, "no app is left")
    return busy


def _checkpoint_lost(run: Run) -> list[str]:
    """What was recorded as done must be in a whole checkpoint."""
    restored = RunDirectory(run.directory).latest_checkpoint()
    has = restored.server_round if restored else 0
    return [] if has >= run.rounds_done() else [f"{run.rounds_done()} rounds were done, the last checkpoint has {has}"]


def _unlike_the_plain_loop(run: Run) -> list[str]:
    folders = run.directory.glob("checkpoints/round-*")
    servers = {int(folder.name.removeprefix("round-")): folder / "server.safetensors" for folder in folders}
    return weights_differ(run, servers, departures(run.node_rows()), {})
