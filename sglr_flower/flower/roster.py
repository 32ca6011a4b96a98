"""Which node hosts which clients, which nodes are there, and how one that was away comes back.

A node that fails is *away* until it has answered a new assignment: its process may be gone, its SuperNode restarted, or
its handler still be busy with the round that it left. The question waits on the SuperLink until the node can take it,
and its answer says which version of each client's state the node has.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from sglr_flower.errors import TooFewClients, UserError
from sglr_flower.exchange.stream import MAX_STREAMS, StreamServer
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.flower.delivery import Failure, Pending, integer
from sglr_flower.flower.node import ANSWER, CONFIG, ORDER, integers
from sglr_flower.flower.staterecords import STATES, pack_states
from sglr_flower.run import assembly, checkpoint
from sglr_flower.run.checkpoint import Checkpoint, LazyStates
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import available_cpus
from sglr_flower.run.nodestate import simulated_states
from sglr_flower.run.nodetable import printable
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split.plan import RoundPlan, spread

log = logging.getLogger("flwr.sglr")
SETUP_SECONDS = 300.0
"""How long nodes may take to appear, to load their data, and to hand over their clients' states."""
ASK_SECONDS = 15.0
"""How long a node is left alone that has said why it cannot take its clients."""
NOT_YET = "it has not come yet"


