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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict

from sglr_flower.errors import UserError
from sglr_flower.exchange import grid, shared, stream
from sglr_flower.exchange.checks import check_answer
from sglr_flower.exchange.endpoint import is_loopback, split_address
from sglr_flower.exchange.frames import few
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.flower import hosting
from sglr_flower.flower.protocol import (
    ANSWER,
    ARRAYS,
    CONFIG,
    MAX_CLIENTS,
    METRICS,
    Access,
    AssignAnswer,
    AssignOrder,
    CollectOrder,
    Done,
    EvaluateMetrics,
    EvaluateOrder,
    HelloAnswer,
    HelloOrder,
    LocalMetrics,
    Order,
    ProtocolError,
    Refusal,
    TrainMetrics,
    TrainOrder,
)
from sglr_flower.flower.replies import tensors_of
from sglr_flower.flower.staterecords import STATES, drop_step, keep_step, pack_states, step_states, unpack_states
from sglr_flower.run import assembly, checks
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import assigned_cpus, assigned_gpus, concurrent_nodes, machines, simulated, slow_autocast
from sglr_flower.run.nodetable import printable
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import EvaluateSession, RoundResult, Session, TrainSession, train_locally

MARGIN_SECONDS = 30.0
"""What a node waits for the server beyond the time that the server waits for other nodes."""

# Below Flower's logger, so that what a node says goes where Flower's log goes.
log = logging.getLogger("flwr.sglr")
Ordered = TypeVar("Ordered", bound=Order)
Handler = Callable[[Message, Context], Message]


def obeys(kind: type[Ordered]) -> Callable[[Callable[[Ordered, Message, Context], RecordDict]], Handler]:
    """Make a Flower handler of a function from the server's order to the reply's content.

    A `UserError`, and an order that is not one, travel back as their sentence, so that the server can show it without
    a traceback.
    """

    def decorate(handler: Callable[[Ordered, Message, Context], RecordDict]) -> Handler:
        @functools.wraps(handler)
        def wrapped(message: Message, context: Context) -> Message:
            try:
                order = kind.from_content(message.content)
                if order.threads:
                    torch.set_num_threads(order.threads)
                content = handler(order, message, context)
            except (UserError, ProtocolError) as error:
                content = RecordDict({ANSWER: Refusal(printable(str(error)), _name(context)).to_record()})
            return Message(content, reply_to=message)

        return wrapped

    return decorate


@obeys(HelloOrder)
def hello(order: HelloOrder, message: Message, context: Context) -> RecordDict:
    """Tell the server which partition this node is, what it can compute with, and whether it reaches the port."""
    answer = HelloAnswer(
        name=_name(context),
        partition_id=_place(context, "partition-id"),
        num_partitions=_place(context, "num-partitions"),
        capacity=concurrent_nodes(),
        threads=assigned_cpus(),
        gpus=tuple(assigned_gpus()),
        device=assembly.device().type,
        blocked=printable(_blocked(order, context)),
        memory=_memory(order),
    )
    return RecordDict({ANSWER: answer.to_record()})


def _name(context: Context) -> str:
    """What this node's config calls it; may be empty."""
    return printable(str(context.node_config.get("name", "")))


def _place(context: Context, key: str) -> int:
    """A number in the node-config; -1 if it is not there.

    Raises
    ------
    UserError
        If it is none, or out of range.
    """
    value = context.node_config.get(key, -1)
    try:
        number = int(value)
    except ValueError:
        number = -2
    if not -1 <= number < MAX_CLIENTS:
        raise UserError(f"node-config key {key} = {value!r}: it should be a whole number from 0 to {MAX_CLIENTS - 1}")
    return number


def _blocked(order: HelloOrder, context: Context) -> str:
    """Why this node cannot open a stream to the server's port; empty if it can."""
    if not order.address:
        return "not asked"
    if (count := machines()) > 1 and is_loopback(split_address(order.address)[0]):
        return f"the simulation's nodes are on {count} machines, and its port is on one of them"
    certificates = _root_certificates(order.address, order.tls, context)
    return stream.can_reach(order.address, order.secret, certificates)


def _memory(order: HelloOrder) -> str:
    """What proves that this node can share memory with the server; only a simulated one, as both must trust each other.

    A device's user could read and write what the server has checked already.
    """
    return shared.read_proof(order.memory) if order.memory and simulated() else ""


