"""The strategy of the ServerApp: Algorithm 1's rounds over Flower, each of many steps.

Algorithm 1 of arXiv 2112.05929 itself is in `sglr_flower.split` and the run's loop in `sglr_flower.run.training`; here
they are moved over Flower: one message per node and round, and inside it one stream (or, with the grid exchange, a
message per step).
"""

from __future__ import annotations

import logging
import time
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from sglr_flower.data.targets import Kind
from sglr_flower.errors import TooFewClients
from sglr_flower.exchange.checks import EvaluateCheck, FrameCheck, TrainCheck
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.flower.attendance import Attendance
from sglr_flower.flower.courier import Courier
from sglr_flower.flower.delivery import Failure
from sglr_flower.flower.protocol import ARRAYS, ORDER, EvaluateMetrics, EvaluateOrder, LocalMetrics, Order, TrainOrder
from sglr_flower.flower.replies import SegmentCheck, Trained, evaluated, tensors_of
from sglr_flower.flower.roster import SETUP_SECONDS, Roster
from sglr_flower.flower.seating import Member, clients_of
from sglr_flower.flower.waiting import Wait
from sglr_flower.run import assembly, training
from sglr_flower.run.config import RunConfig
from sglr_flower.run.nodes import Attended, OpenRound, Weights
from sglr_flower.run.rundir import STATUS_INTERVAL, RunDirectory
from sglr_flower.run.summary import Summary
from sglr_flower.split import averaging, methods
from sglr_flower.split.messages import Upload
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import Link, LocalLink
from sglr_flower.split.sent import Sent

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")
RETURN_SECONDS = 10.0
"""How long a round waits for nodes that left the one before, although it could go on without them."""


