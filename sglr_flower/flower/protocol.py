"""What the server and its nodes say to each other: every order, answer and metric as one typed value each.

A value goes into a Flower record by `Value.to_record` and comes out of one by `Value.from_record`, which checks every
field: type, range, length. Whatever is wrong ends as one `ProtocolError`, so neither side has to trust the other, or to
be of the same version. Tensors lie beside these records (`sglr_flower.flower.replies` checks them), frames of the grid
exchange too (`sglr_flower.exchange.checks`).

==================  ==============================  =====================================================
message type        order                           answer
==================  ==============================  =====================================================
``query.hello``     `HelloOrder`                    `HelloAnswer`
``query.assign``    `AssignOrder`, states           `AssignAnswer`
``query.collect``   `CollectOrder`                  `Done`, states
``train.*``         `TrainOrder`, shared segment    `Done`, `TrainMetrics` or `LocalMetrics`, average
``evaluate.*``      `EvaluateOrder`, shared segment  `Done`, `EvaluateMetrics`
==================  ==============================  =====================================================

``*.stream`` has an `Access` besides, and any answer may be a `Refusal`.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Self

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from sglr_flower.run.nodetable import printable
from sglr_flower.split.rounds import RoundResult

ORDER = "order"
ANSWER = "answer"
METRICS = "metrics"
STREAM = "stream"
CONFIG = "config"
"""The name of the record that holds the whole run-config."""
ARRAYS = "arrays"
"""The name of the record that holds a segment: the shared one, or an average."""

MAX_CLIENTS = 100_000
"""As many as a run can have (run-config key ``num-clients``)."""
MAX_TEXT = 1000
"""Characters of a text."""


class ProtocolError(ValueError):
    """What the other side sent is not what it had to send; a sentence with the key, its value and what is allowed."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("it should be finite: the training may be diverging (a smaller client-lr)")
    return value


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Round = Annotated[int, Field(ge=1, lt=2**31)]
Session = Annotated[int, Field(ge=0, lt=2**63)]
Samples = Annotated[int, Field(ge=1, lt=2**40)]
Client = Annotated[int, Field(ge=0, lt=MAX_CLIENTS)]
Place = Annotated[int, Field(ge=-1, lt=MAX_CLIENTS)]
Loss = Annotated[float, AfterValidator(_finite)]
# A record has lists, a value has tuples: only the outer type is converted.
_MANY = Field(strict=False, max_length=MAX_CLIENTS, fail_fast=True)
Texts = Annotated[tuple[Text, ...], _MANY]
Counts = Annotated[tuple[Count, ...], _MANY]
ClassCounts = Annotated[tuple[Count, ...], Field(strict=False, max_length=100 * MAX_CLIENTS, fail_fast=True)]
SampleCounts = Annotated[tuple[Samples, ...], _MANY]
Clients = Annotated[tuple[Client, ...], _MANY]

_VERSIONS = " (are server and node of the same version of sglr-flower?)"
STRICT = ConfigDict(strict=True)


@dataclass(frozen=True, config=STRICT)
class Value:
    """A record as a value. Keys are the fields' names with hyphens; a field that is None has none.

    Attributes
    ----------
    NAME : str
        The name of its record in a message.
    WHAT : str
        What a sentence calls it.
    HINT : str
        How such a sentence ends.
    """

    NAME: ClassVar[str] = ANSWER
    WHAT: ClassVar[str] = "the answer"
    HINT: ClassVar[str] = ""

    def to_record(self) -> ConfigRecord:
        """As the record that travels."""
        return ConfigRecord(self._entries())

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Out of a record that has come.

        Raises
        ------
        ProtocolError
            If a key is missing, unknown, or its value is not allowed.
        """
        names = {field.name.replace("_", "-"): field.name for field in fields(cls)}
        if unknown := [key for key in record if key not in names]:
            raise cls.wrong(f"unknown key {_short(unknown[0])}; its keys are {', '.join(names) or 'none'}")
        try:
            return cls(**{names[key]: value for key, value in record.items()})
        except ValidationError as error:
            raise cls.wrong(_complaint(error)) from None

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Out of a message's content.

        Raises
        ------
        ProtocolError
            As `from_record`; also if the message has no such record.
        """
        records = content.metric_records if issubclass(cls, Metrics) else content.config_records
        if cls.NAME not in records:
            raise cls.wrong(f"it has no record {cls.NAME!r}")
        return cls.from_record(records[cls.NAME])

    @classmethod
    def wrong(cls, what: str) -> ProtocolError:
        """The error that says what is wrong with such a record."""
        return ProtocolError(f"{cls.WHAT}: {what}{cls.HINT}")

    def _entries(self) -> dict[str, Any]:
        values = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {key: value for key, value in listed.items() if value is not None}


