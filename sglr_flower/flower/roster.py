"""Which nodes of a run are there, and how one that was away comes back.

A node that fails is *away* until it has answered a new assignment: its process may be gone, its SuperNode restarted, or
its handler still be busy with the round that it left. The question waits on the SuperLink until the node can take it,
and its answer says which version of each client's state the node has.
"""

from __future__ import annotations

import logging
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from sglr_flower.data.targets import Classes
from sglr_flower.errors import TooFewClients, UserError
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.federation.folder import node_names
from sglr_flower.flower.delivery import Failure, Pending
from sglr_flower.flower.greeting import ASK_SECONDS, Greeter
from sglr_flower.flower.protocol import CONFIG, ORDER, AssignAnswer, AssignOrder, CollectOrder, HelloOrder
from sglr_flower.flower.replies import assigned
from sglr_flower.flower.seating import Answers, Member, Seating, clients_of, numbered, simulated
from sglr_flower.flower.staterecords import STATES, pack_states
from sglr_flower.flower.waiting import Wait, listed
from sglr_flower.run import assembly, checkpoint
from sglr_flower.run.checkpoint import Checkpoint, LazyStates
from sglr_flower.run.config import RunConfig, listed_classes
from sglr_flower.run.machine import available_cpus
from sglr_flower.run.nodestate import simulated_states
from sglr_flower.run.nodetable import printable
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split.plan import RoundPlan

log = logging.getLogger("flwr.sglr")
SETUP_SECONDS = 300.0
"""How long nodes that are connected may take to load their data, or to hand over their clients' states: this, or
``start-timeout`` if that is longer."""
NOT_YET = "it has not come yet"


