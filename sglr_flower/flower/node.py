"""A node's side of a run: Flower messages in, the node's cohort driven over the exchange, replies out.

A run is, for every node: ``query.hello`` (what are you), ``query.assign`` (these are your clients), then per round one
message of type ``train.stream``, or with the grid exchange ``train.grid`` for every step, or ``train.local`` where the
server has no segment; ``evaluate.stream`` and ``evaluate.grid`` alike; and ``query.collect`` where the server wants a
device's segments or a checkpoint of them. With methods that average or hand on segments the first message of a round
brings the shared one and the last reply takes the node's average. Between messages clients' states lie in files
(`NodeStates`), because any process may get the node's next message.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import platformdirs
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from sglr_flower.errors import UserError
from sglr_flower.exchange import grid, shared, stream
from sglr_flower.exchange.checks import check_answer
from sglr_flower.exchange.endpoint import is_loopback, split_address
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.flower.staterecords import (
    STATES,
    drop_step,
    keep_step,
    pack_states,
    step_states,
    unpack_states,
)
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import assigned_cpus, assigned_gpus, concurrent_nodes, machines, simulated, slow_autocast
from sglr_flower.run.nodestate import NodeStates, simulated_states
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import EvaluateSession, RoundResult, Session, TrainSession, train_locally

ORDER = "order"
ANSWER = "answer"
ARRAYS = "arrays"
CONFIG = "config"
HOSTED = "hosted"
MARGIN_SECONDS = 30.0
"""What a node waits for the server beyond the time that the server waits for other nodes."""

# Below Flower's logger, so that what a node says goes where Flower's log goes.
log = logging.getLogger("flwr.sglr")


def replies(handler: Callable[[ConfigRecord, Message, Context], RecordDict]) -> Callable[[Message, Context], Message]:
    """Make a Flower handler of a function from the server's order to the reply's content.

    A `UserError` travels back as its sentence, so that the server can show it without a traceback.
    """

    @functools.wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        order = message.content.config_records[ORDER]
        if threads := _integer(order, "threads"):
            torch.set_num_threads(threads)
        try:
            content = handler(order, message, context)
        except UserError as error:
            content = RecordDict({ANSWER: ConfigRecord({"error": str(error)})})
        return Message(content, reply_to=message)

    return wrapped


@replies
def hello(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Tell the server which partition this node is, what it can compute with, and whether it reaches the port."""
    answer: dict[str, int | str | list[str]] = {
        "name": str(context.node_config.get("name", "")),
        "partition-id": int(context.node_config.get("partition-id", -1)),
        "num-partitions": int(context.node_config.get("num-partitions", -1)),
        "capacity": concurrent_nodes(),
        "threads": assigned_cpus(),
        "gpus": assigned_gpus(),
        "device": assembly.device().type,
        "blocked": _blocked(order, context),
        "memory": _memory(order),
    }
    return RecordDict({ANSWER: ConfigRecord({**answer})})


def _blocked(order: ConfigRecord, context: Context) -> str:
    """Why this node cannot open a stream to the server's port; empty if it can."""
    address = str(order["address"])
    if not address:
        return "not asked"
    if (count := machines()) > 1 and is_loopback(split_address(address)[0]):
        return f"the simulation's nodes are on {count} machines, and its port is on one of them"
    certificates = _root_certificates(address, bool(order["tls"]), context)
    return stream.can_reach(address, str(order["secret"]), certificates)


def _memory(order: ConfigRecord) -> str:
    """What proves that this node can share memory with the server; only a simulated one, as both must trust each other.

    A device's user could read and write what the server has checked already.
    """
    shown = order["memory"]
    assert isinstance(shown, bytes)
    return shared.read_proof(shown) if shown and simulated() else ""


