"""The score: how good a network is at its task, a number for each sample whose mean is what metrics and reports show.

Each target type has its own: of classes the accuracy, of several labels the share that is right, of values the mean
squared error. One's own is a callable ``score(outputs, targets)`` to numbers (n,), in the run-config by its import
path; its attributes ``higher_is_better`` (True unless it says otherwise) and ``fraction`` (False; shown in percent) say
what it means.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sglr_flower import imports
from sglr_flower.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from sglr_flower.data.samples import Tensors
    from sglr_flower.data.targets import Kind


@dataclass(frozen=True)
class Score:
    """What a score is called, and which way it is better.

    Attributes
    ----------
    name : str
        Of its columns, lower case letters, digits and underscores.
    higher_is_better : bool
        Which of two is the better one.
    fraction : bool
        In [0, 1], and shown in percent.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    fraction: bool = True

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("_", " ")

    @property
    def label(self) -> str:
        """Its name with its unit, for an axis."""
        return f"{self.words} (%)" if self.fraction else self.words

    @property
    def scale(self) -> float:
        """By what it is multiplied to be shown."""
        return 100.0 if self.fraction else 1.0

    def better(self, one: float, other: float) -> bool:
        """Whether the first is the better one of two."""
        return one > other if self.higher_is_better else one < other

    def text(self, mean: float, spread: float | None = None) -> str:
        """It as a person reads it, with its spread if there is one."""
        shown = [self._digits(value) for value in (mean, spread) if value is not None]
        return " ± ".join(shown) + " %" * self.fraction

    def _digits(self, value: float) -> str:
        return f"{100 * value:.2f}" if self.fraction else f"{value:.4g}"

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The names that files have, its own in place of ``score``: ``test_accuracy_mean`` of ``test_score_mean``."""
        return {name.replace("_score", f"_{self.name}"): value for name, value in values.items()}

    def unnamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Inverse of `named`."""
        own = re.compile(rf"((?:validation|test)_){self.name}(?=_mean$|_std$|$)")
        return {own.sub(r"\1score", name): value for name, value in values.items()}

    def to_json(self) -> dict[str, Any]:
        """As plain values; nothing of accuracy, which is what runs have that do not say it."""
        return {} if self == ACCURACY else {"score": asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Score:
        """Inverse of `to_json`, from a summary, a status or a history."""
        return cls(**values["score"]) if "score" in values else ACCURACY


ACCURACY = Score()


@dataclass(frozen=True)
class Scoring:
    """A score with what computes it.

    Attributes
    ----------
    score : Score
        Its name and meaning.
    of : Callable[[Any, Any], Tensor]
        Outputs and targets of n samples -> the score of each, (n,).
    loss : Callable[[Any, Any], Tensor]
        Their loss in an evaluation: for each sample (n,), or its mean (). Of classes it is the cross-entropy, whatever
        the run trains with; else the run's own.
    """

    score: Score
    of: Callable[[Any, Any], Tensor]
    loss: Callable[[Any, Any], Tensor]

    def values(self, outputs: Tensors, targets: Tensors, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Score and loss of each sample of some clients, (n,) each.

        Parameters
        ----------
        outputs, targets : Tensors
            Of n samples.
        sizes : Sequence[int]
            Of the clients' batches; a loss that is a mean is taken of each by itself.
        """
        import torch

        from sglr_flower.data import samples

        scores = self.of(outputs, targets)
        if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (sum(sizes),):
            found = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise UserError(f"the score {self.score.name} must give ({sum(sizes)},) for as many samples, not {found}")
        losses = self.loss(outputs, targets)
        if losses.ndim == 0:
            parts = zip(samples.split(outputs, sizes), samples.split(targets, sizes), sizes, strict=True)
            losses = torch.cat([self.loss(*own).expand(size) for *own, size in parts])
        return scores, losses


def of(kind: Kind, loss: Callable[[Any, Any], Tensor], own: str = "") -> Scoring:
    """The score of a target type, or one's own.

    Parameters
    ----------
    kind : Kind
        The source's target type.
    loss : Callable[[Any, Any], Tensor]
        The run's.
    own : str
        The run-config's ``score``: ``package.module:function``; empty: the target type's.

    Raises
    ------
    UserError
        If there is no such function, or the target type has no score of its own.
    """
    from sglr_flower.data.targets import Classes, MultiLabel, Values

    evaluated = cross_entropy if isinstance(kind, Classes) else loss
    if own and (function := imports.load(own, "score")) is not None:  # a task may leave it open
        return from_function(function, evaluated, f"run-config key score = {own!r}")
    if isinstance(kind, Classes):
        return Scoring(ACCURACY, right, evaluated)
    if isinstance(kind, MultiLabel):
        return Scoring(Score("label_accuracy"), labels_right, evaluated)
    if isinstance(kind, Values):
        return Scoring(Score("mse", higher_is_better=False, fraction=False), squared_error, evaluated)
    raise UserError(
        "run-config key score = '': with several targets a score of one's own says what is good, as "
        "package.module:function"
    )


def from_function(function: Any, loss: Callable[[Any, Any], Tensor], what: str = "score") -> Scoring:
    """A score of one's own.

    Parameters
    ----------
    function : Any
        ``(outputs, targets) -> (n,)``; see above for its attributes.
    loss : Callable[[Any, Any], Tensor]
        As of `Scoring`.
    what : str
        What it is, for the sentence.

    Raises
    ------
    UserError
        If it cannot be called so, or its name cannot be a column's.
    """
    wrong = f"{what}: it must"
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:
        raise UserError(f"{wrong} be a function (outputs, targets) to a number for each sample ({error})") from None
    name = str(getattr(function, "__name__", type(function).__name__)).strip("_").lower()
    name = "score" if name == "<lambda>" else name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "loss":
        raise UserError(f"{wrong} have a name of letters, digits and underscores that is not loss, not {name!r}")
    score = Score(name, bool(getattr(function, "higher_is_better", True)), bool(getattr(function, "fraction", False)))
    return Scoring(score, function, loss)


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest logit is the class's, bool (n,), of logits (n, classes) and int64 (n,)."""
    return outputs.argmax(1) == targets


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """(n,) in nats, of logits (n, classes) and int64 (n,)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(outputs, targets, reduction="none")


def labels_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of labels that are predicted right, (n,), of logits (n, labels) and 0 or 1 (n, labels)."""
    return ((outputs > 0) == (targets > 0.5)).double().mean(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error, over several values its mean, (n,), of two tensors (n, ...) of one shape."""
    return (outputs - targets).square().reshape(len(targets), -1).mean(1)