@obeys(AssignOrder)
def assign(order: AssignOrder, message: Message, context: Context) -> RecordDict:
    """Take clients: load their data, and find or take their states. Tell sizes, classes, and what states there are.

    The server sends a device the states of a checkpoint if they are its to have. A node that was away still has its
    own, or says that it has none.
    """
    # The server's own config, so that both sides compute from one truth whatever this node's app was started with;
    # only where the data lie is this node's to know.
    if CONFIG not in message.content.config_records:
        raise order.wrong(f"it has no record {CONFIG!r}")
    config = RunConfig.parse(message.content.config_records[CONFIG])
    if own := str(context.node_config.get("data-dir", "")):
        config = config.replace(data_dir=own)
    if sentence := slow_autocast(config.autocast, on_cpu=assembly.device().type == "cpu"):
        log.warning("%s: %s", hosting.name(context), sentence)
    hosting.refuse_outdated(order.session, context)
    if simulated():
        checks.refuse_own_partition(config)
        _refuse_other_folder(config, order.run_id)
    config = hosting.take(order, config, context)
    kept = hosting.states(context)
    if not simulated():  # its server is this run's only one
        kept.enter(order.session)
    found = kept.go_back(dict(zip(order.clients, order.versions, strict=True)))
    sent = dict(zip(order.clients, order.sent or (), strict=order.sent is not None))
    for client, state in unpack_states(message.content).items():
        if client not in sent:
            raise order.wrong(f"a state of client {client}, which it does not name")
        if found[client] < sent[client]:  # what it has itself may be newer than what the server was ever sent
            kept.commit(sent[client], {client: state}, {client: found[client]}, order.checkpoints)
            found[client] = sent[client]
    data = assembly.client_data(config, list(order.clients))
    hosting.say_what_data(config, context)
    dealt = config.partition != "own"
    answer = AssignAnswer(
        versions=tuple(found.values()),
        sizes=tuple(len(images) for images in data.values()),
        classes=tuple(assembly.targets(config).words()),
        held=_held(config),
        counts=None if dealt else tuple(count for row in assembly.counts_of(config, data)[1] for count in row),
    )
    return RecordDict({ANSWER: answer.to_record()})


def _held(config: RunConfig) -> tuple[int, ...] | None:
    """How many validation and test samples there are to be scored on, where that is done here."""
    if config.evaluate != "client":
        return None
    return tuple(len(images) for images in assembly.evaluation_images(config).values())


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


@obeys(TrainOrder)
def train_stream(order: TrainOrder, message: Message, context: Context) -> RecordDict:
    """Run a whole training round, or a turn of one, over a stream."""
    access = Access.from_content(message.content)
    cohort, plan = _training(order, message, context)
    _stream(access, TrainSession(cohort, plan), context)
    return _trained(order, context, cohort, plan)


@obeys(TrainOrder)
def train_grid(order: TrainOrder, message: Message, context: Context) -> RecordDict:
    """Make one step of a training round: finish the step that the download answers, begin the next."""
    cohort, plan = _training(order, message, context)
    content = _step(TrainSession(cohort, plan), message)
    if grid.FRAME not in content.config_records:
        return _trained(order, context, cohort, plan)
    keep_step(context.state, cohort.states(), order.attempt)
    return content


@obeys(TrainOrder)
def train_local(order: TrainOrder, message: Message, context: Context) -> RecordDict:
    """Train the whole networks of this node's clients for a round, without an exchange."""
    cohort, plan = _training(order, message, context)
    result = train_locally(cohort, plan)
    return _trained(order, context, cohort, plan, result)


@obeys(EvaluateOrder)
def evaluate_stream(order: EvaluateOrder, message: Message, context: Context) -> RecordDict:
    """Run a whole client-side evaluation over a stream."""
    access = Access.from_content(message.content)
    cohort, session = _evaluation(order, message, context)
    _stream(access, session, context)
    return _evaluated(cohort)


@obeys(EvaluateOrder)
def evaluate_grid(order: EvaluateOrder, message: Message, context: Context) -> RecordDict:
    """Send one chunk of a client-side evaluation."""
    cohort, session = _evaluation(order, message, context)
    content = _step(session, message)
    if grid.FRAME not in content.config_records:
        context.state.pop(ARRAYS, None)
        return _evaluated(cohort)
    if ARRAYS in message.content.array_records:
        context.state[ARRAYS] = message.content.array_records[ARRAYS]  # only the first message brings it
    return content