# ---- orders


@dataclass(frozen=True, config=STRICT)
class Order(Value):
    """What every order has.

    Attributes
    ----------
    threads : int
        Threads that the node computes with; 0: its own default.
    """

    NAME: ClassVar[str] = ORDER
    HINT: ClassVar[str] = _VERSIONS

    threads: Annotated[int, Field(ge=0, le=10_000)]


@dataclass(frozen=True, config=STRICT)
class HelloOrder(Order):
    """Say what you are.

    Attributes
    ----------
    address : str
        The stream's port; empty: there is none.
    secret : str
        For testing whether it can be reached.
    tls : bool
        Whether it speaks TLS.
    memory : bytes
        `sglr_flower.exchange.shared.Proof.shown`; empty: the server shares no memory.
    """

    WHAT: ClassVar[str] = "the server's order query.hello"

    address: Text
    secret: Text
    tls: bool
    memory: Annotated[bytes, Field(max_length=10_000)]


@dataclass(frozen=True, config=STRICT)
class AssignOrder(Order):
    """Take these clients; the run-config is in the record `CONFIG` beside it, and states may be.

    Attributes
    ----------
    clients : tuple[int, ...]
        Whom the node hosts.
    run_id : str
        The run's id, 32 hexadecimal digits.
    session : int
        Newer sessions of the run have larger numbers.
    versions : tuple[int, ...]
        For each client the round whose state counts, 0 if none.
    checkpoints : tuple[int, ...]
        The rounds whose states the node has to keep.
    sent : tuple[int, ...] | None
        For each client the round that the state beside it is of, 0 if there is none; None: there are no states.
    """

    WHAT: ClassVar[str] = "the server's order query.assign"

    clients: Clients
    run_id: Text
    session: Session
    versions: Counts
    checkpoints: Counts
    sent: Counts | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not 0 < len(set(self.clients)) == len(self.clients):
            raise ValueError(f"clients = {_short(self.clients)}: it should have one client or more, each once")
        _same_length(self.clients, versions=self.versions, sent=self.sent)
        return self


@dataclass(frozen=True, config=STRICT)
class CollectOrder(Order):
    """Hand over the states of your clients, or for scoring only their segments.

    Attributes
    ----------
    checkpoint : bool
        Whether the optimizers' states are wanted too.
    versions : tuple[int, ...]
        As in `AssignOrder`.
    """

    WHAT: ClassVar[str] = "the server's order query.collect"

    checkpoint: bool
    versions: Counts


@dataclass(frozen=True, config=STRICT)
class EvaluateOrder(Order):
    """Begin, or go on with, the evaluation of a round.

    Attributes
    ----------
    round : int
        From 1.
    versions : tuple[int, ...]
        As in `AssignOrder`.
    """

    WHAT: ClassVar[str] = "the server's order evaluate"

    round: Round
    versions: Counts


@dataclass(frozen=True, config=STRICT)
class TrainOrder(Order):
    """Begin, or go on with, a training round.

    Attributes
    ----------
    round, attempt : int
        The round, and which training of it, from 1.
    clients : tuple[int, ...]
        Those of the node's clients that train.
    versions, checkpoints : tuple[int, ...]
        As in `AssignOrder`.
    """

    WHAT: ClassVar[str] = "the server's order train"

    round: Round
    attempt: Round
    clients: Clients
    versions: Counts
    checkpoints: Counts


@dataclass(frozen=True, config=STRICT)
class Access(Value):
    """How a node opens its stream of a round.

    Attributes
    ----------
    address : str
        The server's port.
    tls : bool
        Whether it speaks TLS.
    secret : str
        Good for one stream.
    memory : bool
        Whether the tensors lie in shared memory.
    """

    NAME: ClassVar[str] = STREAM
    HINT: ClassVar[str] = _VERSIONS
    WHAT: ClassVar[str] = "the server's access to its stream"

    address: Text
    tls: bool
    secret: Text
    memory: bool


# ---- answers


@dataclass(frozen=True, config=STRICT)
class Refusal(Value):
    """The answer to any order: why the node does not do it, in one sentence.

    Attributes
    ----------
    error : str
        The sentence.
    name : str | None
        As of `HelloAnswer`, as it may refuse to give that.
    """

    WHAT: ClassVar[str] = "its refusal"

    error: Text
    name: Text | None = None


@dataclass(frozen=True, config=STRICT)
class Done(Value):
    """The answer that says nothing more; what belongs to it lies in other records."""


