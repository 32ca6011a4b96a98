"""What a node holds between two messages: its clients, the run-config, and where their states lie.

Any process may get the node's next message, so it is all in Flower's context and in files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import platformdirs
from flwr.app import ConfigRecord, Context
from pydantic.dataclasses import dataclass

from sglr_flower.data import datasets
from sglr_flower.errors import UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.flower.protocol import CONFIG, STRICT, AssignOrder, Clients, ProtocolError, Session, Text, Value
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import simulated
from sglr_flower.run.nodestate import NodeStates, simulated_states
from sglr_flower.split.cohort import Cohort

# Below Flower's logger, so that what a node says goes where Flower's log goes.
log = logging.getLogger("flwr.sglr")


@dataclass(frozen=True, config=STRICT)
class Hosted(Value):
    """The node's last assignment; see `AssignOrder`."""

    NAME: ClassVar[str] = "hosted"
    WHAT: ClassVar[str] = "this node's own record of its clients"

    clients: Clients
    run_id: Text
    session: Session


_CHANGED = "changed"


def take(order: AssignOrder, config: RunConfig, context: Context) -> RunConfig:
    """Host these clients from now on; the run-config as it is here: a device has a folder of its own for each run."""
    if not simulated():
        chosen = str(context.node_config.get("state-dir", ""))
        parent = Path(chosen) if chosen else platformdirs.user_state_path("sglr-flower")
        config = config.replace(run_dir=str(parent / _run_id(order.run_id)))
    context.state[CONFIG] = ConfigRecord({**config.values()})
    context.state[Hosted.NAME] = Hosted(order.clients, _run_id(order.run_id), order.session).to_record()
    return config


def say_what_data(config: RunConfig, context: Context) -> None:
    """Log what data a device trains on, what is odd of them, and what has come since; of simulated nodes nothing."""
    if simulated():
        return
    data = assembly.data_of(config)
    for note in datasets.notes(*data):
        log.info("%s: %s", name(context), note)
    context.state.pop(_CHANGED, None)
    _say_what_changed(config, context)


def say_what_came(config: RunConfig, context: Context) -> None:
    """Log what has changed in a device's folder of images since the run began, once for each change."""
    if not simulated() and config.dataset == "folder":
        try:
            _say_what_changed(config, context)
        except (UserError, OSError) as error:  # it is not trained on what came
            log.warning("%s: what has come to its folder of images cannot be told: %s", name(context), error)


def _say_what_changed(config: RunConfig, context: Context) -> None:
    changed = "; ".join(datasets.pin(*assembly.data_of(config)))
    before = context.state.config_records.get(_CHANGED, ConfigRecord())
    context.state[_CHANGED] = ConfigRecord({"said": changed})
    if changed and changed != before.get("said"):
        goes_on = "trains on those that it had" if config.dataset == "folder" else "trains on what is there now"
        log.warning("%s: its data have changed since the run began, and it %s: %s", name(context), goes_on, changed)


def config(context: Context) -> RunConfig:
    """The run-config, with this node's own data-dir, and on a device its own run-dir.

    Raises
    ------
    ExchangeError
        If it has none, as `clients`.
    """
    _hosted(context)
    return RunConfig.parse(context.state.config_records[CONFIG])


def clients(context: Context) -> list[int]:
    """The clients that this node hosts.

    Raises
    ------
    ExchangeError
        If it was given none: its SuperNode was restarted since the run began.
    """
    return list(_hosted(context).clients)


def refuse_outdated(session: int, context: Context) -> None:
    """Refuse an assignment that was under way while the run was stopped, and arrives when it has been resumed."""
    if Hosted.NAME in context.state.config_records and session < _hosted(context).session:
        raise ExchangeError("the assignment is of an earlier session of this run")


def states(context: Context) -> NodeStates:
    """Where this node keeps its clients' states."""
    if simulated():
        return simulated_states(config(context))
    return NodeStates(Path(config(context).run_dir))


def bases(versions: Sequence[int], context: Context) -> dict[int, int]:
    """Client -> the version of its state that an order names, of all that this node hosts.

    Raises
    ------
    ProtocolError
        If there are more or fewer versions than clients.
    """
    hosted = clients(context)
    if len(versions) != len(hosted):
        raise ProtocolError(f"the server's order: {len(versions)} versions for this node's {len(hosted)} client(s)")
    return dict(zip(hosted, versions, strict=True))


def recall(versions: Sequence[int], context: Context, needed: Collection[int]) -> Cohort:
    """The cohort, those of ``needed`` in the state that the order names or else with their initial segments."""
    wanted = {client: base for client, base in bases(versions, context).items() if client in needed}
    return assembly.cohort(config(context), clients(context), states(context).at(wanted))


def name(context: Context) -> str:
    """How this node is called in logs: the name in its node-config, or its id."""
    return f"node {context.node_config.get('name') or context.node_id}"


def _hosted(context: Context) -> Hosted:
    if Hosted.NAME not in context.state.config_records:
        raise ExchangeError("it was restarted and has to be given its clients again")
    return Hosted.from_content(context.state)


def _run_id(run_id: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", run_id):  # it becomes a path on this node
        raise UserError(f"the server sent {run_id!r} as the run's id")
    return run_id
