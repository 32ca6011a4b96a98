"""One round, seen from both sides: sessions on the nodes, and the server's loop over a link to them.

A *session* is a node's side of a round (what it uploads next, given the answer to its last upload); a *link* is how
the server reaches the sessions of all nodes. Every exchange is a link; `LocalLink` is the one without a wire.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from sglr_flower.data.inputs import to_inputs
from sglr_flower.data.samples import Samples, each
from sglr_flower.data.targets import to_targets
from sglr_flower.models import all_laid_out
from sglr_flower.split import coding, finite
from sglr_flower.split.codecs import OFF, Codec
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.defences import Defence, defended
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.score import ACCURACY, Scoring, cross_entropy, right
from sglr_flower.split.sent import Sent, total
from sglr_flower.split.server import ServerSegment, by_client

EVALUATION_SAMPLES = 1000
"""Samples in one upload of an evaluation, over all clients of the node: 32 MB of ResNet16's smashed data."""


class Session(Protocol):
    """A node's side of a round."""

    def start(self) -> Upload:
        """The first upload."""

    def advance(self, download: Download) -> Upload | None:
        """Use the answer to the last upload; the next upload, or None at the end of the round."""


class Link(Protocol):
    """The server's connection to the nodes of a round."""

    @property
    def sent(self) -> Sent:
        """What went between the nodes and the server so far."""

    def receive(self) -> dict[int, Upload]:
        """The next upload of every node that still has one; empty when all are done."""

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Answer the uploads last received."""


class TrainSession:
    """A node's side of a training round: forward, and then backward and the next forward for each answer."""

    def __init__(self, cohort: Cohort, plan: RoundPlan) -> None:
        self._cohort, self._plan = cohort, plan
        cohort.begin(plan)
        self._step, self._last = 0, False

    def start(self) -> Upload:
        """Forward the first step."""
        return self._forward(0)

    def advance(self, download: Download) -> Upload | None:
        """Backward and step with the gradients received; forward the next step if there is one."""
        self._cohort.backward(download)
        return None if self._last else self._forward(self._step + 1)

    def restore(self, step: int) -> Upload:
        """Rebuild the graph of a step that was already uploaded, so that `advance` can take its answer."""
        return self._forward(step, again=True)

    def _forward(self, step: int, *, again: bool = False) -> Upload:
        upload = self._cohort.forward(self._plan, step, again=again)
        self._step, self._last = step, upload.last
        return upload