@dataclass(frozen=True, config=STRICT)
class HelloAnswer(Value):
    """What a node is.

    Attributes
    ----------
    name : str
        Its name in its node-config, may be empty.
    partition_id, num_partitions : int
        Which of how many nodes it is; -1: its node-config does not say.
    capacity : int
        How many nodes like it can run at the same time; 0: it is a device.
    threads : int
        Threads that it may compute with.
    gpus : tuple[str, ...]
        Those that Ray has set aside for it.
    device : str
        Torch's kind of the device that it computes on.
    blocked : str
        Why it cannot open a stream; empty if it can.
    memory : str
        What it has read in the server's memory; empty: nothing.
    """

    WHAT: ClassVar[str] = "its answer to query.hello"

    name: Text
    partition_id: Place
    num_partitions: Place
    capacity: Count
    threads: Annotated[int, Field(ge=0, le=10_000)]
    gpus: Texts
    device: Text
    blocked: Text
    memory: Text


@dataclass(frozen=True, config=STRICT)
class AssignAnswer(Value):
    """What a node has of the clients that it was given, in their order.

    Attributes
    ----------
    versions : tuple[int, ...]
        The round after which it has each client's state, 0: none.
    sizes : tuple[int, ...]
        Train images of each client.
    classes : tuple[str, ...]
        The names of the classes, by class number.
    held : tuple[int, ...] | None
        Validation and test images that its clients are scored on there, which may be 0; None: some of both.
    counts : tuple[int, ...] | None
        Where its data are its own, each client's train images of each class, one client after the other.
    """

    WHAT: ClassVar[str] = "its answer to query.assign"

    versions: Counts
    sizes: SampleCounts
    classes: Texts
    held: Counts | None = None
    counts: ClassCounts | None = None

    def by_client(self) -> list[tuple[int, ...]]:
        """``counts``, those of each client by themselves."""
        counts = self.counts or ()
        of_one = max(1, len(counts) // max(1, len(self.sizes)))
        return [counts[first : first + of_one] for first in range(0, len(counts), of_one)]


# ---- metrics


@dataclass(frozen=True, config=STRICT)
class Metrics(Value):
    """Numbers of a node; what Flower calls metrics.

    Attributes
    ----------
    num_clients : int
        Its clients that took part.
    """

    NAME: ClassVar[str] = METRICS

    num_clients: Count

    def to_record(self) -> MetricRecord:  # type: ignore[override]  # Flower has two kinds of records
        """As the record that travels."""
        return MetricRecord(self._entries())


@dataclass(frozen=True, config=STRICT)
class EvaluateMetrics(Metrics):
    """Of an evaluation; the scores are counted on the server."""

    WHAT: ClassVar[str] = "its metrics of the evaluation"


@dataclass(frozen=True, config=STRICT)
class TrainMetrics(Metrics):
    """Of a training round.

    Attributes
    ----------
    num_examples : int
        What Flower's FedAvg weighs the node's average by: its images, so that a mean of means is the clients' mean; 0
        where the node sends none.
    """

    WHAT: ClassVar[str] = "its metrics of the round"

    num_examples: Annotated[int, Field(ge=0, lt=2**40)]


@dataclass(frozen=True, config=STRICT)
class LocalMetrics(TrainMetrics):
    """Of a round that a node trained by itself: `sglr_flower.split.rounds.RoundResult` too."""

    local_steps: Round
    local_samples: Samples
    local_loss: Loss
    local_step_seconds_median: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @classmethod
    def of(cls, clients: int, samples: int, result: RoundResult) -> LocalMetrics:
        """What `sglr_flower.split.rounds.train_locally` returned, as metrics."""
        own = {f"local_{field.name}": getattr(result, field.name) for field in fields(result)}
        return cls(num_clients=clients, num_examples=samples, **own)

    @property
    def result(self) -> RoundResult:
        """What the node did."""
        return RoundResult(self.local_steps, self.local_samples, self.local_loss, self.local_step_seconds_median)


def _same_length(clients: tuple[int, ...], **others: tuple[int, ...] | None) -> None:
    for key, values in others.items():
        if values is not None and len(values) != len(clients):
            raise ValueError(f"{key} = {_short(values)}: it should have {len(clients)} item(s), one for each client")


def _complaint(error: ValidationError) -> str:
    """Pydantic's first complaint in the form of this project's sentences."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    key = str(first["loc"][0]).replace("_", "-") + "".join(f"[{at}]" for at in first["loc"][1:])
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "value_error":
        return f"{key} = {_short(first['input'])}: {first['ctx']['error']}"
    allowed = re.sub(r"^\w+ should", "it should", str(first["msg"])).replace("valid tuple", "list")
    return f"{key} = {_short(first['input'])}: {allowed}"


def _short(value: object) -> str:
    """A value of the other side's, as a part of a sentence that somebody reads."""
    return printable(reprlib.repr(value))