class Roster:
    """The nodes of a run.

    Parameters
    ----------
    grid : Grid
        Reaches them.
    config : RunConfig
        The run.
    directory : RunDirectory
        The run's.
    streams : StreamServer | None
        The port that nodes must reach for the stream exchange; None: no node streams.

    Attributes
    ----------
    members : list[Member]
        The places, in the order of their clients.
    sizes : dict[int, int]
        Client -> its number of train samples, of those whose nodes have come.
    held : dict[int, tuple[int, ...]]
        Node -> validation and test samples that its clients are scored on there, where that is done there.
    threads : int
        Threads that a node computes with; 0: its own default.
    simulated : bool
        Whether the nodes are Flower's simulated ones.
    left_lately : bool
        Whether a node has left since the last round began.
    """

    def __init__(self, grid: Grid, config: RunConfig, directory: RunDirectory, streams: StreamServer | None) -> None:
        self.members: list[Member] = []
        self.sizes: dict[int, int] = {}
        self.held: dict[int, tuple[int, ...]] = {}
        self.threads = 0
        self.simulated = False
        self.left_lately = False
        self._grid, self._config, self._directory, self._streams = grid, config, directory, streams
        self._seating = Seating(streams, insists=config.exchange == "stream")
        self._greeter = Greeter(grid, self._hello)
        kind = assembly.targets(config)
        self._classes = kind.words()
        self._counted = kind.names if isinstance(kind, Classes) else ("samples",)
        self._counts: dict[int, tuple[int, ...]] = {}
        self._versions: dict[int, int] = {}
        self._session = time.time_ns()
        self._restored: Checkpoint | None = None

    def of_node(self, node: int) -> Member:
        """The place that a node has."""
        return next(member for member in self.members if member.node == node)

    def present(self) -> list[Member]:
        """The places whose nodes are there."""
        return [member for member in self.members if not member.away]

    @property
    def sharing_memory(self) -> set[int]:
        """The nodes that are there and share memory with the server."""
        return {member.node for member in self.present() if member.memory}

    @property
    def absent_clients(self) -> frozenset[int]:
        """The clients whose nodes are away."""
        return frozenset(client for member in self.members if member.away for client in member.clients)

    def versions(self, server_round: int) -> dict[int, int]:
        """Client -> the last round that it has trained in, 0 if none, of those that did not in ``server_round``."""
        return {client: version for client, version in self._versions.items() if version != server_round}

    def finished(self, member: Member, plan: RoundPlan) -> None:
        """Take note that a node has done all of a round."""
        member.base = plan.server_round
        self._versions |= dict.fromkeys(clients_of([member], plan.clients), plan.server_round)

    def clean_up(self) -> None:
        """Remove what simulated nodes have kept of a finished run, if its checkpoints have it too."""
        if self.simulated and self._config.evaluate == "server":
            simulated_states(self._config).remove()

    def stored(self) -> LazyStates:
        """The states of simulated nodes' clients, out of the run's folder; those of nodes that are away too."""
        return simulated_states(self._config).later(self._versions)

    def versions_of(self, member: Member) -> list[int]:
        """The last round that each of its clients has trained in, 0 if none; in their order."""
        return [self._versions[client] for client in member.clients]

    # ---- the beginning of a run

    def gather(self, restored: Checkpoint | None) -> None:
        """Wait for the nodes, and give each its clients.

        Raises
        ------
        UserError
            If a setting does not fit the nodes or their data.
        ExchangeError
            If nodes are missing without which the run cannot begin.
        """
        self._restored = restored
        self._seat(self._greet())
        if restored and self.simulated:
            self._lay_out(restored)
        orders = [self._assignment(member) for member in self.present()]
        pending = Pending(self._grid, self._read_assigned)
        pending.push(orders)
        wait = Wait(self._directory, self._setup_seconds, "")
        seated: set[int] = set()

        def look() -> None:
            # At once: where a node cannot take part, a strict run does not wait for the others' answers.
            for node in pending.replies.keys() - seated:
                seated.add(node)
                try:
                    self._seated(self.of_node(node), pending.replies[node])
                except UserError as error:
                    pending.failures[node] = Failure(str(error), mistake=True)
            for node, failure in pending.fresh().items():
                self.lose(node, failure)
            if pending.open:
                late = sorted(str(self.of_node(node)) for node in pending.open)
                wait.tell(f"{len(late)} node(s) that make their data ready: {listed(late)}")

        pending.wait(wait.seconds, look)
        look()  # where Flower took no message there was nothing to wait for
        wait.end()
        if not self.present():
            raise ExchangeError("no node could take its clients: " + self.reasons())

    def _greet(self) -> Answers:
        """Ask every node what it is; node -> its answer, in the order of their partitions."""
        log.info("waiting for the nodes")
        wait, pause = Wait(self._directory, self._config.start_timeout), 0.1
        greeter, answers = self._greeter, self._greeter.answers
        while True:
            for node, failure in greeter.ask(list(self._grid.get_node_ids())).items():
                if (failure.mistake or failure.nonsense) and not self._config.tolerant:
                    raise failure.error(failure.called(node))
            # A node that knows of its siblings tells how many to wait for.
            wanted = self._places(answers)
            # Who is connected and has been asked is starting Python and importing torch.
            wait.seconds = self._setup_seconds if greeter.open else self._config.start_timeout
            if len(answers) >= wanted and (wanted > 1 or not greeter.open):
                break
            if wait.over and answers and self._config.tolerant:
                break
            if wait.over:
                why = f"still missing after {wait.seconds:g} s{wait.key}: {self._missing(wanted)}"
                raise ExchangeError(f"{why}; {self._unheard()}" if greeter.failures else why)
            wait.tell(self._missing(wanted))
            time.sleep(pause)
            pause = min(0.25, 1.2 * pause)
        wait.end()
        return dict(sorted(answers.items(), key=lambda item: (item[1].partition_id, item[0])))

    @property
    def _setup_seconds(self) -> float:
        return max(SETUP_SECONDS, self._config.start_timeout)

    def _missing(self, wanted: int) -> str:
        """How many of so many nodes have not said what they are, and which, as far as the federation's folder tells."""
        answers, asked = self._greeter.answers.values(), len(self._greeter.open)
        there, count = {answer.name for answer in answers}, max(1, wanted - len(answers), asked)
        names = [name for name in node_names() if name not in there]
        which = f": {'among ' if len(names) > count else ''}{listed(names)}" if names else ""
        connected = f" ({asked} connected, not heard so far)" if asked else ""
        return f"{count} of {max(wanted, len(answers) + count)} node(s){which}{connected}"

    def _unheard(self) -> str:
        """Why nodes have not said what they are."""
        failures = self._greeter.failures
        return "; ".join(f"{failure.called(node)}: {failure.reason}" for node, failure in failures.items())

    def _places(self, answers: Answers) -> int:
        """How many nodes to wait for: what they know of their siblings; on devices, when resumed, as many as before.

        Devices keep their clients' states, so a client must not move when a federation has grown.
        """
        told = max([1, *(answer.num_partitions for answer in answers.values())])
        return (self._directory.places() or told) if self._restored and not simulated(answers) else told

    def _seat(self, answers: Answers) -> None:
        restored, places = self._restored, self._places(answers)
        if not restored:
            self._directory.keep_places(places if numbered(answers) else 0)
        clients, base = len(assembly.clients(self._config)), restored.server_round if restored else 0
        absent = f"{NOT_YET} ({self._unheard()})" if self._greeter.failures else NOT_YET
        self.members = self._seating.seat(answers, clients, places, base, absent)
        self._versions = dict.fromkeys((c for m in self.members for c in m.clients), base)
        self._versions |= restored.versions if restored else {}
        self.simulated = simulated(answers)
        # Simulated nodes share this machine's cores: more threads than cores collapse (20 times slower).
        self.threads = min(available_cpus(), max(answer.threads for answer in answers.values()))
        for member in self.members:
            self._greeter.forget(member.node)

    # ---- leaving and coming back

    def wait_for_anybody(self) -> None:
        """Return once a node is there.

        Raises
        ------
        TooFewClients
            If none is within ``start-timeout``.
        """
        wait = Wait(self._directory, self._config.start_timeout)
        while not self.present():
            self.take_back()
            if wait.over:
                raise TooFewClients(f"all nodes have left: {self.reasons()}")
            wait.tell(self.reasons())
            time.sleep(0.2)
        wait.end()

    def lose(self, node: int, failure: Failure, when: str = "") -> None:
        """A node did not do what it had to; the run goes on without it if it may.

        Raises
        ------
        UserError, ExchangeError
            If it may not, in the node's own words where it has some.
        """
        member = self.of_node(node)
        if not self._config.tolerant:
            raise failure.error(str(member))
        self.leave(member, failure.reason, when)

    def leave(self, member: Member, reason: str, when: str = "") -> None:
        """Take note that a node is away, and ask it to come back."""
        log.warning("%s left%s: %s", member, when, reason)
        member.away, self.left_lately = reason, True
        self._ask(member)

    def take_back(self) -> None:
        """Look whether nodes that are away have come back; those that have are there from now on."""
        away = [member for member in self.members if member.away]
        if not away:
            return
        online = set(self._grid.get_node_ids())
        for member in away:
            if member.question is not None:
                self._hear(member, member.question)
            elif member.node in online and time.monotonic() - member.asked_at > 1.0:
                self._ask(member)
        if any(member.away for member in away):
            self._meet(online - {member.node for member in self.members})

    def _ask(self, member: Member) -> None:
        member.question, member.asked_at = Pending(self._grid, self._read_assigned), time.monotonic()
        member.question.push([self._assignment(member)])

    def _hear(self, member: Member, question: Pending[AssignAnswer]) -> None:
        """Take a node back if it has answered; a question without an answer is asked again."""
        question.poll()
        if answer := question.replies.get(member.node):
            member.question, member.away = None, ""
            try:
                self._seated(member, answer)
            except UserError as error:
                member.away, member.asked_at = str(error), time.monotonic() + ASK_SECONDS
                log.warning("%s is not taken back: %s", member, error)
            else:
                log.info("%s is back with its client(s) as after round %d", member, member.base)
        elif failure := question.failures.get(member.node):
            member.question = None
            if failure.gone:
                return
            member.asked_at = time.monotonic() + ASK_SECONDS  # it would answer the same a second later
            if failure.reason != member.away:
                log.warning("%s cannot come back: %s", member, failure.reason)
                member.away = failure.reason
        elif time.monotonic() - member.asked_at > self._config.start_timeout:
            member.question = None

    def _meet(self, unknown: set[int]) -> None:
        """Greet nodes that have no place, and give them one that is free: a device whose SuperNode has a new id."""
        self._greeter.ask(unknown)
        for node in unknown & self._greeter.answers.keys():
            answer = self._greeter.answers[node]
            free = (m for m in self.members if m.away and m.partition == answer.partition_id >= 0)
            if (member := next(free, None)) is None:
                continue
            self._greeter.forget(node)
            reason = member.away
            try:
                self._seating.take_place(member, node, answer)
            except UserError as error:
                member.away, member.asked_at = str(error), time.monotonic() + ASK_SECONDS
                log.warning("%s cannot take its place: %s", member, error)
            else:
                member.away = reason  # until it has its clients
                self._ask(member)

    # ---- messages

    def collecting(self, member: Member, *, checkpoint: bool) -> Message:
        """The message that has a node hand over its clients' states, or only their segments."""
        order = CollectOrder(self.threads, checkpoint, tuple(self.versions_of(member)))
        return Message(RecordDict({ORDER: order.to_record()}), member.node, "query.collect")

    def _hello(self, node: int) -> Message:
        order = HelloOrder(self.threads, address="", secret="", tls=False, memory=b"")
        if (streams := self._streams) is not None:
            shown = streams.memory.shown if streams.memory else b""
            order = HelloOrder(self.threads, streams.address, streams.reach_secret, streams.tls, shown)
        return Message(RecordDict({ORDER: order.to_record()}), node, "query.hello")

    def _assignment(self, member: Member) -> Message:
        """The message that gives a node its clients, and when resuming their states in the checkpoint."""
        restored = self._restored if not member.seated else None
        # A simulated node finds them in the run's folder.
        by_message = restored is not None and self._config.evaluate == "server" and not self.simulated
        states = restored.client_states(member.clients) if restored and by_message else {}
        sent: tuple[int, ...] | None = None
        if restored and states:
            of = restored.state_versions(member.clients)
            sent = tuple(of[client] if client in states else 0 for client in member.clients)
        order = AssignOrder(
            self.threads,
            clients=member.clients,
            run_id=self._directory.run_id,
            session=self._session,
            versions=tuple(self.versions_of(member)),
            checkpoints=tuple(self.kept_rounds()),
            sent=sent,
        )
        config = self._config
        if self._own and config.dataset == "folder":
            # Classes, and the range of images of more than 8 bits, are the server's to say: a device sees a part.
            config = config.replace(classes=listed_classes(self._classes), levels=assembly.levels_of(config))
        content = RecordDict({ORDER: order.to_record(), CONFIG: ConfigRecord({**config.values()})})
        if states:
            content[STATES] = pack_states(states)
        return Message(content, member.node, "query.assign")

    def _read_assigned(self, node: int, reply: Message) -> AssignAnswer:
        member = self.of_node(node)
        columns = len(self._counted) if self._own else 0
        return assigned(reply.content, member.clients, self.versions_of(member), columns)

    def kept_rounds(self) -> list[int]:
        """The rounds whose states the nodes keep: of those there are checkpoints, which do not have the states."""
        if self.simulated and self._config.evaluate == "server":
            return []
        return checkpoint.rounds(self._directory.checkpoints)

    def _lay_out(self, restored: Checkpoint) -> None:
        """Give simulated nodes the states of a checkpoint that has them, where their own files are older or gone."""
        if self._config.evaluate == "client":
            return  # their files are the checkpoint
        kept, sent = simulated_states(self._config), restored.state_versions(self._versions)
        found = kept.go_back(self._versions)
        for client, state in restored.client_states(self._versions).items():
            if found[client] <= sent[client]:  # of the same version the checkpoint's is verified, and the file is not
                kept.commit(sent[client], {client: state}, {client: 0}, [])

    def _seated(self, member: Member, answer: AssignAnswer) -> None:
        """Take what a node says of its clients.

        Raises
        ------
        UserError
            If its data do not fit the server's.
        """
        if answer.classes != self._classes:  # with images of their own (dataset "folder"), nodes may not have the same
            raise UserError(printable(f"it has the classes {answer.classes}, and the server {self._classes}"))
        self.sizes |= dict(zip(member.clients, answer.sizes, strict=True))
        for client, version in zip(member.clients, answer.versions, strict=True):
            if not version and self._versions[client]:
                log.warning("%s has no state of client %d, which starts from its initial segment", member, client)
            elif version < self._versions[client]:
                log.warning("%s has the state of client %d as after round %d only", member, client, version)
        if answer.held is not None:
            self.held[member.node] = answer.held
        if self._own:
            self._count(member, answer)
        member.seated = True

    @property
    def _own(self) -> bool:
        """Whether the nodes' data are their own."""
        return self._config.partition == "own"

    def _count(self, member: Member, answer: AssignAnswer) -> None:
        """Take note of how many samples of each class a node has, and write it down; 0 of those that have not come."""
        for client, counts in zip(member.clients, answer.by_client(), strict=True):
            self._counts[client] = counts
            each = ", ".join(f"{name} {count}" for name, count in zip(self._counted, counts, strict=True))
            log.info("%s: client %d has %d train samples: %s", member, client, sum(counts), printable(each))
        none = (0,) * len(self._counted)
        every = [self._counts.get(client, none) for client in assembly.clients(self._config)]
        self._directory.partition(self._counted, every)

    def reasons(self) -> str:
        """Why nodes are away, as part of a sentence."""
        return "; ".join(f"{member}: {member.away}" for member in self.members if member.away)
