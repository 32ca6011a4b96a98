"""What must be true of a run after a campaign: ``nodes.csv`` says what was injected, and the weights agree with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from faults.campaign import SPECIMENS, STEPS, Campaign, Injection
from faults.harness import Federation, Run, last_attempts, node_of, trace
from integration.runs import largest_difference
from reference_dropouts import plain_rounds
from safetensors.torch import load_file

from sglr_flower.config import RunConfig
from sglr_flower.split.optimizers import segment_weights
from sglr_flower.split.plan import spread

TOLERANCE = 1e-9


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


def verify(campaign: Campaign, names: Sequence[str]) -> list[str]:
    """Judge a campaign: each injection gets its `wrong`, and what is wrong with the run as a whole is returned."""
    run, federation = campaign.run, campaign.federation
    wrong: list[str] = []
    rows = run.node_rows()
    if run.status().get("state") != "finished":
        wrong.append(f"the run ended as {run.status()}: {run.said[-2000:]}")
    for injection in campaign.injections:
        _judge(injection, rows, campaign)
    if missed := len(names) - sum(injection.struck is not None for injection in campaign.injections):
        wrong.append(f"{missed} faults were not injected: too few rounds")
    wrong += _undisturbed(campaign, rows)
    wrong += _trace_agrees(rows, trace(federation.faults), run.settings["num-clients"])
    wrong += weights_differ(run, federation, campaign.servers, departures(rows), _fresh(campaign, rows))
    return wrong


def _judge(injection: Injection, rows: Sequence[Mapping[str, str]], campaign: Campaign) -> None:
    """Whether ``nodes.csv`` has what was injected: that node, that step; and whether the node came back."""
    fault, specimen = injection.fault, SPECIMENS[injection.name]
    if injection.struck is None:
        return
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
    later = [row for row in mine if fault.round < int(row["round"]) <= fault.round + 3]
    if len(later) >= 3 and not any(row["state"] == "finished" or int(row["steps"]) for row in later):
        injection.wrong.append("the node did not come back within three rounds")
    clients = set(spread(campaign.run.settings["num-clients"], campaign.federation.count)[fault.node or 0])
    for line in trace(campaign.federation.faults):
        if line["time"] > injection.struck and not clients & set(line["clients"]):
            injection.recovered = line["time"] - injection.struck
            break


def _undisturbed(campaign: Campaign, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Nodes that left although nothing had happened to them in that round, nor in one of the two before."""
    hit = {(i.fault.node, i.fault.round) for i in campaign.injections if i.struck is not None}
    wrong = []
    for row in rows:
        node, number = node_of(row, campaign.federation, campaign.run), int(row["round"])
        excused = any((node, number - ago) in hit for ago in range(3))
        if row["state"] != "finished" and not excused:
            wrong.append(f"node {node} is {row['state']} in round {number} for no reason: {row['reason']}")
        if row["state"] == "finished" and int(row["steps"]) != STEPS:
            wrong.append(f"node {node} finished round {number} after {row['steps']} steps")
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
        if injection.struck is None or SPECIMENS[injection.name].outside != "restart_bare":
            continue
        again = [row for row in rows if int(row["round"]) == fault.round and int(row["attempt"]) > 1]
        fresh.setdefault(fault.round if again else fault.round + 1, []).extend(hosted[fault.node or 0])
    return fresh


def weights_differ(
    run: Run,
    federation: Federation,
    servers: Mapping[int, Path],
    gone: Mapping[int, Mapping[int, int]],
    fresh: Mapping[int, Sequence[int]],
) -> list[str]:
    """The server's weights after every round and the clients' at the end, against the plain loop."""
    config = RunConfig.parse(run.settings)
    wrong: list[str] = []
    last = run.rounds_done()
    expected = {}
    for number, expected in enumerate(plain_rounds(config, gone, fresh), 1):
        if number not in servers:
            wrong.append(f"round {number} left no checkpoint")
        else:
            server = {"": segment_weights(load_file(servers[number]))}
            if not (off := largest_difference(server, {"": expected["server"]})) < TOLERANCE:
                return [*wrong, f"after round {number} the server's weights are {off:.1e} off the plain loop's"]
        if number == last:
            break
    for client in range(config.num_clients):
        kept = newest_state(federation, client, last)
        if kept is None:
            wrong.append(f"client {client} has no state on its node")
            continue
        mine = {"": segment_weights(load_file(kept))}
        if not (off := largest_difference(mine, {"": expected[f"client-{client}"]})) < TOLERANCE:
            wrong.append(f"client {client}'s weights are {off:.1e} off the plain loop's ({kept.parent.parent.name})")
    return wrong


def newest_state(federation: Federation, client: int, last: int) -> Path | None:
    """A client's newest state on its node's disk that is not newer than a round."""
    name = f"client-{client:05d}.safetensors"
    found = {
        int(p.parent.parent.name.removeprefix("round-")): p
        for p in federation.home.glob(f"federation/nodes/*/state/*/round-*/clients/{name}")
    }
    return found[max(fit)] if (fit := [version for version in found if version <= last]) else None
