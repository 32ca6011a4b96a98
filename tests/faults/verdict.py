"""What must be true of a run after a campaign: ``nodes.csv`` says what was injected, and the weights agree with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from faults.campaign import SPECIMENS, STEPS, Campaign, Injection
from faults.harness import Run, last_attempts, node_of, trace
from integration.runs import largest_difference
from reference import Weights
from reference_dropouts import plain_rounds
from safetensors.torch import load_file

from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodetable import REMAINED
from sglr_flower.split.optimizers import segment_weights
from sglr_flower.split.plan import spread

TOLERANCE = 1e-9
RETURN_SECONDS = 300.0
"""Within this a node is back: Flower needs a minute to see that a ClientApp is dead, and a round may be under way."""


def departures(rows: Iterable[Mapping[str, str]]) -> dict[int, dict[int, int]]:
    """Who left when, as ``nodes.csv`` has it, for `plain_rounds`."""
    return {
        number: {
            int(client): int(row["steps"]) if row["state"] == "dropped" else 0
            for row in block
            if row["state"] != "finished"
            for client in row["clients"].split()
        }
        for number, block in last_attempts(rows).items()
    }


def verify(campaign: Campaign) -> list[str]:
    """Judge a campaign: each injection gets its `wrong`, and what is wrong with the run as a whole is returned."""
    run, federation = campaign.run, campaign.federation
    wrong: list[str] = []
    rows, steps = run.node_rows(), trace(federation.faults)
    if run.exit_code != 0 or run.status().get("state") != "finished":
        wrong.append(f"the run ended as {run.status()}: {run.said[-2000:]}")
    for injection in campaign.injections:
        _judge(injection, rows, steps, campaign)
    wrong += _undisturbed(campaign, rows)
    wrong += _trace_agrees(rows, steps, run.settings["num-clients"])
    if lost := set(range(1, run.rounds_done() + 1)) - campaign.servers.keys():
        wrong.append(f"rounds {sorted(lost)} left no checkpoint")
    wrong += weights_differ(run, campaign.servers, departures(rows), _fresh(campaign, rows))
    return wrong


def _judge(
    injection: Injection, rows: Sequence[Mapping[str, str]], steps: Sequence[Mapping[str, Any]], campaign: Campaign
) -> None:
    """Whether ``nodes.csv`` has what was injected: that node, that step; and whether the node came back."""
    fault, specimen = injection.fault, SPECIMENS[injection.name]
    assert injection.struck is not None
    mine = [row for row in rows if node_of(row, campaign.federation, campaign.run) == fault.node]
    here = [row for row in mine if int(row["round"]) == fault.round]
    dropped = [row for row in here if row["state"] == "dropped"]
    expected = range(fault.step, fault.step + specimen.late + 1)
    # A process killed in the milliseconds after its last frame may have said that it is done.
    done = specimen.late and fault.step == STEPS - 1 and any(row["state"] == "finished" for row in here)
    if not done:
        if not dropped:
            injection.wrong.append(f"not dropped in round {fault.round}: {[dict(row) for row in here]}")
        elif int(dropped[0]["steps"]) not in expected:
            injection.wrong.append(f"dropped at step {dropped[0]['steps']} instead of {fault.step}")
        elif not re.search(specimen.reason, dropped[0]["reason"]):
            injection.wrong.append(f"the reason given is {dropped[0]['reason']!r}")
    clients = set(spread(campaign.run.settings["num-clients"], campaign.federation.count)[fault.node or 0])
    # Counted from the harness's own trace: when the server went on without the node, and when it went on with it again.
    went_on = [line for line in steps if line["time"] > injection.struck]
    without = next((line["time"] for line in went_on if not clients & set(line["clients"])), None)
    if without is None:  # the round was trained again, with the node
        without = next((line["time"] for line in went_on if line["step"] == 0), injection.struck)
    injection.recovered = without - injection.struck
    back = next((line["time"] for line in went_on if line["time"] >= without and clients & set(line["clients"])), None)
    if back is not None:
        injection.returned = back - injection.struck
    elif went_on[-1]["time"] - injection.struck > RETURN_SECONDS:
        injection.wrong.append(f"the node did not come back within {RETURN_SECONDS:g} s")


def _undisturbed(campaign: Campaign, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Nodes that left though nothing had happened to them, or were away without having left."""
    hit = {(i.fault.node, i.fault.round) for i in campaign.injections}
    wrong: list[str] = []
    was: dict[int, str] = {}
    for row in rows:
        node, number = node_of(row, campaign.federation, campaign.run), int(row["round"])
        if row["state"] == "dropped" and (node, number) not in hit:
            wrong.append(f"node {node} was dropped in round {number} for no reason: {row['reason']}")
        if row["state"] == "away" and was.get(node, "finished") in REMAINED:
            wrong.append(f"node {node} was away in round {number} without having left: {row['reason']}")
        if row["state"] == "finished" and int(row["steps"]) != STEPS:
            wrong.append(f"node {node} finished round {number} after {row['steps']} steps")
        was[node] = row["state"]
    return wrong