class SplitStrategy(Strategy):
    """A run over Flower: the strategy of the ServerApp, and the nodes as `sglr_flower.run.training` sees them.

    A round of split learning has many steps, so Flower's own loop, which has one exchange in each, cannot drive it:
    `start` is `training.train` here. The hooks are Flower's: what opens a round or an evaluation on the nodes, and what
    is made of their replies.

    Parameters
    ----------
    grid : Grid
        Reaches them.
    config : RunConfig
        The run.
    directory : RunDirectory
        Opened with ``config``; what the run writes.
    streams : StreamServer | None
        The port for streams, where there is one.
    """

    def __init__(self, grid: Grid, config: RunConfig, directory: RunDirectory, streams: StreamServer | None) -> None:
        self._grid, self._config, self._directory = grid, config, directory
        self._whole = methods.get(config.method).whole
        model = assembly.model(config)
        self._segments = SegmentCheck(model.client_segment(0).state_dict())
        self._frame = frame_of(config)
        self.roster = Roster(grid, config, directory, streams)
        self._courier = Courier(grid, streams, config.step_timeout, config.start_timeout)
        self._attendance: Attendance | None = None
        self._status_due = 0.0

    @property
    def count(self) -> int:
        """Nodes that host clients."""
        return len(self.roster.members)

    @property
    def sizes(self) -> Mapping[int, int]:
        """Client -> its number of train samples; without clients whose nodes have never come."""
        return self.roster.sizes

    @property
    def exchange(self) -> str:
        """The exchange in use: ``stream``, ``grid``, ``stream+grid`` where nodes differ, or ``none``."""
        if self._whole:
            return "none"
        return "+".join(sorted({_exchange(member) for member in self.roster.present()}, reverse=True))

    @property
    def absent(self) -> frozenset[int]:
        """Clients whose nodes are away."""
        return self.roster.absent_clients

    def versions(self, server_round: int) -> dict[int, int]:
        """Clients whose nodes missed the end of the round -> the last one that they have finished."""
        return self.roster.versions(server_round)

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
            self._directory.status(node_table=attendance.entries())
            self._directory.record_nodes(attendance.rows())

    @contextmanager
    def train(self, plan: RoundPlan, shared: Weights | None) -> Iterator[OpenRound]:
        """Open a training round, or a turn of one."""
        if self._attendance is None:
            raise RuntimeError("a round is trained within `attempt`")
        attendance = self._attendance
        members = attendance.members(plan)
        sizes = {m.node: {i: self.sizes[i] for i in clients_of([m], plan.clients)} for m in members}
        asked = ConfigRecord({"clients": list(plan.clients), "attempt": attendance.number})
        messages = self.configure_train(plan.server_round, _arrays(shared), asked, self._grid)
        opened = OpenRound(LocalLink({}))
        if shared:
            payload = len(messages) * self._segments.nbytes
            framing = sum(_array_bytes(message) for message in messages) - payload
            opened.segments += Sent(segments_down=payload, framing_down=framing)

        def read(node: int, reply: Message) -> Trained:
            return self._segments.trained(reply, plan, sizes[node], whole=self._whole)

        if self._whole:
            # A node that trains by itself is silent for all its steps, and may have to wait for the others' workers.
            turns = len(messages) if self.roster.simulated else 1
            patience = self._config.start_timeout + self._config.step_timeout * plan.steps(self.sizes) * turns
            replies = self._courier.deliver(messages, read, attendance.leave, patience)
            metrics = (replies[node].metrics for node in sizes if node in replies)
            opened.local = [own.result for own in metrics if isinstance(own, LocalMetrics)]
            yield opened
        else:
            checks: dict[int, FrameCheck] = {node: TrainCheck(plan, its, *self._frame) for node, its in sizes.items()}
            follow = attendance.leave, attendance.watch, self._report
            with self._courier.round(messages, checks, read, *follow, self.roster.sharing_memory) as link:
                opened.link = link
                yield opened
            replies = link.replies
        if plan.shares_segment:
            self._average([replies[node].message for node in sizes if node in replies], plan, opened)

    @contextmanager
    def evaluate(self, server_round: int, shared: Weights | None) -> Iterator[Link]:
        """Open a client-side evaluation on the nodes that have something to score their clients on."""
        self.roster.wait_for_anybody()
        here = {member.node: member for member in self._scored()}
        messages = self.configure_evaluate(server_round, _arrays(shared), ConfigRecord(), self._grid)
        up, _ = assembly.wire_codecs(self._config)
        checks: dict[int, FrameCheck] = {
            node: EvaluateCheck(
                server_round, member.clients, *self._frame, self._config.evaluate_samples, up, self._splits(member)
            )
            for node, member in here.items()
        }

        def read(node: int, reply: Message) -> EvaluateMetrics:
            return evaluated(reply.content, here[node].clients)

        sharing = self.roster.sharing_memory
        with self._courier.round(messages, checks, read, self._lose, sharing_memory=sharing) as link:
            yield link

    def collect(self, server_round: int, *, checkpoint: bool) -> Mapping[int, dict[str, Tensor]]:
        """Have the nodes bring their clients' weights or states; those of simulated nodes are in the run's folder."""
        if self._config.evaluate == "client":
            return {}  # the nodes keep the states of every checkpoint's round
        self.roster.wait_for_anybody()
        if self.roster.simulated:
            return self.roster.stored()
        here = {member.node: member for member in self.roster.present()}

        def read(node: int, reply: Message) -> dict[int, dict[str, Tensor]]:
            return self._segments.states(reply.content, here[node].clients)

        messages = [self.roster.collecting(member, checkpoint=checkpoint) for member in here.values()]
        replies = self._courier.deliver(messages, read, self._lose, SETUP_SECONDS)
        states = {client: state for its in replies.values() for client, state in its.items()}
        return dict(sorted(states.items()))

    def _average(self, replies: list[Message], plan: RoundPlan, opened: OpenRound) -> None:
        """The mean of the segments that nodes sent, by Flower's own FedAvg."""
        payload = len(replies) * self._segments.nbytes
        framing = sum(_array_bytes(reply) for reply in replies) - payload
        opened.segments += Sent(segments_up=payload, framing_up=framing)
        if not replies:
            return
        averaged, _ = self.aggregate_train(plan.server_round, replies)
        if averaged is not None:
            # Flower averages in floating point; counters become whole numbers again.
            kinds, means = tensors_of(replies[0].content), averaged.to_torch_state_dict()
            opened.average = {name: averaging.as_like(tensor, kinds[name]) for name, tensor in means.items()}

    # ---- a Flower strategy

    def summary(self) -> None:
        """Log the settings."""
        c, plan = self._config, assembly.plan(self._config, 1)
        log.info("%s with %s on %s", c.method, c.model, c.dataset)
        log.info("\t├──> clients: %d of %d samples, batch %d", c.num_clients, c.samples_per_client, c.batch_size)
        log.info("\t├──> rounds: %d of %d local epoch(s)", c.num_server_rounds, c.local_epochs)
        schedules = " and ".join(dict.fromkeys((c.lr_schedule, c.server_lr_schedule or c.lr_schedule)))
        log.info("\t├──> SplitLr: eta_0 %g, alpha %g, schedule %s", c.client_lr, plan.alpha, schedules)
        phi = c.splitavg_phi if methods.get(c.method).cut_gradient else 0.0
        log.info("\t├──> SplitAvg: phi %g over %s, %s", phi, c.splitavg_over, c.splitavg_phase)
        log.info("\t├──> server segment: %s, client segments shared: %s", _told(plan.server), plan.shares_segment)
        for protection in (plan.defence, plan.privacy):
            if protection is not None:
                log.info("\t├──> %s", protection)
        log.info("\t└──> run directory: %s", self._directory.path)

    def start(self) -> Summary:  # type: ignore[override]  # the grid is the constructor's, all else the run's
        """Greet the nodes, hand out the clients, and train all rounds that are left.

        Returns
        -------
        Summary
            What it came to.

        Raises
        ------
        UserError
            If a setting does not fit the nodes or their data.
        ExchangeError
            If a node fails, or is silent for longer than ``step-timeout``, and the run is strict.
        """
        self.summary()
        restored = self._directory.latest_checkpoint() if self._config.resume else None
        self.roster.gather(restored)
        log.info("%d client(s) on %d node(s), exchange: %s", len(self.sizes), self.count, self.exchange)
        self._directory.status(nodes=self.count, exchange=self.exchange)
        summary = training.train(self._config, self, self._directory, restored)
        self.roster.clean_up()
        return summary

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One message for each node that is there and hosts a client of this round.

        ``arrays`` is the segment that all clients start from, empty where each goes on with its own; ``config`` says
        which ``clients`` train, of all that were drawn those whose turn it is, and in which ``attempt``.
        """
        if self._attendance is None:
            raise RuntimeError("a round is opened within `attempt`")
        clients = tuple(typing.cast(list[int], config["clients"]))
        plan = replace(assembly.plan(self._config, server_round), clients=clients)
        attempt = typing.cast(int, config["attempt"])
        return [self._training(member, plan, attempt, arrays) for member in self._attendance.members(plan)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the segments that nodes sent, weighted by their samples, by Flower's own FedAvg."""
        return FedAvg().aggregate_train(server_round, list(replies))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """A message for each node that is there and has something to score on: it opens the client-side evaluation.

        ``arrays`` as above.
        """
        return [self._evaluation(member, server_round, arrays) for member in self._scored()]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing: the server has scored what the nodes sent, step by step."""
        return None

    # ---- who takes part

    def _attend(self, plan: RoundPlan, number: int) -> Attendance:
        """Those of the round's clients that are there, once they are enough or too much time has passed."""
        wait = Wait(self._directory, self._config.start_timeout)
        while True:
            self.roster.take_back()
            attendance = Attendance(self.roster, plan, number, self._config.min_clients)
            # A node that left a moment ago may be back in a moment: it has to be asked and to answer.
            hopeful = self.roster.left_lately and wait.waited < RETURN_SECONDS
            done = attendance.complete or (attendance.enough and not hopeful)
            if done or wait.over:
                self.roster.left_lately = False
                wait.end()
                return attendance
            self._directory.status(force=False, node_table=attendance.entries())
            wait.tell(self.roster.reasons())
            time.sleep(0.2)

    def _splits(self, member: Member) -> tuple[str, ...]:
        """What a node has samples of to score its clients on."""
        held = self.roster.held.get(member.node, (1, 1))
        return tuple(split for split, images in zip(("validation", "test"), held, strict=True) if images)

    def _scored(self) -> list[Member]:
        return [member for member in self.roster.present() if self._splits(member)]

    def _lose(self, node: int, failure: Failure) -> None:
        """A node fails while no round is trained."""
        self.roster.lose(node, failure)
        if not self.roster.present():
            raise TooFewClients(f"all nodes have left: {self.roster.reasons()}")

    # ---- messages

    def _training(self, member: Member, plan: RoundPlan, attempt: int, arrays: ArrayRecord) -> Message:
        """The message that opens a training round on a node; its type says which handler answers."""
        order = TrainOrder(
            self.roster.threads,
            round=plan.server_round,
            attempt=attempt,
            clients=clients_of([member], plan.clients),
            versions=tuple(self.roster.versions_of(member)),
            checkpoints=tuple(self.roster.kept_rounds()),
        )
        return _opening("train.local" if self._whole else f"train.{_exchange(member)}", member, order, arrays)

    def _evaluation(self, member: Member, server_round: int, arrays: ArrayRecord) -> Message:
        """The message that opens a client-side evaluation on a node."""
        order = EvaluateOrder(self.roster.threads, server_round, tuple(self.roster.versions_of(member)))
        return _opening(f"evaluate.{_exchange(member)}", member, order, arrays)

    def _report(self, uploads: Mapping[int, Upload]) -> None:
        """Show how the nodes are, now and then."""
        now = time.monotonic()
        if self._attendance is not None and now >= self._status_due:
            self._status_due = now + STATUS_INTERVAL
            self._directory.status(force=False, node_table=self._attendance.entries())


def _exchange(member: Member) -> str:
    return "stream" if member.streams else "grid"


def _arrays(shared: Weights | None) -> ArrayRecord:
    return ArrayRecord({**shared}) if shared else ArrayRecord()


def _opening(kind: str, member: Member, order: Order, arrays: ArrayRecord) -> Message:
    content = RecordDict({ORDER: order.to_record()})
    if arrays:
        content[ARRAYS] = arrays
    return Message(content, member.node, kind)


def _array_bytes(message: Message) -> int:
    """Bytes of the segments in a message, with what Flower's records add to their tensors."""
    return sum(record.count_bytes() for record in message.content.array_records.values())


def frame_of(config: RunConfig) -> tuple[tuple[int, ...], torch.dtype, Kind]:
    """What every frame of the run has to be: the smashed data's shape and dtype, and the target type."""
    return assembly.model(config).smashed_shape(), assembly.dtype(config), assembly.targets(config)


def _told(server: object) -> str:
    """The server's side by its name."""
    return str(getattr(server, "name", None) or getattr(server, "__name__", server))
