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


def take(order: AssignOrder, config: RunConfig, context: Context) -> None:
    """Host these clients from now on."""
    context.state[CONFIG] = ConfigRecord({**config.values()})
    context.state[Hosted.NAME] = Hosted(order.clients, _run_id(order.run_id), order.session).to_record()


def say_what_data(config: RunConfig, context: Context) -> None:
    """Log what images of its own a device trains on, and what is odd of them; of a simulated node the server does."""
    if not simulated():
        for note in datasets.notes(*assembly.data_of(config)):
            log.info("%s: %s", name(context), note)


def config(context: Context) -> RunConfig:
    """The run-config, with this node's own data-dir.

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
    chosen = str(context.node_config.get("state-dir", ""))
    parent = Path(chosen) if chosen else platformdirs.user_state_path("sglr-flower")
    return NodeStates(parent / _hosted(context).run_id)


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