def _trace_agrees(rows: Iterable[Mapping[str, str]], steps: Sequence[Mapping[str, Any]], clients: int) -> list[str]:
    """``nodes.csv`` against what the server's optimizer really used."""
    wrong = []
    for number, block in last_attempts(rows).items():
        mine = [line for line in steps if line["round"] == number]
        starts = [k for k, line in enumerate(mine) if line["step"] == 0]
        used = dict.fromkeys(range(clients), 0)
        for line in mine[starts[-1] :] if starts else ():
            used |= {i: used[i] + 1 for i in line["clients"]}
        said = {int(i): int(row["steps"]) for row in block for i in row["clients"].split()}
        if used != said:
            wrong.append(f"round {number}: nodes.csv says {said} steps, the server used {used}")
    return wrong


def _fresh(campaign: Campaign, rows: Sequence[Mapping[str, str]]) -> dict[int, list[int]]:
    """Round -> clients whose node had lost its disk when it began."""
    hosted = spread(campaign.run.settings["num-clients"], campaign.federation.count)
    fresh: dict[int, list[int]] = {}
    for injection in campaign.injections:
        fault = injection.fault
        if SPECIMENS[injection.name].outside != "restart_bare":
            continue
        again = [row for row in rows if int(row["round"]) == fault.round and int(row["attempt"]) > 1]
        fresh.setdefault(fault.round if again else fault.round + 1, []).extend(hosted[fault.node or 0])
    return fresh


def weights_differ(
    run: Run,
    servers: Mapping[int, Path],
    gone: Mapping[int, Mapping[int, int]],
    fresh: Mapping[int, Sequence[int]],
) -> list[str]:
    """The server's weights after the rounds in ``servers`` and the clients' at the end, against the plain loop."""
    config = RunConfig.parse(run.settings)
    wrong: list[str] = []
    last = run.rounds_done()
    expected: Weights = {}
    for number, expected in enumerate(plain_rounds(config, gone, fresh), 1):
        if number in servers:
            server = {"": segment_weights(load_file(servers[number]))}
            if not (off := largest_difference(server, {"": expected["server"]})) < TOLERANCE:
                return [*wrong, f"after round {number} the server's weights are {off:.1e} off the plain loop's"]
        if number == last:
            break
    states = run.client_states()
    for client in range(config.num_clients):
        # Newer ones are of a round that the server does not count.
        versions = [version for version in states.get(client, {}) if version <= last]
        if not versions and any(client in lost for lost in fresh.values()):
            continue  # its node lost its disk, and it has not finished a round since
        version = max(versions, default=0)
        initial = assembly.model(config).client_segment(client).state_dict()
        mine = {"": segment_weights(load_file(states[client][version])) if versions else initial}
        if not (off := largest_difference(mine, {"": expected[f"client-{client}"]})) < TOLERANCE:
            wrong.append(f"client {client}'s weights (of round {version}) are {off:.1e} off the plain loop's")
    return wrong