@obeys(CollectOrder)
def collect(order: CollectOrder, message: Message, context: Context) -> RecordDict:
    """Hand the states of this node's clients that have trained to the server.

    Only a device is asked, and only where the server may have them (``evaluate = "server"``).
    """
    states = hosting.states(context).at(hosting.bases(order.versions, context))
    if not order.checkpoint:
        states = {
            client: {name: tensor for name, tensor in state.items() if name.startswith("segment.")}
            for client, state in states.items()
        }
    return RecordDict({ANSWER: Done().to_record(), STATES: pack_states(states)})


def _training(order: TrainOrder, message: Message, context: Context) -> tuple[Cohort, RoundPlan]:
    """The node's cohort, with the shared segment if the message brings one, and what to train."""
    config = hosting.config(context)
    plan = assembly.plan(config, order.round)
    hosted = hosting.clients(context)
    if not set(order.clients) <= set(hosted):
        raise order.wrong(f"clients = {few(order.clients)}: this node hosts {few(hosted)}")
    plan = replace(plan, clients=order.clients)  # all, or those that are there, or whose turn it is
    if grid.FRAME in message.content.config_records:
        states = step_states(context.state, order.attempt)
        if not states:
            raise ExchangeError(f"this node is not in round {plan.server_round}, attempt {order.attempt}")
        cohort = assembly.cohort(config, hosted, states)
    else:
        drop_step(context.state)
        context.state.pop(ARRAYS, None)
        cohort = hosting.recall(order.versions, context, frozenset(plan.clients))
        listed = ", ".join(str(client) for client in plan.clients)
        log.info("%s: round %d with client(s) %s", hosting.name(context), plan.server_round, listed)
        hosting.say_what_came(config, context)
    if message.content.array_records:
        cohort.load_shared(tensors_of(message.content), plan.clients)
    return cohort, plan


def _evaluation(order: EvaluateOrder, message: Message, context: Context) -> tuple[Cohort, EvaluateSession]:
    config = hosting.config(context)
    segment = message.content if message.content.array_records else context.state
    shared = bool(segment.array_records)
    cohort = hosting.recall(order.versions, context, () if shared else hosting.clients(context))
    if shared:
        cohort.load_shared(tensors_of(segment), cohort.clients)
    images = assembly.evaluation_images(config)
    defence = assembly.defence(config)
    up, _ = assembly.wire_codecs(config)
    session = EvaluateSession(cohort.segments, cohort.dtype, order.round, images, cohort.memory_format, defence, up)
    return cohort, session


def _stream(access: Access, session: Session, context: Context) -> None:
    config = hosting.config(context)
    # The server answers when all nodes have sent their frames, or have been given up.
    timeout = config.step_timeout + config.start_timeout + MARGIN_SECONDS
    certificates = _root_certificates(access.address, access.tls, context)
    stream.run_session(session, access.address, access.secret, timeout, certificates, shares_memory=access.memory)


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
    content = RecordDict({ANSWER: Done().to_record()})
    if download is None:
        grid.put_upload(content, session.start())
    else:
        if isinstance(session, TrainSession):
            check_answer(session.restore(download.step), download)
        else:
            session.restore(download.step)
        grid.put_upload(content, session.advance(download))
    return content


def _evaluated(cohort: Cohort) -> RecordDict:
    metrics = EvaluateMetrics(len(cohort.clients))
    return RecordDict({ANSWER: Done().to_record(), METRICS: metrics.to_record()})


def _trained(
    order: TrainOrder, context: Context, cohort: Cohort, plan: RoundPlan, local: RoundResult | None = None
) -> RecordDict:
    """End a round: keep the states, and reply with the metrics, and the clients' average where the method wants one."""
    drop_step(context.state)
    taking_part = frozenset(plan.clients)
    here = [client for client in cohort.clients if client in taking_part]
    states = {client: cohort.state(client) for client in here}
    bases = hosting.bases(order.versions, context)
    hosting.states(context).commit(plan.server_round, states, bases, order.checkpoints)
    mean, samples = cohort.average(plan) if plan.shares_segment else (None, 0)
    metrics = TrainMetrics(len(here), samples) if local is None else LocalMetrics.of(len(here), samples, local)
    content = RecordDict({ANSWER: Done().to_record(), METRICS: metrics.to_record()})
    if mean is not None:
        content[ARRAYS] = ArrayRecord({name: tensor.cpu() for name, tensor in mean.items()})
    return content
