"""A node's real frames of one round and what the server checks them with: for the tests of checks and the fuzzing."""

from __future__ import annotations

from dataclasses import replace

import plans
import torch
from torch import nn

from sglr_flower.data.samples import Batch
from sglr_flower.data.targets import Classes
from sglr_flower.exchange.checks import EvaluateCheck, TrainCheck
from sglr_flower.split import coding
from sglr_flower.split.codecs import OFF, Codec
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.optimizers import SGD
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import EvaluateSession, Session, TrainSession

SHAPE, CLASSES = (2, 2, 2), 5
TARGETS = Classes(tuple("01234"))
PLAN = replace(plans.PLAN, server_round=3, clients=(0, 2, 3, 5), local_epochs=2, batch_size=3)
SAMPLES = {2: 7, 3: 4, 5: 3, 9: 8}
"""This node's clients; 9 does not take part, and 3 and 5 have fewer batches than 2."""


def _images(count: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=draw, dtype=torch.uint8)
    return Batch(pixels, torch.randint(0, CLASSES, (count,), generator=draw))


def _segment(client: int) -> nn.Module:
    torch.manual_seed(client)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))


def cohort() -> Cohort:
    """The clients of the node."""
    return Cohort({client: _images(count, client) for client, count in SAMPLES.items()}, _segment, SGD)


def train_session(plan: RoundPlan = PLAN) -> TrainSession:
    """The node's side of the round."""
    return TrainSession(cohort(), plan)


def train_check(plan: RoundPlan = PLAN) -> TrainCheck:
    """The server's."""
    return TrainCheck(plan, SAMPLES, SHAPE, torch.float32, TARGETS)


BOTH = ("validation", "test")


def evaluate_session(images: int = 700, codec: Codec = OFF, splits: tuple[str, ...] = BOTH) -> EvaluateSession:
    """The node's side of an evaluation of two clients, who have images of some splits."""
    segments = {client: _segment(client) for client in (2, 5)}
    counts = {"validation": images, "test": images + 100}
    data = {split: _images(counts[split] * (split in splits), seed) for seed, split in enumerate(BOTH, 1)}
    return EvaluateSession(segments, torch.float32, 3, data, codec=codec)


def evaluate_check(samples: int = 0, codec: Codec = OFF, splits: tuple[str, ...] = BOTH) -> EvaluateCheck:
    """The server's."""
    return EvaluateCheck(3, (5, 2), SHAPE, torch.float32, TARGETS, samples, codec, splits)


def answer_to(upload: Upload, active: tuple[int, ...] = (), plan: RoundPlan = PLAN) -> Download:
    """What the server answers."""
    if upload.split != "train":
        return Download(upload.server_round, upload.step)
    own = sum(size for client, size in zip(upload.clients, upload.sizes, strict=True) if client not in active)
    average = torch.ones(PLAN.batch_size, *SHAPE) if active else None
    plain = Download(upload.server_round, upload.step, active, average, torch.ones(own, *SHAPE) if own else None)
    return coding.coded_downloads(plan, upload.step, {0: upload}, {0: plain})[0]


def uploads(session: Session, plan: RoundPlan = PLAN) -> list[Upload]:
    """All frames of a session."""
    found = [session.start()]
    while (following := session.advance(answer_to(found[-1], plan=plan))) is not None:
        found.append(following)
    return found


def changed(upload: Upload, **changes: object) -> Upload:
    """A frame with other fields."""
    return replace(upload, **changes)  # type: ignore[arg-type]
