"""SplitStrategy: the server's side of a run on Flower.

Algorithm 1 of arXiv 2112.05929 itself is in `sglr_flower.split` and the run's loop in `sglr_flower.run.training`; here
they are moved over Flower: one message per node and round, and inside it one stream (or, with the grid exchange, a
message per step).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import Tensor

from sglr_flower.data import datasets
from sglr_flower.data.targets import Classes, Kind
from sglr_flower.errors import TooFewClients, UserError
from sglr_flower.exchange.checks import EvaluateCheck, FrameCheck, TrainCheck, frame_bytes
from sglr_flower.exchange.frames import FrameError
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.federation.folder import stream_endpoint
from sglr_flower.flower.attendance import Attendance
from sglr_flower.flower.delivery import Courier, Failure, array_bytes, local_result, sum_metrics
from sglr_flower.flower.node import ARRAYS, ORDER, integers
from sglr_flower.flower.replies import SegmentCheck
from sglr_flower.flower.roster import SETUP_SECONDS, Member, Roster, clients_of
from sglr_flower.run import assembly, training
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import History
from sglr_flower.run.rundir import STATUS_INTERVAL, RunDirectory, new_run_dir
from sglr_flower.run.training import Attended, OpenRound, Weights
from sglr_flower.split import averaging, methods, optimizers
from sglr_flower.split.messages import Upload
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import EVALUATION_SAMPLES, Link, LocalLink
from sglr_flower.split.score import Score
from sglr_flower.split.sent import Sent

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")
RETURN_SECONDS = 10.0
"""How long a round waits for nodes that left the one before, although it could go on without them."""


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
        self._method = methods.get(config.method)
        self._metrics: dict[int, MetricRecord] = {}
        self._grid: Grid
        self._roster: Roster
        self._courier: Courier
        self._segments: SegmentCheck
        self._attendance: Attendance | None = None
        self._streams: StreamServer | None = None
        self._frame: tuple[tuple[int, ...], torch.dtype, Kind] = ((), torch.float32, Classes(()))
        self._status_due = 0.0

    @property
    def count(self) -> int:
        """Nodes that host clients."""
        return len(self._roster.members)

    @property
    def sizes(self) -> Mapping[int, int]:
        """Client -> its number of train images; without clients whose nodes have never come."""
        return self._roster.sizes

    @property
    def exchange(self) -> str:
        """The exchange in use: ``stream``, ``grid``, ``stream+grid`` where nodes differ, or ``none``."""
        if self._method.whole:
            return "none"
        return "+".join(sorted({_exchange(member) for member in self._roster.present()}, reverse=True))

    def summary(self) -> None:
        """Log the settings."""
        c = self.config
        plan = assembly.plan(c, 1)
        log.info("SplitStrategy: %s with %s on %s", c.method, c.model, c.dataset)
        log.info("\t├──> clients: %d of %d samples, batch %d", c.num_clients, c.samples_per_client, c.batch_size)
        log.info("\t├──> rounds: %d of %d local epoch(s)", c.num_server_rounds, c.local_epochs)
        schedules = " and ".join(dict.fromkeys((c.lr_schedule, c.server_lr_schedule or c.lr_schedule)))
        log.info("\t├──> SplitLr: eta_0 %g, alpha %g, schedule %s", c.client_lr, plan.alpha, schedules)
        phi = c.splitavg_phi if methods.get(c.method).cut_gradient else 0.0
        log.info("\t├──> SplitAvg: phi %g over %s, %s", phi, c.splitavg_over, c.splitavg_phase)
        log.info("\t├──> server segment: %s, client segments shared: %s", plan.server_update, plan.shares_segment)
        for protection in (plan.defence, plan.privacy):
            if protection is not None:
                log.info("\t├──> %s", protection)
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
        model = assembly.model(self.config)
        self._segments = SegmentCheck(model.client_segment(0).state_dict())
        self._frame = model.smashed_shape(), assembly.dtype(self.config), assembly.targets(self.config)
        if self.config.evaluate == "server":
            assembly.splits(self.config)  # read now, while the nodes are being started, and kept
        with ExitStack() as stack:
            if self.config.exchange != "grid" and not self._method.whole:
                self._streams = self._open_port()
            if self._streams is not None:
                stack.callback(self._streams.stop)
            self._roster = Roster(grid, self.config, self.directory, self._streams)
            self._roster.gather(restored)
            self._courier = Courier(grid, self._streams, self.config.step_timeout, self.config.start_timeout)
            log.info("%d client(s) on %d node(s), exchange: %s", len(self.sizes), self.count, self.exchange)
            self.directory.status(nodes=self.count, exchange=self.exchange)
            summary = training.train(self.config, self, self.directory, restored)
            self._roster.clean_up()
        score = Score.from_json(summary)
        log.info(
            "test %s %s over %d clients, each at its best validation round",
            score.words,
            score.text(summary[f"test_{score.name}_mean"], summary[f"test_{score.name}_std"]),
            self.config.num_clients,
        )
        return self._result()

    # ---- the hooks of a Flower strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that is there and hosts a client of this round.

        ``arrays`` is the segment that all clients start from; empty where each goes on with its own. ``config`` may
        name the ``clients`` that train: those whose turn it is.
        """
        drawn = assembly.plan(self.config, server_round)
        clients = integers(config["clients"]) if "clients" in config else drawn.clients
        messages = []
        for member in self._taking_part(replace(drawn, clients=tuple(clients))):
            kind = "train.local" if self._method.whole else f"train.{_exchange(member)}"
            order = {"round": server_round, "clients": list(clients_of([member], clients))}
            messages.append(self._order(kind, member, order, config, arrays))
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
        """One message for each node that is there, which opens its client-side evaluation; ``arrays`` as above."""
        return [
            self._order(f"evaluate.{_exchange(member)}", member, {"round": server_round}, config, arrays)
            for member in self._roster.present()
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Sum the nodes' own metrics of an evaluation; the scores are counted on the server."""
        return sum_metrics(replies)

    # ---- how `training.train` reaches the nodes (training.Nodes)

    @property
    def absent(self) -> frozenset[int]:
        """Clients whose nodes are away."""
        return self._roster.absent_clients

    def versions(self, server_round: int) -> dict[int, int]:
        """Clients whose nodes missed the end of the round -> the last one that they have finished."""
        return self._roster.versions(server_round)

    @contextmanager
    def attempt(self, plan: RoundPlan, number: int) -> Iterator[Attended]:
        """Wait until enough of the round's clients are there; at the end take note of who has finished it.

        Raises
        ------
        TooFewClients
            If they are not there within ``start-timeout``.
        """
        self._attendance = attendance = self._attend(plan, number)
        try:
            if not attendance.enough:
                raise attendance.too_few()
            attended = Attended(attendance.plan)
            yield attended
            attendance.finish()
            attended.nodes, attended.dropped_clients = attendance.nodes, attendance.dropped_clients
        finally:
            self._attendance = None
            self.directory.status(node_table=attendance.entries())
            self.directory.record_nodes(attendance.rows())

    @contextmanager
    def train(self, plan: RoundPlan, shared: Weights | None) -> Iterator[OpenRound]:
        """Open a training round, or a turn of one."""
        attendance = self._attendance
        assert attendance is not None
        arrays = ArrayRecord({**shared}) if shared else ArrayRecord()
        config = ConfigRecord({"clients": list(plan.clients), "attempt": attendance.number})
        messages = list(self.configure_train(plan.server_round, arrays, config, self._grid))
        opened = OpenRound(LocalLink({}))
        if shared:
            payload = len(messages) * self._segments.nbytes
            framing = sum(array_bytes(message) for message in messages) - payload
            opened.segments += Sent(segments_down=payload, framing_down=framing)
        if self._method.whole:
            # A node that trains by itself is silent for all its steps, and may have to wait for the others' workers.
            turns = len(messages) if self._roster.simulated else 1
            patience = self.config.start_timeout + self.config.step_timeout * plan.steps(self.sizes) * turns
            replies = list(self._courier.deliver(messages, attendance.leave, patience).values())
            replies = self._with_average(replies, plan, attendance)
            opened.local = [local_result(reply) for reply in replies]
            yield opened
        else:
            checks = self._train_checks(plan)
            follow = attendance.leave, attendance.watch, self._report
            with self._courier.round(messages, checks, *follow, self._roster.sharing_memory) as link:
                opened.link = link
                yield opened
            replies = self._with_average(link.replies, plan, attendance)
        averaged, metrics = self.aggregate_train(plan.server_round, replies)
        if plan.shares_segment:
            payload = len(replies) * self._segments.nbytes
            framing = sum(array_bytes(reply) for reply in replies) - payload
            opened.segments += Sent(segments_up=payload, framing_up=framing)
        if averaged is not None:
            # Flower averages in floating point; counters become whole numbers again.
            kinds = replies[0].content.array_records[ARRAYS].to_torch_state_dict()
            means = averaged.to_torch_state_dict()
            opened.average = {name: averaging.as_like(tensor, kinds[name]) for name, tensor in means.items()}
        self._metrics[plan.server_round] = _added(self._metrics.get(plan.server_round), metrics)

    @contextmanager
    def evaluate(self, server_round: int, shared: Weights | None) -> Iterator[Link]:
        """Open a client-side evaluation."""
        self._roster.wait_for_anybody()
        arrays = ArrayRecord({**shared}) if shared else ArrayRecord()
        messages = self.configure_evaluate(server_round, arrays, ConfigRecord(), self._grid)
        up, _ = assembly.wire_codecs(self.config)
        checks: dict[int, FrameCheck] = {
            member.node: EvaluateCheck(server_round, member.clients, *self._frame, self.config.evaluate_samples, up)
            for member in self._roster.present()
        }
        sharing = self._roster.sharing_memory
        with self._courier.round(messages, checks, self._lose, sharing_memory=sharing) as link:
            yield link
        self.aggregate_evaluate(server_round, link.replies)

    def collect(self, server_round: int, *, checkpoint: bool) -> Mapping[int, dict[str, Tensor]]:
        """Have the nodes bring their clients' weights or states; those of simulated nodes are in the run's folder."""
        if self.config.evaluate == "client":
            return {}  # the nodes keep the states of every checkpoint's round
        self._roster.wait_for_anybody()
        if self._roster.simulated:
            return self._roster.stored()
        messages = [
            self._roster.query(
                "collect", member.node, {"checkpoint": checkpoint, "versions": self._roster.versions_of(member)}
            )
            for member in self._roster.present()
        ]
        states: dict[int, dict[str, Tensor]] = {}
        for node, reply in self._courier.deliver(messages, self._lose, SETUP_SECONDS).items():
            try:
                states |= self._segments.states(reply, self._roster.of_node(node).clients)
            except FrameError as error:
                self._lose(node, Failure(str(error)))
        return dict(sorted(states.items()))

    # ---- who takes part

    def _attend(self, plan: RoundPlan, number: int) -> Attendance:
        """Those of the round's clients that are there, once they are enough or too much time has passed."""
        began = time.monotonic()
        while True:
            self._roster.take_back()
            attendance = Attendance(self._roster, plan, number, self.config.min_clients)
            waited = time.monotonic() - began
            # A node that left a moment ago may be back in a moment: it has to be asked and to answer.
            hopeful = self._roster.left_lately and waited < RETURN_SECONDS
            done = attendance.complete or (attendance.enough and not hopeful)
            if done or waited > self.config.start_timeout:
                self._roster.left_lately = False
                return attendance
            self.directory.status(force=False, node_table=attendance.entries())
            time.sleep(0.2)

    def _with_average(self, replies: list[Message], plan: RoundPlan, attendance: Attendance) -> list[Message]:
        """The replies that bring their clients' average, where the method wants one; other nodes leave the round."""
        sound = []
        for reply in replies:
            node = reply.metadata.src_node_id
            clients = clients_of([self._roster.of_node(node)], plan.clients)
            try:
                if plan.shares_segment:
                    self._segments.average(reply, sum(self.sizes[client] for client in clients))
            except FrameError as error:
                attendance.leave(node, Failure(str(error)))
            else:
                sound.append(reply)
        return sound

    def _taking_part(self, plan: RoundPlan) -> list[Member]:
        assert self._attendance is not None
        return self._attendance.members(plan)

    def _train_checks(self, plan: RoundPlan) -> dict[int, FrameCheck]:
        return {
            member.node: TrainCheck(plan, {i: self.sizes[i] for i in clients_of([member], plan.clients)}, *self._frame)
            for member in self._taking_part(plan)
        }

    def _lose(self, node: int, failure: Failure) -> None:
        """A node fails while no round is trained."""
        self._roster.lose(node, failure)
        if not self._roster.present():
            raise TooFewClients(f"all nodes have left: {self._roster.reasons()}")

    # ---- messages

    def _open_port(self) -> StreamServer | None:
        """The streams' port; None where none can be had and the grid exchange will do."""
        # A cohort is not larger than all clients together, nor is a chunk of an evaluation.
        c = self.config
        samples = max(c.batch_size * c.num_clients, EVALUATION_SAMPLES, c.num_clients)
        try:
            return StreamServer(stream_endpoint(), frame_bytes(samples, *self._frame, assembly.wire_codecs(c)[0]))
        except UserError as error:
            if c.exchange == "stream":
                raise
            log.warning("exchange auto: no port for streams (%s), so the grid exchange is used", error)
            return None

    def _order(
        self,
        kind: str,
        member: Member,
        order: Mapping[str, Any],
        extra: ConfigRecord,
        arrays: ArrayRecord,
    ) -> Message:
        """The message that opens a round on a node; its type says which handler answers."""
        common: dict[str, Any] = {
            "versions": self._roster.versions_of(member),
            "checkpoints": self._roster.kept_rounds(),
            "threads": self._roster.threads,
        }
        content = RecordDict({ORDER: ConfigRecord({"attempt": 1, **extra, **common, **order})})
        if arrays:
            content[ARRAYS] = arrays
        return Message(content, member.node, kind)

    def _report(self, uploads: Mapping[int, Upload]) -> None:
        """Show how the nodes are, now and then."""
        now = time.monotonic()
        if self._attendance is not None and now >= self._status_due:
            self._status_due = now + STATUS_INTERVAL
            self.directory.status(force=False, node_table=self._attendance.entries())

    def _result(self) -> Result:
        """The run as Flower's own result object."""
        restored = self.directory.latest_checkpoint()
        assert restored is not None  # the last round has one
        result = Result()
        shared = restored.shared_weights() if self._method.whole else None
        result.arrays = ArrayRecord(shared or optimizers.segment_weights(restored.server_state()))
        for row in History.from_json(restored.history).rows:
            figures = {name: value for name, value in row.named().items() if value is not None}
            evaluated = {name: value for name, value in figures.items() if name.startswith(("validation", "test"))}
            trained = {name: value for name, value in figures.items() if name not in evaluated}
            own = self._metrics.get(row.round, MetricRecord())
            result.train_metrics_clientapp[row.round] = MetricRecord({**trained, **own})
            if evaluated:
                result.evaluate_metrics_serverapp[row.round] = MetricRecord(evaluated)
        return result


def _exchange(member: Member) -> str:
    return "stream" if member.streams else "grid"


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
