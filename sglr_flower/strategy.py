"""SplitStrategy: the server's side of a run on Flower.

Algorithm 1 of arXiv 2112.05929 itself is in `sglr_flower.split` and the run's loop in `sglr_flower.training`; here they
are moved over Flower: one message per node and round, and inside it one stream (or, with the grid exchange, a message
per step).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import Tensor

from sglr_flower import assembly, methods, training
from sglr_flower.checkpoint import Checkpoint
from sglr_flower.config import RunConfig
from sglr_flower.data import datasets
from sglr_flower.delivery import Pending, RoundLink, array_bytes, integer, local_result, sum_metrics
from sglr_flower.errors import UserError
from sglr_flower.exchange.grid import GridLink
from sglr_flower.exchange.stream import MAX_STREAMS, ExchangeError, StreamServer
from sglr_flower.machine import available_cpus
from sglr_flower.metrics import History
from sglr_flower.node import ANSWER, ARRAYS, CONFIG, ORDER, STATES, integers, pack_states, unpack_states
from sglr_flower.rundir import RunDirectory, new_run_dir
from sglr_flower.split import averaging, optimizers
from sglr_flower.split.plan import RoundPlan, spread
from sglr_flower.split.rounds import Link
from sglr_flower.training import OpenRound, Weights

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")
SETUP_SECONDS = 300.0
"""How long nodes may take to appear, to load their data, and to hand over their clients' states."""


