"""What a run came to: ``summary.json`` as one value, which whoever knows a part of it gives that part.

A run of an earlier version did not count all of it: what is None here is not in its file. A figure that is not finite
is nan here and null in the file, as JSON knows no other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from sglr_flower.errors import UserError
from sglr_flower.split.score import ACCURACY, Score

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Figure = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What its rounds come to; in files a name has the score's own in place of ``score``.

    Attributes
    ----------
    rounds, steps : int
        How many it has made.
    seconds : float
        Wall time of all rounds.
    step_seconds_median : float
        Median over the rounds of their median step.
    test_score_mean, test_score_std : float
        Over the clients, each at its best validation round.
    last_round_test_score_mean, last_round_test_score_std : float
        The same in the last round with an evaluation.
    evaluated_images : int | None
        Test samples that each client was scored on.
    train_loss : float
        Of the last round.
    bytes_up, bytes_down, bytes_smashed, ... : int
        As of `sglr_flower.run.metrics.RoundMetrics`, over all rounds.
    score : Score
        What the scores are.
    """

    rounds: Count
    steps: Count
    seconds: Amount
    step_seconds_median: Amount
    test_score_mean: Figure
    test_score_std: Figure
    last_round_test_score_mean: Figure
    last_round_test_score_std: Figure
    evaluated_images: Count | None = None
    train_loss: Figure
    bytes_up: Count
    bytes_down: Count
    bytes_smashed: Count | None = None
    bytes_labels: Count | None = None
    bytes_unicast: Count | None = None
    bytes_broadcast: Count | None = None
    bytes_segments_up: Count | None = None
    bytes_segments_down: Count | None = None
    bytes_framing_up: Count | None = None
    bytes_framing_down: Count | None = None
    evaluation_bytes: Count
    score: Score = ACCURACY

    @property
    def scored(self) -> bool:
        """Whether anybody had test samples; else the scores are nan."""
        return self.evaluated_images != 0

    def named(self) -> dict[str, Any]:
        """By the names that the file has."""
        counted = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "score"}
        known = {name: value for name, value in counted.items() if value is not None}
        return self.score.named(known) | self.score.to_json()


@dataclass(frozen=True)
class Departures:
    """How often nodes left, and how many of them."""

    departures: Count
    departed_nodes: Count


