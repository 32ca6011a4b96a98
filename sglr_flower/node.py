"""A node's side of a run: Flower messages in, the node's cohort driven over the exchange, replies out.

A run is, for every node: ``query.hello`` (what are you), ``query.assign`` (these are your clients), then per round one
message of type ``train.stream``, or with the grid exchange ``train.grid`` for every step, or ``train.local`` where the
server has no segment; ``evaluate.stream`` and ``evaluate.grid`` alike; and ``query.collect`` where the server wants
segments or a checkpoint. With methods that average or hand on segments the first message of a round brings the shared
one and the last reply takes the node's average. Between messages the cohort lives in ``context.state``, because any
process may get the node's next message.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import platformdirs
import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from sglr_flower import assembly, checkpoint
from sglr_flower.config import RunConfig
from sglr_flower.data import datasets
from sglr_flower.errors import UserError
from sglr_flower.exchange import grid, stream
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import EvaluateSession, RoundResult, Session, TrainSession, train_locally

ORDER = "order"
ANSWER = "answer"
ARRAYS = "arrays"
CONFIG = "config"
STATES = "states"


def replies(handler: Callable[[ConfigRecord, Message, Context], RecordDict]) -> Callable[[Message, Context], Message]:
    """Make a Flower handler of a function from the server's order to the reply's content.

    A `UserError` travels back as its sentence, so that the server can show it without a traceback.
    """

    @functools.wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        order = message.content.config_records[ORDER]
        if threads := int(_number(order, "threads")):
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
    blocked = stream.can_reach(str(order["address"]), str(order["secret"])) if order["address"] else "not asked"
    answer: dict[str, int | str] = {
        "partition-id": int(context.node_config.get("partition-id", -1)),
        "num-partitions": int(context.node_config.get("num-partitions", -1)),
        "capacity": concurrent_nodes(),
        "threads": assigned_cpus(),
        "blocked": blocked,
    }
    return RecordDict({ANSWER: ConfigRecord({**answer})})


@replies
def assign(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Take clients: load their data; their segments are sent, or kept here, or initial ones. Tell sizes and classes."""
    # The server's own config, so that both sides compute from one truth whatever this node's app was started with;
    # only where the data lie is this node's to know.
    config = RunConfig.parse(message.content.config_records[CONFIG])
    if own := str(context.node_config.get("data-dir", "")):
        config = config.replace(data_dir=own)
    context.state[CONFIG] = ConfigRecord({**config.values()})
    clients = integers(order["clients"])
    states: dict[int, dict[str, Tensor]] = {}
    if STATES in message.content.config_records:
        states = unpack_states(message.content)
    elif restored := int(_number(order, "restore-round")):
        folder = _store(order, context) / f"round-{restored:04d}"
        states = {client: checkpoint.load_client(folder, client) for client in clients}
    cohort = assembly.cohort(config, clients, states)
    _keep(context, cohort)
    sizes = [len(data) for data in cohort.data.values()]
    classes = list(datasets.classes(config.dataset, config.data_dir))
    return RecordDict({ANSWER: ConfigRecord({"sizes": sizes, "classes": classes})})