class SplitStrategy(Strategy):
    """Split learning as a Flower strategy: it holds the server segment and drives the nodes' cohorts.

    Parameters
    ----------
    config : RunConfig
        The run; method, rates, exchange and everything else come from it.
    directory : RunDirectory
        Opened with ``config``; what the run writes.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        self.config = config
        self.directory = directory
        self.sizes: Mapping[int, int] = {}
        self._hosted: dict[int, tuple[int, ...]] = {}
        self._streaming: set[int] = set()
        self._threads = 0
        self._method = methods.get(config.method)
        self._run_id = directory.run_id
        self._metrics: dict[int, MetricRecord] = {}
        self._grid: Grid
        self._streams: StreamServer | None = None

    @property
    def count(self) -> int:
        """Nodes that host clients."""
        return len(self._hosted)

    @property
    def exchange(self) -> str:
        """The exchange in use: ``stream``, ``grid``, ``stream+grid`` where nodes differ, or ``none``."""
        if self._method.whole:
            return "none"
        used = [name for name, nodes in (("stream", self._streaming), ("grid", self._on_grid)) if nodes]
        return "+".join(used)

    @property
    def _on_grid(self) -> set[int]:
        return self._hosted.keys() - self._streaming

    def summary(self) -> None:
        """Log the settings."""
        c = self.config
        plan = assembly.plan(c, 1)
        log.info("SplitStrategy: %s with %s on %s", c.method, c.model, c.dataset)
        log.info("\t├──> clients: %d of %d samples, batch %d", c.num_clients, c.samples_per_client, c.batch_size)
        log.info("\t├──> rounds: %d of %d local epoch(s)", c.num_server_rounds, c.local_epochs)
        log.info("\t├──> SplitLr: eta_0 %g, alpha %g, schedule %s", c.client_lr, plan.alpha, c.lr_schedule)
        phi = c.splitavg_phi if methods.get(c.method).cut_gradient else 0.0
        log.info("\t├──> SplitAvg: phi %g over %s, %s", phi, c.splitavg_over, c.splitavg_phase)
        log.info("\t├──> server segment: %s, client segments shared: %s", plan.server_update, plan.shares_segment)
        log.info("\t└──> run directory: %s", self.directory.path)

    def start(self, grid: Grid) -> Result:  # type: ignore[override]
        """Run to the end: greet the nodes, hand out the clients, train all rounds.

        Rounds, rates and timeouts come from the run-config, so the parent's other arguments do not exist here.

        Returns
        -------
        Result
            ``arrays``: the final server segment, or FedAvg's network; per round the training and evaluation metrics.

        Raises
        ------
        UserError
            If a setting does not fit the nodes or their data.
        ExchangeError
            If a node fails, or is silent for longer than ``step-timeout``.
        """
        self._grid = grid
        self.summary()
        restored = self.directory.latest_checkpoint() if self.config.resume else None
        with ExitStack() as stack:
            if self.config.exchange != "grid" and not self._method.whole:
                self._streams = self._open_port()
            if self._streams is not None:
                stack.callback(self._streams.stop)
            self._assign(self._greet(), restored)
            summary = training.train(self.config, self, self.directory, restored)
        log.info(
            "test accuracy %.2f ± %.2f %% over %d clients, each at its best validation round",
            100 * summary["test_accuracy_mean"],
            100 * summary["test_accuracy_std"],
            self.config.num_clients,
        )
        return self._result()

    # ---- the hooks of a Flower strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that hosts a client of this round.

        ``arrays`` is the segment that all clients start from; empty where each goes on with its own. ``config`` may
        name the ``clients`` that train: those whose turn it is.
        """
        plan = assembly.plan(self.config, server_round)
        clients = set(integers(config["clients"])) if "clients" in config else set(plan.clients)
        messages = []
        for node, hosted in self._hosted.items():
            if here := sorted(clients.intersection(hosted)):
                kind = "train.local" if self._method.whole else f"train.{self._exchange_of(node)}"
                order: dict[str, int | list[int]] = {"round": server_round, "clients": here}
                messages.append(self._order(kind, node, order, config, arrays))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the segments that nodes sent, by Flower's own FedAvg, and the sum of the nodes' metrics.

        Most split methods send no segments; there is no mean then.
        """
        replies = list(replies)
        arrays = None
        if any(reply.content.array_records for reply in replies):
            arrays, _ = FedAvg().aggregate_train(server_round, replies)
        return arrays, sum_metrics(replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node, which opens its client-side evaluation; ``arrays`` as in `configure_train`."""
        return [
            self._order(f"evaluate.{self._exchange_of(node)}", node, {"round": server_round}, config, arrays)
            for node in self._hosted
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Sum the nodes' own metrics of an evaluation; the scores are counted on the server."""
        return sum_metrics(replies)

    # ---- how `training.train` reaches the nodes (training.Nodes)

    @contextmanager
    def train(self, plan: RoundPlan, shared: Weights | None) -> Iterator[OpenRound]:
        """Open a training round, or a turn of one."""
        arrays = ArrayRecord({**shared}) if shared else ArrayRecord()
        config = ConfigRecord({"clients": list(plan.clients)})
        messages = list(self.configure_train(plan.server_round, arrays, config, self._grid))
        opened = OpenRound(RoundLink({}), weight_bytes_down=sum(array_bytes(message) for message in messages))
        if self._method.whole:
            # A node that trains by itself is silent for all its steps, and may have to wait for the others' workers.
            patience = self.config.step_timeout * plan.steps(self.sizes) * len(messages)
            replies = list(self._deliver(messages, patience).values())
            opened.local = [local_result(reply) for reply in replies]
            yield opened
        else:
            with self._round(messages) as link:
                opened.link = link
                yield opened
            replies = link.replies
        averaged, metrics = self.aggregate_train(plan.server_round, replies)
        opened.weight_bytes_up = sum(array_bytes(reply) for reply in replies)
        if averaged is not None:
            # Flower averages in floating point; counters become whole numbers again.
            kinds = replies[0].content.array_records[ARRAYS].to_torch_state_dict()
            means = averaged.to_torch_state_dict()
            opened.average = {name: averaging.as_like(tensor, kinds[name]) for name, tensor in means.items()}
        self._metrics[plan.server_round] = _added(self._metrics.get(plan.server_round), metrics)

    @contextmanager
    def evaluate(self, server_round: int, shared: Weights | None) -> Iterator[Link]:
        """Open a client-side evaluation."""
        arrays = ArrayRecord({**shared}) if shared else ArrayRecord()
        messages = self.configure_evaluate(server_round, arrays, ConfigRecord(), self._grid)
        with self._round(messages) as link:
            yield link
        self.aggregate_evaluate(server_round, link.replies)

    def collect(self, server_round: int, *, checkpoint: bool) -> dict[int, dict[str, Tensor]]:
        """Have all nodes bring weights or states, or keep a checkpoint themselves if no weights may leave."""
        order = {"checkpoint": checkpoint, "round": server_round, "run-id": self._run_id}
        replies = self._deliver([self._query("collect", node, order) for node in self._hosted], SETUP_SECONDS)
        states: dict[int, dict[str, Tensor]] = {}
        for reply in replies.values():
            if STATES in reply.content.config_records:
                states |= unpack_states(reply.content)
        return dict(sorted(states.items()))

    # ---- setting up

    def _open_port(self) -> StreamServer | None:
        """The streams' port; None where none can be had and the grid exchange will do."""
        try:
            return StreamServer()
        except RuntimeError as error:
            if self.config.exchange == "stream":
                raise
            log.warning("exchange auto: no port for streams (%s), so the grid exchange is used", error)
            return None

    def _greet(self) -> dict[int, ConfigRecord]:
        """Wait for the nodes and ask each what it is; node -> its answer, in the order of their partitions."""
        order = {"address": "", "secret": ""}
        if self._streams is not None:
            order = {"address": self._streams.address, "secret": self._streams.reach_secret}
        wanted, answers = 1, dict[int, ConfigRecord]()
        deadline = time.monotonic() + SETUP_SECONDS
        log.info("waiting for the nodes")
        while len(answers) < wanted:
            new = [node for node in self._grid.get_node_ids() if node not in answers]
            pending = Pending(self._grid, forgive_absence=True)  # a node may be listed and yet be gone
            pending.push([self._query("hello", node, order) for node in new])
            for node, reply in pending.wait(SETUP_SECONDS).items():
                answers[node] = reply.content.config_records[ANSWER]
            # A node that knows of its siblings tells how many to wait for.
            wanted = max([wanted, *(integer(answer, "num-partitions") for answer in answers.values())])
            if len(answers) < wanted:
                if time.monotonic() > deadline:
                    raise ExchangeError(f"{len(answers)} of {wanted} node(s) were there after {SETUP_SECONDS:g} s")
                time.sleep(0.2 if not new else 1.0)
        return dict(sorted(answers.items(), key=lambda item: (integer(item[1], "partition-id"), item[0])))

    def _assign(self, answers: Mapping[int, ConfigRecord], restored: Checkpoint | None) -> None:
        """Spread the clients over the nodes, choose each node's exchange, and have the nodes build their cohorts."""
        parts = spread(len(assembly.clients(self.config)), len(answers))
        self._hosted = {node: clients for node, clients in zip(answers, parts, strict=True) if clients}
        self._streaming = self._choose_streaming(answers)
        # Simulated nodes share this machine's cores: more threads than cores collapse (20 times slower).
        self._threads = min(available_cpus(), max(integer(answer, "threads") for answer in answers.values()))
        orders = [self._assignment(node, clients, restored) for node, clients in self._hosted.items()]
        sizes: dict[int, int] = {}
        classes: dict[int, object] = {}
        for node, reply in self._deliver(orders, SETUP_SECONDS).items():
            counted = reply.content.config_records[ANSWER]["sizes"]
            assert isinstance(counted, list)
            sizes |= dict(zip(self._hosted[node], (int(size) for size in counted), strict=True))
            classes[node] = reply.content.config_records[ANSWER]["classes"]
        self.sizes = dict(sorted(sizes.items()))
        first = next(iter(classes))
        for node, names in classes.items():
            if names != classes[first]:  # with images of their own (dataset "folder"), nodes may not have the same
                raise UserError(f"nodes {first} and {node} have different classes: {classes[first]} and {names}")
        log.info("%d client(s) on %d node(s), exchange: %s", len(sizes), self.count, self.exchange)
        self.directory.status(nodes=self.count, exchange=self.exchange)

    def _assignment(self, node: int, clients: tuple[int, ...], restored: Checkpoint | None) -> Message:
        """The message that gives a node its clients, and when resuming their states in the checkpoint."""
        restore_round = restored.server_round if restored else 0
        order = {"clients": list(clients), "run-id": self._run_id, "restore-round": restore_round}
        message = self._query("assign", node, order)
        message.content[CONFIG] = ConfigRecord({**self.config.values()})
        if restored and self.config.evaluate == "server":
            message.content[STATES] = pack_states(restored.client_states(clients))
        return message

    def _choose_streaming(self, answers: Mapping[int, ConfigRecord]) -> set[int]:
        """The nodes that use streams; why others do not is said once in the log.

        Raises
        ------
        UserError
            If the run-config insists on streams and a node cannot have one.
        """
        if self._streams is None:
            return set()
        capacity = min([MAX_STREAMS, *(integer(a, "capacity") for a in answers.values() if integer(a, "capacity") > 0)])
        blocked = {node: str(answers[node]["blocked"]) for node in self._hosted if answers[node]["blocked"]}
        reason = ""
        if self.count > capacity:
            # A stream holds its node's worker for the whole round: the nodes waiting for one would never come.
            reason = f"{self.count} nodes take part but only {capacity} can run at the same time"
            blocked = dict.fromkeys(self._hosted, reason)
        elif blocked:
            node = next(iter(blocked))
            reason = f"{len(blocked)} of {self.count} node(s) cannot open a stream (node {node}: {blocked[node]})"
        if reason and self.config.exchange == "stream":
            raise UserError(
                f"run-config key exchange = 'stream': {reason}; use fewer nodes with more clients each, or exchange "
                "auto or grid"
            )
        if reason:
            log.warning("exchange auto: %s, so the grid exchange is used there", reason)
        return self._hosted.keys() - blocked.keys()

    # ---- messages

    def _exchange_of(self, node: int) -> str:
        return "stream" if node in self._streaming else "grid"

    def _order(
        self, kind: str, node: int, order: Mapping[str, int | list[int]], extra: ConfigRecord, arrays: ArrayRecord
    ) -> Message:
        """The message that opens a round on a node; its type says which handler answers."""
        content = RecordDict({ORDER: ConfigRecord({**extra, **order, "threads": self._threads})})
        if arrays:
            content[ARRAYS] = arrays
        return Message(content, node, kind)

    def _query(self, action: str, node: int, order: Mapping[str, Any]) -> Message:
        record = ConfigRecord({**order, "threads": self._threads})
        return Message(RecordDict({ORDER: record}), node, f"query.{action}")

    @contextmanager
    def _round(self, messages: Iterable[Message]) -> Iterator[RoundLink]:
        """Open a round on the nodes that the messages are for; at its end all nodes have replied."""
        opening = {message.metadata.dst_node_id: message for message in messages}
        streaming = [node for node in opening if node in self._streaming]
        pending = Pending(self._grid)
        links: dict[Link, set[int]] = {}
        with ExitStack() as stack:
            if streaming:
                assert self._streams is not None
                stream = stack.enter_context(
                    self._streams.open(streaming, self.config.step_timeout, pending.raise_failures)
                )
                links[stream] = set(streaming)
                for node, secret in stream.secrets.items():
                    opening[node].content.config_records[ORDER].update(address=self._streams.address, secret=secret)
                pending.push([opening[node] for node in streaming])
            on_grid = GridLink({n: m for n, m in opening.items() if n not in self._streaming}, self._deliver)
            links[on_grid] = opening.keys() - set(streaming)
            link = RoundLink(links)
            yield link
            link.replies = [*pending.wait(self.config.step_timeout).values(), *on_grid.replies.values()]

    def _deliver(self, messages: list[Message], timeout: float | None = None) -> dict[int, Message]:
        """Send messages and wait for all replies; node -> reply."""
        pending = Pending(self._grid)
        pending.push(messages)
        return pending.wait(timeout or self.config.step_timeout)

    def _result(self) -> Result:
        """The run as Flower's own result object."""
        restored = self.directory.latest_checkpoint()
        assert restored is not None  # the last round has one
        result = Result()
        shared = restored.shared_weights() if self._method.whole else None
        result.arrays = ArrayRecord(shared or optimizers.segment_weights(restored.server_state()))
        for row in History.from_json(restored.history).rows:
            figures = {name: value for name, value in asdict(row).items() if value is not None}
            evaluated = {name: value for name, value in figures.items() if name.startswith(("validation", "test"))}
            trained = {name: value for name, value in figures.items() if name not in evaluated}
            own = self._metrics.get(row.round, MetricRecord())
            result.train_metrics_clientapp[row.round] = MetricRecord({**trained, **own})
            if evaluated:
                result.evaluate_metrics_serverapp[row.round] = MetricRecord(evaluated)
        return result


def _added(earlier: MetricRecord | None, now: MetricRecord | None) -> MetricRecord:
    """The sums of a round's turns so far, and of one more."""
    total: dict[str, Any] = dict(earlier or {})
    for name, value in (now or {}).items():
        total[name] = total.get(name, 0) + value
    return MetricRecord(total)


def serve(grid: Grid, values: Mapping[str, Any]) -> None:
    """Run the ServerApp: a run from its run-config to its result, with a status that tells how it ended.

    Raises
    ------
    Exception
        Whatever ends the run early, so that Flower records it as failed; ``status.json`` holds it as a sentence.
    """
    config = RunConfig.parse(values)
    for key, path in (("run-dir", config.run_dir), ("data-dir", config.data_dir)):
        if path and not Path(path).is_absolute():
            raise UserError(f"run-config key {key} = {path!r}: it must be absolute, as Flower runs the app elsewhere")
    if not config.run_dir:
        config = config.replace(run_dir=str(new_run_dir(None, config)))
    directory = RunDirectory(Path(config.run_dir))
    with directory.session(config):
        if config.evaluate == "server":
            datasets.ensure_present(config.dataset, config.data_dir)  # once here, before all nodes would
        SplitStrategy(config, directory).start(grid)