@dataclass(frozen=True)
class ClientCost:
    """Of a client; the same for all, as their segments are of one architecture.

    Attributes
    ----------
    forward_flops, backward_flops : int
        Floating-point operations on one sample (see `compute.training_flops` for what is counted).
    weight_bytes, gradient_bytes, optimizer_bytes, activation_bytes : int
        Memory in a step (see `footprint.Footprint`).
    """

    forward_flops: Count
    backward_flops: Count
    weight_bytes: Count
    gradient_bytes: Count
    optimizer_bytes: Count
    activation_bytes: Count

    @property
    def flops(self) -> int:
        """Of a forward and a backward."""
        return self.forward_flops + self.backward_flops

    @property
    def memory(self) -> int:
        """All that it held, in bytes."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


@dataclass(frozen=True)
class Client:
    """What one client bore.

    Attributes
    ----------
    cost : ClientCost | None
        Operations and memory; None of a network that could not be counted.
    samples : float
        That it trained on, each as often as it was used: the mean over all clients.
    step_seconds : float | None
        Wall time of its step; None where no node was timed.
    """

    cost: ClientCost | None
    samples: Amount
    step_seconds: Amount | None = None

    def named(self) -> dict[str, Any]:
        """By the names that the file has."""
        cost = {} if self.cost is None else asdict(self.cost)
        return {**cost, "samples": self.samples, "step_seconds": self.step_seconds}


@dataclass(frozen=True)
class Spent:
    """What a run with differential privacy has spent.

    Attributes
    ----------
    epsilon : float | None
        None where its noise can be drawn again.
    delta : float
        To it.
    ended_by_privacy_budget : bool
        Whether the budget allowed no further round.
    """

    epsilon: float | None
    delta: float
    ended_by_privacy_budget: bool


@dataclass(frozen=True, kw_only=True)
class Summary(Mapping[str, Any]):
    """What ``summary.json`` holds. It is a mapping too, by the file's names: ``summary["test_accuracy_mean"]``.

    Attributes
    ----------
    method, model, dataset : str
        Of the run-config.
    clients : int
        How many the run has.
    one_network : bool
        Whether all clients end with one network, so that a spread over them says nothing.
    nodes : int
        How many hosted them.
    exchange : str
        How tensors travelled.
    totals : Totals
        What was measured.
    left : Departures | None
        Nodes that left.
    client : Client | None
        What one client bore.
    seed : int
        Of the run-config.
    spent : Spent | None
        Of differential privacy; None without it.
    warnings : tuple[str, ...]
        What a reader of the result has to know, a sentence each; in the file where there is one.
    """

    method: str
    model: str
    dataset: str
    clients: Annotated[int, Field(ge=1)]
    one_network: bool = False
    nodes: Annotated[int, Field(ge=1)]
    exchange: str
    totals: Totals
    left: Departures | None = None
    client: Client | None = None
    seed: int
    spent: Spent | None = None
    warnings: tuple[str, ...] = ()

    def per_client(self, way: str) -> float:
        """Bytes that training sent ``up`` or ``down`` for a client: Table 6 divides totals by the number of clients."""
        return float(getattr(self.totals, f"bytes_{way}") / self.clients)

    @functools.cached_property
    def _named(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("method", "model", "dataset", "clients", "one_network")},
            **{name: getattr(self, name) for name in ("nodes", "exchange")},
            **self.totals.named(),
            **{f"bytes_{way}_per_client": self.per_client(way) for way in ("up", "down")},
            **({} if self.left is None else asdict(self.left)),
            **({} if self.client is None else {"client": self.client.named()}),
            "seed": self.seed,
            **({} if self.spent is None else asdict(self.spent)),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON, by the file's names and in its order."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self.items()
        }

    @classmethod
    def from_json(cls, values: Any) -> Summary:
        """Inverse of `to_json`, of this version's or an earlier one's.

        Raises
        ------
        ValueError
            If something is missing that all versions wrote, or is not what it has to be; the words say what.
        """
        if not isinstance(values, dict):
            raise ValueError(f"content = {values!r}, but it should be an object")
        score = ACCURACY
        try:
            score = _SCORE.validate_python(values.get("score", ACCURACY))
            flat = score.unnamed(values)
            client = flat.get("client")
            if isinstance(client, dict):
                flat["client"] = {**client, "cost": client if "forward_flops" in client else None}
            parts = {"totals": flat, "left": flat if "departures" in flat else None}
            found = _adapter().validate_python({**flat, **parts, "spent": flat if "epsilon" in flat else None})
        except ValidationError as error:
            raise ValueError(complaint(error, score)) from None
        check_fraction(values, found.totals, score)
        return found


_SCORE = TypeAdapter(Score)


@functools.cache
def _adapter() -> TypeAdapter[Summary]:
    return TypeAdapter(Summary)


def read(path: Path) -> Summary:
    """A finished run's, from its ``summary.json``.

    Raises
    ------
    UserError
        If it cannot be read or is damaged.
    """
    try:
        values = from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    try:
        return Summary.from_json(values)
    except ValueError as error:
        raise UserError(f"{path} is damaged: it has {error}") from None


def complaint(error: ValidationError, score: Score) -> str:
    """Pydantic's first complaint as field, value and what it should be."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("totals", "left", "spent", "cost")]
    name = next(iter(score.named({".".join(place): None}))) or "content"
    if first["type"] == "missing":
        return f"no {name}"
    return f"{name} = {first['input']!r}, but {str(first['msg']).replace('Input', 'it')}"


def check_fraction(values: Mapping[str, Any], found: Any, score: Score) -> None:
    """Refuse a score that must be a fraction and is none.

    Parameters
    ----------
    values : Mapping[str, Any]
        As they were in the file.
    found : Any
        What was read of them, with ``test_score_mean`` and ``test_score_std``, None or nan where there is none.
    score : Score
        What they are.

    Raises
    ------
    ValueError
        With its name and value.
    """
    for name in ("mean", "std"):
        value = getattr(found, f"test_score_{name}")
        if score.fraction and value is not None and (value < 0 or value > 1):
            column = f"test_{score.name}_{name}"
            bound = "less than or equal to 1" if value > 1 else "greater than or equal to 0"
            raise ValueError(f"{column} = {values[column]!r}, but it should be {bound}")
