"""What is said of a run that goes wrong, while it does: a training that diverges, or has learnt nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from sglr_flower.data.samples import Samples, Tensors, all_targets, one
from sglr_flower.data.targets import Classes, Kind, MultiLabel, Several
from sglr_flower.run.metrics import RoundMetrics
from sglr_flower.split.loss import Loss
from sglr_flower.split.score import ACCURACY

FAR = 4.0
"""A round's mean loss is far above that of chance from so many times it; of untrained networks it is about once."""
LEARNT = 0.5
"""Below so much of the loss by chance a network has learnt what it is trained on."""
FEWEST_ROUNDS = 3
"""Before as many nothing is said of accuracy, however short the run."""
_SAMPLES = 256
_CURE = "a smaller client-lr"


@dataclass
class Watch:
    """Looks at each round of a run.

    Attributes
    ----------
    rounds : int
        Of the whole run.
    chance_loss : float | None
        The loss by chance (`loss_by_chance`); None: nobody knows it.
    classes : int
        Of the data; 0: they have none, or are scored by something else than accuracy.
    most : tuple of (str, float)
        The class that most of the samples have, and its share of them; of nobody: ("", 0).
    sentences : list[str]
        What has been said of the run, each once.
    diverged : str
        The sentence on its divergence; empty if it did not.
    """

    rounds: int
    chance_loss: float | None
    classes: int
    most: tuple[str, float] = ("", 0.0)
    sentences: list[str] = field(default_factory=list)
    diverged: str = ""
    _judged: bool = False

    def say(self, sentences: Iterable[str]) -> None:
        """Add what is known before the first round."""
        self.sentences += [sentence for sentence in sentences if sentence not in self.sentences]

    def look(self, row: RoundMetrics) -> list[str]:
        """What a round that is done gives to say, which is in `sentences` from then on."""
        new = [self._divergence(row)] if not self.diverged else []
        self.diverged = self.diverged or new[0]
        new.append(self._at_chance(row))
        found = [sentence for sentence in new if sentence]
        self.sentences += found
        return found

    def _divergence(self, row: RoundMetrics) -> str:
        losses = {"training": row.train_loss, "validation": row.validation_loss_mean, "test": row.test_loss_mean}
        for name, loss in losses.items():
            if loss is not None and not math.isfinite(loss):
                return f"round {row.round}: the {name} loss is not finite: the training has diverged ({_CURE})"
        if self.chance_loss is None or row.train_loss <= FAR * self.chance_loss:
            return ""
        return (
            f"round {row.round}: the training loss is {row.train_loss:.4g}, and without any learning it would be "
            f"{self.chance_loss:.4g}: the training diverges ({_CURE})"
        )

    def _at_chance(self, row: RoundMetrics) -> str:
        due = max(FEWEST_ROUNDS, math.ceil(self.rounds / 3))
        if self._judged or not self.classes or row.test_score_mean is None or row.round < due:
            return ""
        self._judged = True
        chance, how = 1 / self.classes, f"as by chance with {self.classes} classes"
        bar, (most, share) = self.chance_loss, self.most
        if 1 > share > chance + _spread(chance, row):  # one class is more frequent than chance makes it
            chance, how = share, f"no more than always answering {most!r} gives ({share:.0%} of them)"
            if bar is not None:  # whoever knows how frequent it is has a loss of this or more
                bar = min(bar, -sum(p * math.log(p) for p in (share, 1 - share)))
        if row.test_score_mean > chance + _spread(chance, row):
            return ""
        found = row.score.text(row.test_score_mean, None)
        why = "nothing has been learnt yet (look at client-lr, the labels, the end of the network)"
        if bar is not None and row.train_loss < LEARNT * bar:
            why = (
                f"what is learnt (the training loss is {row.train_loss:.4g}) does not hold for these samples yet (too "
                "few steps for batch norm's statistics, too few samples, or others than those trained on)"
            )
        told = f"the test accuracy is {found}, {how}"
        return f"round {row.round} of {self.rounds}: {told}: {why}"


def _spread(accuracy: float, row: RoundMetrics) -> float:
    """Of so many images it is as often above the accuracy as not by this, one standard deviation."""
    return math.sqrt(accuracy * (1 - accuracy) / max(1, row.evaluated_images))


def begin(
    rounds: int, kind: Kind, loss: Loss, score: object, samples: Samples | None, past: Sequence[RoundMetrics]
) -> Watch:
    """A watch of a run.

    Parameters
    ----------
    rounds : int
        Of the whole run.
    kind : Kind
        What its data want predicted.
    loss : Loss
        What it trains with.
    score : Score
        What it is scored by.
    samples : Samples | None
        That the server scores on: from their targets follow the loss by chance of values, and the most frequent class;
        None: it has none.
    past : Sequence[RoundMetrics]
        The rounds that are done, of a run that is resumed.
    """
    classes = kind.outputs if isinstance(kind, Classes) and score == ACCURACY else 0
    watch = Watch(rounds, loss_by_chance(kind, loss, samples), classes)
    if classes and isinstance(kind, Classes) and samples is not None and len(samples):
        counts = torch.bincount(one(all_targets(samples)), minlength=classes)
        watch.most = kind.names[int(counts.argmax())], int(counts.max()) / len(samples)
    for row in past:
        watch.look(row)
    return watch


@torch.no_grad()
def loss_by_chance(kind: Kind, loss: Loss, samples: Samples | None) -> float | None:
    """The loss of outputs that are all zero: of classes ln(their number), of labels ln(2), of values their mean square.

    None where it cannot be known, or is not above zero.
    """
    if isinstance(kind, Several):
        return None
    wide = torch.float64
    if isinstance(kind, Classes | MultiLabel):
        targets: Tensors = torch.zeros(1, *kind.shape, dtype=kind.dtype(wide))
    elif samples is None:
        return None
    else:
        targets = samples.take(torch.arange(min(_SAMPLES, len(samples)))).targets
    wanted = one(targets)
    try:
        outputs = torch.zeros(len(wanted), *kind.output_shape, dtype=wide)
        chance = float(loss(outputs, wanted.to(kind.dtype(wide))))
    except Exception:  # a loss of one's own that is not for outputs of zero says nothing of chance
        return None
    return chance if math.isfinite(chance) and chance > 0 else None