@dataclass
class Member:
    """A place in the run: some clients, and the node that hosts them.

    Attributes
    ----------
    clients : tuple[int, ...]
        The clients of this place.
    node : int
        Flower's id of the node; 0: none has come yet.
    name : str
        What its node-config calls it; may be empty.
    partition : int
        Its partition-id, -1 if it has none; another node with the same one may take the place.
    base : int
        The round whose end its clients' states are from, as the server counts them.
    streams : bool
        Whether it can open a stream.
    memory : bool
        Whether it shares memory with the server: a simulated node on the server's machine.
    away : str
        Why it is not there; empty if it is.
    seated : bool
        Whether it, or a node before it, has taken the clients.
    """

    clients: tuple[int, ...]
    node: int = 0
    name: str = ""
    partition: int = -1
    base: int = 0
    streams: bool = False
    memory: bool = False
    away: str = ""
    seated: bool = False
    question: Pending | None = field(default=None, repr=False)
    asked_at: float = 0.0

    def __str__(self) -> str:
        if not self.node:
            return f"the node of partition {self.partition}"
        return f"node {self.name} ({self.node})" if self.name else f"node {self.node}"


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
        Client -> its number of train images, of those whose nodes have come.
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
        self.threads = 0
        self.simulated = False
        self.left_lately = False
        self._grid, self._config, self._directory, self._streams = grid, config, directory, streams
        self._versions: dict[int, int] = {}
        self._session = time.time_ns()
        self._restored: Checkpoint | None = None
        self._classes: object = None
        self._strangers: dict[int, Pending] = {}

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
        self._seat(self._greet(), restored)
        if restored and self.simulated:
            self._lay_out(restored)
        orders = [self._assignment(member) for member in self.present()]
        pending = Pending(self._grid)
        pending.push(orders)
        pending.wait(SETUP_SECONDS)
        for node, failure in pending.failures.items():
            self.lose(node, failure)
        for node, reply in pending.replies.items():
            try:
                self._seated(self.of_node(node), reply.content.config_records[ANSWER])
            except UserError as error:
                self.lose(node, Failure(str(error), mistake=True))
        if not self.present():
            raise ExchangeError("no node could take its clients: " + self.reasons())

    def _greet(self) -> dict[int, ConfigRecord]:
        """Ask every node what it is; node -> its answer, in the order of their partitions."""
        log.info("waiting for the nodes")
        began, pause = time.monotonic(), 0.1
        pending, asked = Pending(self._grid), set[int]()
        while True:
            new = [node for node in self._grid.get_node_ids() if node not in asked]
            pending.push([self._hello(node) for node in new])
            asked |= set(new)
            pending.poll()
            for node, failure in list(pending.failures.items()):
                if failure.mistake and not self._config.tolerant:
                    raise UserError(failure.reason)
                log.warning("node %d: %s", node, failure.reason)
                del pending.failures[node]
                asked.discard(node)  # a node may be listed and yet be gone; it is asked again when it is back
            answers = {node: reply.content.config_records[ANSWER] for node, reply in pending.replies.items()}
            # A node that knows of its siblings tells how many to wait for.
            wanted = self._places(answers)
            waited = time.monotonic() - began
            enough = len(answers) >= wanted and (wanted > 1 or not pending.open)
            patient = not self._config.tolerant or pending.open or waited < self._config.start_timeout
            if enough or (answers and not patient):
                break
            if waited > SETUP_SECONDS:
                raise ExchangeError(f"{len(answers)} of {wanted} node(s) were there after {SETUP_SECONDS:g} s")
            time.sleep(pause)
            pause = min(0.25, 1.2 * pause)
        return dict(sorted(answers.items(), key=lambda item: (integer(item[1], "partition-id"), item[0])))

    def _places(self, answers: Mapping[int, ConfigRecord]) -> int:
        """How many nodes to wait for: what they know of their siblings; on devices, when resumed, as many as before.

        Devices keep their clients' states, so a client must not move when a federation has grown.
        """
        told = max([1, *(integer(answer, "num-partitions") for answer in answers.values())])
        simulated = all(integer(answer, "capacity") for answer in answers.values())
        return (self._directory.places() or told) if self._restored and not simulated else told

    def _seat(self, answers: Mapping[int, ConfigRecord], restored: Checkpoint | None) -> None:
        """Spread the clients over the places, the nodes' own partitions where they have some."""
        partitions = [integer(answer, "partition-id") for answer in answers.values()]
        wanted = self._places(answers)
        told = max(integer(answer, "num-partitions") for answer in answers.values())
        numbered = len(set(partitions)) == len(answers) and set(partitions) <= set(range(told))
        if not self._restored:
            self._directory.keep_places(wanted if numbered else 0)
        parts = spread(len(assembly.clients(self._config)), wanted if numbered else len(answers))
        base = restored.server_round if restored else 0
        places = partitions if numbered else range(len(answers))
        seated = dict(zip(places, answers.items(), strict=True))
        for place, clients in enumerate(parts):
            if not clients:
                continue
            member = Member(clients, partition=place if numbered else -1, base=base, away=NOT_YET)
            if place in seated:
                self._take_place(member, *seated[place])
            self.members.append(member)
        self._versions = dict.fromkeys((c for m in self.members for c in m.clients), base)
        self._versions |= restored.versions if restored else {}
        self.simulated = all(integer(answer, "capacity") > 0 for answer in answers.values())
        # Simulated nodes share this machine's cores: more threads than cores collapse (20 times slower).
        self.threads = min(available_cpus(), max(integer(answer, "threads") for answer in answers.values()))
        self._choose_exchange(answers)
        _say_gpus(list(answers.values()))

    def _take_place(self, member: Member, node: int, answer: ConfigRecord) -> None:
        member.node, member.name, member.away = node, printable(str(answer["name"])), ""
        if self._streams is None:
            return  # the exchange is the grid, or the method has none
        member.streams = not answer["blocked"]
        memory = self._streams.memory
        member.memory = memory is not None and memory.accepts(answer.get("memory"))
        if not member.streams and self._config.exchange == "stream":
            reason = f"{member} cannot open a stream ({answer['blocked']!s})"
            self._insist(reason, "open the stream's port to the nodes")

    def _choose_exchange(self, answers: Mapping[int, ConfigRecord]) -> None:
        """Say once in the log why nodes do not use streams.

        Raises
        ------
        UserError
            If the run-config insists on streams and a node cannot have one.
        """
        if self._streams is None:
            return
        here = self.present()
        capacity = min([MAX_STREAMS, *(integer(a, "capacity") for a in answers.values() if integer(a, "capacity") > 0)])
        blocked = [member for member in here if not member.streams]
        if len(here) > capacity:
            # A stream holds its node's worker for the whole round: the nodes waiting for one would never come.
            reason = f"{len(here)} nodes take part but only {capacity} can run at the same time"
            for member in here:
                member.streams = False
        elif blocked:
            node = blocked[0].node
            reason = f"{len(blocked)} of {len(here)} node(s) cannot open a stream (node {node}: "
            reason += f"{answers[node]['blocked']!s})"
        else:
            return
        if self._config.exchange == "stream":
            self._insist(reason, "use fewer nodes with more clients each")
        log.warning("exchange auto: %s, so the grid exchange is used there", reason)

    @staticmethod
    def _insist(reason: str, advice: str) -> None:
        raise UserError(f"run-config key exchange = 'stream': {reason}; {advice}, or use exchange auto or grid")

    # ---- leaving and coming back

    def wait_for_anybody(self) -> None:
        """Return once a node is there.

        Raises
        ------
        TooFewClients
            If none is within ``start-timeout``.
        """
        deadline = time.monotonic() + self._config.start_timeout
        while not self.present():
            self.take_back()
            if time.monotonic() > deadline:
                raise TooFewClients(f"all nodes have left: {self.reasons()}")
            time.sleep(0.2)

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
                self._hear(member)
            elif member.node in online and time.monotonic() - member.asked_at > 1.0:
                self._ask(member)
        if any(member.away for member in away):
            self._meet(online - {member.node for member in self.members})

    def _ask(self, member: Member) -> None:
        member.question, member.asked_at = Pending(self._grid), time.monotonic()
        member.question.push([self._assignment(member)])

    def _hear(self, member: Member) -> None:
        """Take a node back if it has answered; a question without an answer is asked again."""
        assert member.question is not None
        member.question.poll()
        if reply := member.question.replies.get(member.node):
            member.question, member.away = None, ""
            try:
                self._seated(member, reply.content.config_records[ANSWER])
            except UserError as error:
                member.away, member.asked_at = str(error), time.monotonic() + ASK_SECONDS
                log.warning("%s is not taken back: %s", member, error)
            else:
                log.info("%s is back with its client(s) as after round %d", member, member.base)
        elif failure := member.question.failures.get(member.node):
            member.question = None
            if failure.gone:
                return
            member.asked_at = time.monotonic() + ASK_SECONDS  # it would answer the same a second later
            if failure.reason != member.away:
                log.warning("%s cannot come back: %s", member, failure.reason)
                member.away = failure.reason
        elif time.monotonic() - member.asked_at > self._config.start_timeout:
            member.question = None

    def _meet(self, unknown: Iterable[int]) -> None:
        """Greet nodes that have no place, and give them one that is free: a device whose SuperNode has a new id."""
        for node in unknown:
            if node not in self._strangers:
                self._strangers[node] = Pending(self._grid)
                self._strangers[node].push([self._hello(node)])
                continue
            pending = self._strangers[node]
            pending.poll()
            if node in pending.failures:
                del self._strangers[node]
            if node not in pending.replies:
                continue
            answer = pending.replies[node].content.config_records[ANSWER]
            partition = integer(answer, "partition-id")
            for member in self.members:
                if member.away and member.partition == partition >= 0:
                    del self._strangers[node]
                    reason = member.away
                    try:
                        self._take_place(member, node, answer)
                    except UserError as error:
                        member.away, member.asked_at = str(error), time.monotonic() + ASK_SECONDS
                        log.warning("%s cannot take its place: %s", member, error)
                        break
                    member.away = reason  # until it has its clients
                    self._ask(member)
                    break

    # ---- messages

    def query(self, action: str, node: int, order: Mapping[str, Any]) -> Message:
        """A message of type ``query.ACTION``."""
        record = ConfigRecord({**order, "threads": self.threads})
        return Message(RecordDict({ORDER: record}), node, f"query.{action}")

    def _hello(self, node: int) -> Message:
        order: dict[str, str | bool | bytes] = {"address": "", "secret": "", "tls": False, "memory": b""}
        if self._streams is not None:
            order = {
                "address": self._streams.address,
                "secret": self._streams.reach_secret,
                "tls": self._streams.tls,
                "memory": self._streams.memory.shown if self._streams.memory else b"",
            }
        return self.query("hello", node, order)

    def _assignment(self, member: Member) -> Message:
        """The message that gives a node its clients, and when resuming their states in the checkpoint."""
        restored = self._restored if not member.seated else None
        order: dict[str, object] = {
            "clients": list(member.clients),
            "run-id": self._directory.run_id,
            "session": self._session,
            "versions": self.versions_of(member),
            "checkpoints": self.kept_rounds(),
        }
        # A simulated node finds them in the run's folder.
        by_message = restored is not None and self._config.evaluate == "server" and not self.simulated
        states = restored.client_states(member.clients) if restored and by_message else {}
        if restored and states:
            sent = restored.state_versions(member.clients)
            order["sent"] = [sent[client] if client in states else 0 for client in member.clients]
        message = self.query("assign", member.node, order)
        message.content[CONFIG] = ConfigRecord({**self._config.values()})
        if states:
            message.content[STATES] = pack_states(states)
        return message

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

    def _seated(self, member: Member, answer: ConfigRecord) -> None:
        """Take what a node says of its clients.

        Raises
        ------
        UserError
            If its data do not fit those of the others, or it does not answer what it was asked.
        """
        try:
            classes = answer["classes"]
            sizes, versions = integers(answer["sizes"]), integers(answer["versions"])
        except (KeyError, AssertionError):
            raise UserError(f"{member} did not say what data its clients have") from None
        if not len(sizes) == len(versions) == len(member.clients) or min(sizes) < 1:
            raise UserError(f"{member} named {len(sizes)} sizes {sizes} for its {len(member.clients)} client(s)")
        if self._classes is None:
            self._classes = classes
        if classes != self._classes:  # with images of their own (dataset "folder"), nodes may not have the same
            raise UserError(f"{member} has the classes {classes!r}, and the nodes before it {self._classes!r}")
        self.sizes |= dict(zip(member.clients, sizes, strict=True))
        for client, version in zip(member.clients, versions, strict=True):
            if not version and self._versions[client]:
                log.warning("%s has no state of client %d, which starts from its initial segment", member, client)
            elif version < self._versions[client]:
                log.warning("%s has the state of client %d as after round %d only", member, client, version)
        member.seated = True

    def reasons(self) -> str:
        """Why nodes are away, as part of a sentence."""
        return "; ".join(f"{member}: {member.away}" for member in self.members if member.away)


def _say_gpus(answers: Sequence[ConfigRecord]) -> None:
    """Say once in the log which GPUs Ray has set aside for the nodes, and whether torch can use them."""
    asked = Counter(gpu for answer in answers for gpu in _texts(answer.get("gpus")))
    if not asked:
        return
    log.info("GPUs set aside: %s", ", ".join(f"{gpu} for {count} node(s)" for gpu, count in sorted(asked.items())))
    if any(_texts(answer.get("gpus")) and answer.get("device") == "cpu" for answer in answers):
        log.warning("torch can use no GPU there: the nodes compute on the CPU")


def _texts(value: object) -> list[str]:
    return [printable(str(item)) for item in value] if isinstance(value, list) else []


def clients_of(members: Iterable[Member], clients: Sequence[int]) -> tuple[int, ...]:
    """Those of ``clients`` that the members host, ascending."""
    hosted = {client for member in members for client in member.clients}
    return tuple(client for client in clients if client in hosted)