@replies
def assign(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Take clients: load their data, and find or take their states. Tell sizes, classes, and what states there are.

    The server sends a device the states of a checkpoint if they are its to have. A node that was away still has its
    own, or says that it has none.
    """
    # The server's own config, so that both sides compute from one truth whatever this node's app was started with;
    # only where the data lie is this node's to know.
    config = RunConfig.parse(message.content.config_records[CONFIG])
    if own := str(context.node_config.get("data-dir", "")):
        config = config.replace(data_dir=own)
    if sentence := slow_autocast(config.autocast, on_cpu=assembly.device().type == "cpu"):
        log.warning("%s: %s", _name(context), sentence)
    clients = integers(order["clients"])
    _refuse_outdated(order, context)
    if simulated():
        assembly.refuse_own_partition(config)
        _refuse_other_folder(config, _run_id(order))
    context.state[CONFIG] = ConfigRecord({**config.values()})
    context.state[HOSTED] = ConfigRecord(
        {"clients": clients, "run-id": _run_id(order), "session": _integer(order, "session")}
    )
    versions = dict(zip(clients, integers(order["versions"]), strict=True))
    kept = _states(context)
    if not simulated():  # its server is this run's only one
        kept.enter(_integer(order, "session"))
    found = kept.go_back(versions)
    for client, state in unpack_states(message.content).items() if STATES in message.content else ():
        sent = dict(zip(clients, integers(order["sent"]), strict=True))[client]
        if found[client] < sent:  # what it has itself may be newer than what the server was ever sent
            kept.commit(sent, {client: state}, {client: found[client]}, integers(order["checkpoints"]))
            found[client] = sent
    answer: dict[str, list[int] | list[str]] = {"versions": list(found.values())}
    data = assembly.client_data(config, clients)
    answer |= {
        "sizes": [len(images) for images in data.values()],
        "classes": list(assembly.targets(config).words()),
    }
    return RecordDict({ANSWER: ConfigRecord({**answer})})


def _refuse_other_folder(config: RunConfig, run_id: str) -> None:
    """Refuse to simulate a node where the run's folder, in which it keeps its clients, is not the server's."""
    try:
        here = (Path(config.run_dir) / "run-id").read_text(encoding="utf-8")
    except OSError:
        here = ""
    if here != run_id:
        raise UserError(
            f"run-config key run-dir = {config.run_dir!r}: it must be a folder that all machines of the simulation "
            "share, and one of them does not have it"
        )


def _refuse_outdated(order: ConfigRecord, context: Context) -> None:
    """Refuse an assignment that was under way while the run was stopped, and arrives when it has been resumed."""
    if HOSTED in context.state.config_records:
        current = context.state.config_records[HOSTED]["session"]
        assert isinstance(current, int)
        if _integer(order, "session") < current:
            raise ExchangeError("the assignment is of an earlier session of this run")


@replies
def train_stream(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Run a whole training round, or a turn of one, over a stream."""
    cohort, plan = _training(order, message, context)
    _stream(order, TrainSession(cohort, plan), context)
    return _trained(order, context, cohort, plan)


@replies
def train_grid(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Make one step of a training round: finish the step that the download answers, begin the next."""
    cohort, plan = _training(order, message, context)
    content = _step(TrainSession(cohort, plan), message)
    if grid.FRAME not in content.config_records:
        return _trained(order, context, cohort, plan)
    keep_step(context.state, cohort.states(), _integer(order, "attempt"))
    return content


@replies
def train_local(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Train the whole networks of this node's clients for a round, without an exchange."""
    cohort, plan = _training(order, message, context)
    result = train_locally(cohort, plan)
    return _trained(order, context, cohort, plan, result)


@replies
def evaluate_stream(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Run a whole client-side evaluation over a stream."""
    cohort, session = _evaluation(order, message, context)
    _stream(order, session, context)
    return _metrics(cohort)


@replies
def evaluate_grid(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Send one chunk of a client-side evaluation."""
    content = _step(_evaluation(order, message, context)[1], message)
    if grid.FRAME not in content.config_records:
        context.state.pop(ARRAYS, None)
    elif ARRAYS in message.content.array_records:
        context.state[ARRAYS] = message.content.array_records[ARRAYS]  # only the first message brings it
    return content


@replies
def collect(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Hand the states of this node's clients that have trained to the server.

    Only a device is asked, and only where the server may have them (``evaluate = "server"``).
    """
    states = _states(context).at(_bases(order, context))
    content = RecordDict({ANSWER: ConfigRecord({})})
    if order["checkpoint"]:
        content[STATES] = pack_states(states)
    else:
        weights = {
            client: {name: tensor for name, tensor in state.items() if name.startswith("segment.")}
            for client, state in states.items()
        }
        content[STATES] = pack_states(weights)
    return content


def _config(context: Context) -> RunConfig:
    return RunConfig.parse(context.state.config_records[CONFIG])


def _training(order: ConfigRecord, message: Message, context: Context) -> tuple[Cohort, RoundPlan]:
    """The node's cohort, with the shared segment if the message brings one, and what to train."""
    config, attempt = _config(context), _integer(order, "attempt")
    plan = assembly.plan(config, _integer(order, "round"))
    plan = replace(plan, clients=tuple(integers(order["clients"])))  # all, or those that are there, or whose turn it is
    if grid.FRAME in message.content.config_records:
        states = step_states(context.state, attempt)
        if not states:
            raise ExchangeError(f"this node is not in round {plan.server_round}, attempt {attempt}")
        cohort = assembly.cohort(config, _clients(context), states)
    else:
        drop_step(context.state)
        context.state.pop(ARRAYS, None)
        cohort = _recall(order, context, frozenset(plan.clients))
        log.info("%s: round %d with client(s) %s", _name(context), plan.server_round, _listed(plan.clients))
    if ARRAYS in message.content.array_records:
        cohort.load_shared(message.content.array_records[ARRAYS].to_torch_state_dict(), plan.clients)
    return cohort, plan


def _evaluation(order: ConfigRecord, message: Message, context: Context) -> tuple[Cohort, EvaluateSession]:
    config = _config(context)
    arrays = message.content.array_records or context.state.array_records
    cohort = _recall(order, context, () if arrays else _clients(context))
    if arrays:
        cohort.load_shared(arrays[ARRAYS].to_torch_state_dict(), cohort.clients)
    images = assembly.evaluation_images(config)
    server_round, defence = _integer(order, "round"), assembly.defence(config)
    up, _ = assembly.wire_codecs(config)
    session = EvaluateSession(cohort.segments, cohort.dtype, server_round, images, cohort.memory_format, defence, up)
    return cohort, session


def _stream(order: ConfigRecord, session: Session, context: Context) -> None:
    address, tls = str(order["address"]), bool(order["tls"])
    config = _config(context)
    # The server answers when all nodes have sent their frames, or have been given up.
    timeout = config.step_timeout + config.start_timeout + MARGIN_SECONDS
    certificates, memory = _root_certificates(address, tls, context), bool(order.get("memory", False))
    stream.run_session(session, address, str(order["secret"]), timeout, certificates, shares_memory=memory)


def _root_certificates(address: str, tls: bool, context: Context) -> bytes | None:
    """The CA that vouches for the server's stream; None where it is plaintext and may be.

    Raises
    ------
    UserError
        If the stream is TLS and this node knows no CA, or plaintext where this node does not accept that.
    """
    path = str(context.node_config.get("root-certificates", ""))
    if not tls:
        stream.refuse_plaintext(address, bool(context.node_config.get("allow-plaintext", False)))
        return None
    if not path:
        raise UserError(f"the stream at {address} is TLS, and this node has no root-certificates in its node-config")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"node-config key root-certificates = {path!r}: it cannot be read: {error.strerror}") from None


def _step(session: TrainSession | EvaluateSession, message: Message) -> RecordDict:
    """The reply to one message of the grid exchange: the next upload, or without one the end of the round."""
    download = grid.get_download(message.content)
    content = RecordDict({ANSWER: ConfigRecord({})})
    if download is None:
        grid.put_upload(content, session.start())
    else:
        if isinstance(session, TrainSession):
            check_answer(session.restore(download.step), download)
        else:
            session.restore(download.step)
        grid.put_upload(content, session.advance(download))
    return content


def _metrics(cohort: Cohort) -> RecordDict:
    return RecordDict({ANSWER: ConfigRecord({}), "metrics": MetricRecord({"num-clients": len(cohort.clients)})})


def _trained(
    order: ConfigRecord, context: Context, cohort: Cohort, plan: RoundPlan, local: RoundResult | None = None
) -> RecordDict:
    """End a round: keep the states, and reply with the metrics, and the clients' average where the method wants one.

    ``num-examples`` is what Flower's FedAvg weighs nodes by: a mean of the nodes' means is the clients' mean.
    """
    drop_step(context.state)
    taking_part = frozenset(plan.clients)
    here = [client for client in cohort.clients if client in taking_part]
    states = {client: cohort.state(client) for client in here}
    _states(context).commit(plan.server_round, states, _bases(order, context), integers(order["checkpoints"]))
    mean, samples = cohort.average(plan) if plan.shares_segment else (None, 0)
    metrics: dict[str, int | float] = {"num-clients": len(here), "num-examples": samples}
    if local is not None:
        metrics |= {f"local-{name}": value for name, value in asdict(local).items()}
    content = RecordDict({ANSWER: ConfigRecord({}), "metrics": MetricRecord({**metrics})})
    if mean is not None:
        content[ARRAYS] = ArrayRecord({name: tensor.cpu() for name, tensor in mean.items()})
    return content


def _states(context: Context) -> NodeStates:
    """Where this node keeps its clients' states."""
    if simulated():
        return simulated_states(_config(context))
    chosen = str(context.node_config.get("state-dir", ""))
    parent = Path(chosen) if chosen else platformdirs.user_state_path("sglr-flower")
    return NodeStates(parent / str(context.state.config_records[HOSTED]["run-id"]))


def _run_id(order: ConfigRecord) -> str:
    run_id = str(order["run-id"])
    if not re.fullmatch("[0-9a-f]{32}", run_id):  # it becomes a path on this node
        raise UserError(f"the server sent {run_id!r} as the run's id")
    return run_id


def _clients(context: Context) -> list[int]:
    """The clients that this node hosts.

    Raises
    ------
    ExchangeError
        If it was given none: its SuperNode was restarted since the run began.
    """
    if HOSTED not in context.state.config_records:
        raise ExchangeError("it was restarted and has to be given its clients again")
    return integers(context.state.config_records[HOSTED]["clients"])


def _bases(order: ConfigRecord, context: Context) -> dict[int, int]:
    """Client -> the version of its state that the order names, of all that this node hosts."""
    return dict(zip(_clients(context), integers(order["versions"]), strict=True))


def _recall(order: ConfigRecord, context: Context, needed: Collection[int]) -> Cohort:
    """The cohort, those of ``needed`` in the state that the order names or else with their initial segments."""
    bases = {client: base for client, base in _bases(order, context).items() if client in needed}
    return assembly.cohort(_config(context), _clients(context), _states(context).at(bases))


def _name(context: Context) -> str:
    """How this node is called in logs: the name in its node-config, or its id."""
    return f"node {context.node_config.get('name') or context.node_id}"


def _listed(clients: Sequence[int]) -> str:
    return ", ".join(str(client) for client in clients)


def integers(value: object) -> list[int]:
    """A list of integers out of a record."""
    assert isinstance(value, list)
    return [int(item) for item in value]


def _integer(order: ConfigRecord, key: str) -> int:
    value = order.get(key, 0)
    assert isinstance(value, int)
    return value