class EvaluateSession:
    """A node's side of an evaluation: smashed data of its validation, then of its test samples, in chunks.

    One of the two may have no samples.
    """

    def __init__(
        self,
        segments: Mapping[int, nn.Module],
        dtype: torch.dtype,
        server_round: int,
        samples: Mapping[str, Samples],
        memory_format: torch.memory_format = torch.contiguous_format,
        defence: Defence | None = None,
        codec: Codec = OFF,
    ) -> None:
        self._segments, self._dtype, self._round = segments, dtype, server_round
        self._memory_format, self._defence, self._codec = memory_format, defence, codec
        size = max(1, EVALUATION_SAMPLES // len(segments))
        self._chunks = [
            (split, indices)
            for split in ("validation", "test")
            if split in samples and len(samples[split])
            for indices in torch.arange(len(samples[split])).split(size)
        ]
        self._samples = samples
        self._step = -1

    def start(self) -> Upload:
        """Smashed data of the first chunk."""
        upload = self._next()
        assert upload is not None
        return upload

    def advance(self, download: Download) -> Upload | None:
        """Smashed data of the next chunk; the answer to an evaluation's upload carries nothing."""
        return self._next()

    def restore(self, step: int) -> None:
        """Go on after chunk ``step``."""
        self._step = step

    def _next(self) -> Upload | None:
        self._step += 1
        if self._step == len(self._chunks):
            return None
        split, indices = self._chunks[self._step]
        first, chunk = int(indices[0]), self._samples[split].take(indices)
        device = next(next(iter(self._segments.values())).parameters()).device
        stored = each(lambda own: own.to(device), chunk.inputs)
        inputs = all_laid_out(to_inputs(stored, self._dtype), self._memory_format)
        targets, count = to_targets(chunk.targets, self._dtype), len(self._segments)
        with torch.no_grad():
            smashed = [
                defended(segment.eval()(inputs), self._defence, "evaluation", split, client, self._round, first=first)
                for client, segment in self._segments.items()
            ]
        upload = Upload(
            server_round=self._round,
            step=self._step,
            split=split,
            clients=tuple(self._segments),
            sizes=(len(chunk),) * len(smashed),
            smashed=torch.cat(smashed),
            labels=each(lambda own: own.repeat(count, *[1] * (own.ndim - 1)), targets),
            last=self._step + 1 == len(self._chunks),
        )
        return coding.coded_chunk(self._codec, upload)


class LocalLink:
    """The link without a wire: sessions in this process; bytes are those of the tensors that would travel.

    Parameters
    ----------
    sessions : Mapping[int, Session]
        Node -> its side.
    sent : Sent
        What was sent before.
    """

    def __init__(self, sessions: Mapping[int, Session], sent: Sent | None = None) -> None:
        self._sessions = sessions
        self._pending = {node: session.start() for node, session in sessions.items()}
        self.sent = sent or Sent()

    def receive(self) -> dict[int, Upload]:
        """Uploads of all sessions that have one; raises `Diverged` where their numbers are not finite."""
        for upload in self._pending.values():
            finite.check_upload(upload)
        self.sent = total((self.sent, *(upload.payload for upload in self._pending.values())))
        return self._pending

    def send(self, downloads: Mapping[int, Download]) -> None:
        """Advance every session; raises `Diverged` where an answer's numbers are not finite."""
        self._pending = {}
        for node, download in downloads.items():
            finite.check_download(download)
            self.sent += download.payload
            upload = self._sessions[node].advance(download)
            if upload is not None:
                self._pending[node] = upload


@dataclass(frozen=True)
class RoundResult:
    """What a training round did.

    Attributes
    ----------
    steps : int
        Server steps.
    samples : int
        Samples seen by the server.
    loss : float
        Mean training loss per sample.
    step_seconds_median : float
        Median wall time of a step, from the server's answer to the step before to its own answer; of a round with one
        step, that step's time from the opening of the round.
    """

    steps: int
    samples: int
    loss: float
    step_seconds_median: float


def train_round(
    server: ServerSegment, plan: RoundPlan, link: Link, on_step: Callable[[int, float], None] | None = None
) -> RoundResult:
    """Algorithm 1's outer loop on the server: receive, step, answer, until no node has a further batch.

    Parameters
    ----------
    server : ServerSegment
        Trained in place.
    plan : RoundPlan
        The round's settings.
    link : Link
        To the nodes' `TrainSession`.
    on_step : Callable[[int, float], None]
        Told the number of steps done and the step's loss.
    """
    steps, samples, losses, stamps = 0, 0, 0.0, [time.perf_counter()]
    server.begin(plan)
    while uploads := link.receive():
        downloads, loss = server.step(plan, uploads)
        link.send(downloads)
        stamps.append(time.perf_counter())
        size = sum(sum(upload.sizes) for upload in uploads.values())
        steps, samples, losses = steps + 1, samples + size, losses + loss * size
        if on_step is not None:
            on_step(steps, loss)
    if not steps:
        return RoundResult(0, 0, 0.0, 0.0)  # the only client of a turn left before its first step
    server.end()
    seconds = [after - before for before, after in itertools.pairwise(stamps)]
    # The first one holds the opening of the round: start-up of the nodes, not a step.
    return RoundResult(steps, samples, losses / samples, statistics.median(seconds[1:] or seconds))


def train_locally(cohort: Cohort, plan: RoundPlan) -> RoundResult:
    """A round of local training on one node: no server segment, no exchange (FedAvg's ClientUpdate).

    Raises
    ------
    Diverged
        If its loss is not finite.
    """
    cohort.begin(plan)
    samples, losses, stamps = 0, 0.0, [time.perf_counter()]
    for step in itertools.count():
        loss, count = cohort.local_step(plan, step)
        if not count:
            break
        samples, losses = samples + count, losses + loss
        stamps.append(time.perf_counter())
    finite.check_losses(plan.server_round, [losses])
    seconds = [after - before for before, after in itertools.pairwise(stamps)]
    return RoundResult(len(seconds), samples, losses / samples, statistics.median(seconds))


def merge(results: Sequence[RoundResult], *, together: bool) -> RoundResult:
    """Several parts of a round as one.

    Parameters
    ----------
    results : Sequence[RoundResult]
        Not empty.
    together : bool
        Nodes that trained side by side; else turns one after the other.
    """
    results = [result for result in results if result.steps] or results[:1]
    samples = sum(result.samples for result in results)
    steps = [result.steps for result in results]
    times = [result.step_seconds_median for result in results]
    return RoundResult(
        steps=max(steps) if together else sum(steps),
        samples=samples,
        loss=sum(result.loss * result.samples for result in results) / samples,
        step_seconds_median=max(times) if together else statistics.median(times),
    )


@dataclass
class Tally:
    """Scores, losses and the number of samples, added up over chunks; of right predictions the sum is their number."""

    score: float = 0.0
    loss: float = 0.0
    samples: int = 0

    def add(self, score: float, loss: float, samples: int) -> None:
        """Count one more chunk."""
        self.score, self.loss, self.samples = self.score + score, self.loss + loss, self.samples + samples

    @property
    def mean_score(self) -> float:
        """Per sample: of classes the accuracy, in [0, 1]; of no samples nan."""
        return self.score / self.samples if self.samples else math.nan

    @property
    def mean_loss(self) -> float:
        """Per sample: of classes the cross-entropy, nats; of no samples nan."""
        return self.loss / self.samples if self.samples else math.nan


@dataclass(frozen=True)
class Score:
    """One client's score: (its client segment + the server segment) on validation and test samples."""

    validation: Tally = field(default_factory=Tally)
    test: Tally = field(default_factory=Tally)

    def of(self, split: str) -> Tally:
        """The tally of ``validation`` or ``test``."""
        return self.validation if split == "validation" else self.test


CLASSIFICATION = Scoring(ACCURACY, right, cross_entropy)
"""How networks are scored where nothing else is said."""


def evaluate_round(
    server: ServerSegment, link: Link, codec: Codec, scoring: Scoring = CLASSIFICATION
) -> dict[int, Score]:
    """Score every client on the smashed samples that its node sends (`EvaluateSession`) by a codec; no weights move."""
    codec = codec.scoring()
    scores: dict[int, Score] = {}
    while uploads := link.receive():
        for node, upload in uploads.items():
            smashed = coding.smashed(codec, upload, server.dtype)
            # All clients in one forward.
            score, loss = server.score(smashed, upload.labels, upload.sizes, scoring)
            values, losses = by_client({node: (upload, score)}), by_client({node: (upload, loss)})
            for client in upload.clients:
                tally = scores.setdefault(client, Score()).of(upload.split)
                tally.add(float(values[client].double().sum()), float(losses[client].sum()), len(values[client]))
        link.send({node: Download(upload.server_round, upload.step) for node, upload in uploads.items()})
    return dict(sorted(scores.items()))