@replies
def train_stream(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Run a whole training round, or a turn of one, over a stream."""
    cohort, plan = _training(order, message, context)
    _stream(order, TrainSession(cohort, plan), context)
    _keep(context, cohort)
    return _trained(cohort, plan)


@replies
def train_grid(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Make one step of a training round: finish the step that the download answers, begin the next."""
    cohort, plan = _training(order, message, context)
    content = _step(TrainSession(cohort, plan), message)
    _keep(context, cohort)
    return content if grid.FRAME in content.config_records else _trained(cohort, plan)


@replies
def train_local(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Train the whole networks of this node's clients for a round, without an exchange."""
    cohort, plan = _training(order, message, context)
    result = train_locally(cohort, plan)
    _keep(context, cohort)
    return _trained(cohort, plan, result)


@replies
def evaluate_stream(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Run a whole client-side evaluation over a stream."""
    cohort, session = _evaluation(order, message, context)
    _stream(order, session, context)
    return _metrics(cohort)


@replies
def evaluate_grid(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Send one chunk of a client-side evaluation."""
    return _step(_evaluation(order, message, context)[1], message)


@replies
def collect(order: ConfigRecord, message: Message, context: Context) -> RecordDict:
    """Hand the clients' states to the server, or keep a checkpoint of them here, as the server orders.

    Where clients are evaluated by smashed data (``evaluate = "client"``) no weights leave the node.
    """
    cohort = _recall(context)
    states = {client: cohort.state(client) for client in cohort.clients}
    content = _metrics(cohort)
    if _config(context).evaluate == "client":
        store = _store(order, context)
        checkpoint.save_clients(store / f"round-{int(_number(order, 'round')):04d}", states)
        checkpoint.prune(store)
    elif order["checkpoint"]:
        content[STATES] = pack_states(states)
    else:
        weights = {
            client: {name: tensor for name, tensor in state.items() if name.startswith("segment.")}
            for client, state in states.items()
        }
        content[STATES] = pack_states(weights)
    return content


def concurrent_nodes() -> int:
    """How many nodes like this one can run at the same time in this simulation; 0 outside of one (no limit).

    Ray gives every node's message an actor with the resources of this one, and Flower handles at most
    ``min(32, cpus + 4)`` messages at once, whatever the number of actors (its thread pool's default size).
    """
    ray = sys.modules.get("ray")  # a SuperNode has not imported it
    if ray is None or not ray.is_initialized():
        return 0
    total: dict[str, float] = ray.cluster_resources()
    own: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    actors = min((math.floor(total[kind] / amount) for kind, amount in own.items() if amount > 0), default=32)
    return min(actors, 32, (os.cpu_count() or 1) + 4)


def assigned_cpus() -> int:
    """The CPUs that Ray sets aside for this simulated node, at least one; 0 outside of a simulation."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return 0
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def _config(context: Context) -> RunConfig:
    return RunConfig.parse(context.state.config_records[CONFIG])


def _training(order: ConfigRecord, message: Message, context: Context) -> tuple[Cohort, RoundPlan]:
    """The node's cohort, with the shared segment if the message brings one, and what to train."""
    cohort = _recall(context)
    plan = assembly.plan(_config(context), int(_number(order, "round")))
    plan = replace(plan, clients=tuple(integers(order["clients"])))  # all, or those whose turn it is
    _take_shared(cohort, plan.clients, message)
    return cohort, plan


def _evaluation(order: ConfigRecord, message: Message, context: Context) -> tuple[Cohort, EvaluateSession]:
    config, cohort = _config(context), _recall(context)
    if _take_shared(cohort, cohort.clients, message):
        _keep(context, cohort)  # the grid exchange brings it in the first message only
    images = assembly.evaluation_images(config)
    server_round = int(_number(order, "round"))
    return cohort, EvaluateSession(cohort.segments, assembly.dtype(config), server_round, images)


def _take_shared(cohort: Cohort, clients: Sequence[int], message: Message) -> bool:
    if ARRAYS not in message.content.array_records:
        return False
    cohort.load_shared(message.content.array_records[ARRAYS].to_torch_state_dict(), clients)
    return True


def _stream(order: ConfigRecord, session: Session, context: Context) -> None:
    timeout = _config(context).step_timeout
    stream.run_session(session, str(order["address"]), str(order["secret"]), timeout)


def _step(session: TrainSession | EvaluateSession, message: Message) -> RecordDict:
    """The reply to one message of the grid exchange: the next upload, or without one the end of the round."""
    download = grid.get_download(message.content)
    content = RecordDict({ANSWER: ConfigRecord({})})
    if download is None:
        grid.put_upload(content, session.start())
    else:
        session.restore(download.step)
        grid.put_upload(content, session.advance(download))
    return content


def _metrics(cohort: Cohort) -> RecordDict:
    return RecordDict({ANSWER: ConfigRecord({}), "metrics": MetricRecord({"num-clients": len(cohort.clients)})})


def _trained(cohort: Cohort, plan: RoundPlan, local: RoundResult | None = None) -> RecordDict:
    """The last reply of a round: this node's metrics, and its clients' average where the method wants one.

    ``num-examples`` is what Flower's FedAvg weighs nodes by: a mean of the nodes' means is the clients' mean.
    """
    mean, samples = cohort.average(plan) if plan.shares_segment else (None, 0)
    here = len(set(cohort.clients) & set(plan.clients))
    metrics: dict[str, int | float] = {"num-clients": here, "num-examples": samples}
    if local is not None:
        metrics |= {f"local-{name}": value for name, value in asdict(local).items()}
    content = RecordDict({ANSWER: ConfigRecord({}), "metrics": MetricRecord({**metrics})})
    if mean is not None:
        content[ARRAYS] = ArrayRecord({name: tensor.cpu() for name, tensor in mean.items()})
    return content


def _store(order: ConfigRecord, context: Context) -> Path:
    """The folder in which this node keeps its clients' checkpoints: its own, or in a simulation the run's."""
    run_id = str(order["run-id"])
    if not re.fullmatch("[0-9a-f]{32}", run_id):  # it becomes a path on this node
        raise UserError(f"the server sent {run_id!r} as the run's id")
    if chosen := str(context.node_config.get("state-dir", "")):
        return Path(chosen) / run_id
    if concurrent_nodes():
        return Path(_config(context).run_dir) / "nodes"
    return platformdirs.user_state_path("sglr-flower") / run_id


def _keep(context: Context, cohort: Cohort) -> None:
    """Put the cohort into ``context.state``."""
    context.state[STATES] = pack_states({client: cohort.state(client) for client in cohort.clients})


def _recall(context: Context) -> Cohort:
    """The cohort from ``context.state``.

    Raises
    ------
    UserError
        If the node has none: it was restarted since the run began.
    """
    if STATES not in context.state.config_records:
        raise UserError(f"node {context.node_id} was restarted and has lost its clients' segments")
    states = unpack_states(context.state)
    return assembly.cohort(_config(context), list(states), states)


def pack_states(states: Mapping[int, Mapping[str, Tensor]]) -> ConfigRecord:
    """Clients' states as one safetensors blob, its tensors named CLIENT.NAME."""
    tensors = {
        f"{client}.{name}": tensor.detach().cpu().contiguous()
        for client, state in states.items()
        for name, tensor in state.items()
    }
    packed: bytes = safetensors.torch.save(tensors)
    return ConfigRecord({"tensors": packed})


def unpack_states(content: RecordDict) -> dict[int, dict[str, Tensor]]:
    """Clients' states from a message's content or a context's state."""
    packed = content.config_records[STATES]["tensors"]
    assert isinstance(packed, bytes)
    grouped: dict[int, dict[str, Tensor]] = {}
    for key, tensor in safetensors.torch.load(packed).items():
        client, name = key.split(".", 1)
        grouped.setdefault(int(client), {})[name] = tensor
    return dict(sorted(grouped.items()))


def integers(value: object) -> list[int]:
    """A list of integers out of a record."""
    assert isinstance(value, list)
    return [int(item) for item in value]


def _number(order: ConfigRecord, key: str) -> float:
    value = order.get(key, 0)
    assert isinstance(value, int | float)
    return value
