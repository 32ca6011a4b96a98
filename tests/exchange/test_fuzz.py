"""Malformed frames, answers and handshakes by the thousand: refused, every one, and nothing else happens.

By default a few thousand; ``SGLR_FUZZ_INPUTS=100000`` runs that many and prints what they were. A frame counts as
malformed unless it is, field by field, the frame that the node should send, with other finite values in its tensors.
Hypothesis draws the seeds and names the one that fails; `mutations` makes the inputs from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from fuzzing import LIMIT, Tally, fuzz, mutated, same_but_values, usable, usable_coded
from rounds import PLAN, answer_to, train_check, train_session, uploads

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange.checks import check_answer
from sglr_flower.exchange.frames import (
    FrameError,
    decode_download,
    decode_upload,
    encode_download,
    encode_upload,
    parse_download,
    parse_upload,
)
from sglr_flower.split import coding
from sglr_flower.split.codecs import parse
from sglr_flower.split.messages import Upload
from sglr_flower.split.plan import RoundPlan

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture(scope="module")
def steps() -> list[Upload]:
    return uploads(train_session())


@pytest.fixture(scope="module")
def frames(steps: list[Upload]) -> list[bytes]:
    return [encode_upload(upload).SerializeToString() for upload in steps]


# ---- frames, decoded and checked


@pytest.fixture(scope="module")
def checks(steps: list[Upload]) -> list[Callable[[Upload], None]]:
    """The server's check as it stands before each step."""
    check, found = train_check(), []
    for upload in steps:
        found.append(copy.copy(check))
        check(upload)
    return found


def test_no_malformed_frame_is_accepted(
    steps: list[Upload],
    frames: list[bytes],
    checks: list[Callable[[Upload], None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def batch(draw: Random, tally: Tally) -> None:
        wanted = tally.inputs + 50
        while tally.inputs < wanted:
            step = draw.randrange(len(frames))
            kind, content = mutated(draw, step, frames, pb.Upload)
            check = copy.copy(checks[step])
            try:
                with tally.timed():
                    upload = decode_upload(parse_upload(content))
                    check(upload)
            except FrameError as error:
                tally.refuse(kind, error)
            else:
                assert same_but_values(upload, steps[step]), f"accepted ({kind}): {content.hex()}"
                tally.valid[kind] += 1

    fuzz("frames", batch, 50, capsys)


def test_no_malformed_answer_is_accepted(steps: list[Upload], capsys: pytest.CaptureFixture[str]) -> None:
    right = [answer_to(upload, upload.clients[: k % 3]) for k, upload in enumerate(steps)]
    frames = [encode_download(download).SerializeToString() for download in right]

    def batch(draw: Random, tally: Tally) -> None:
        wanted = tally.inputs + 50
        while tally.inputs < wanted:
            step = draw.randrange(len(frames))
            kind, content = mutated(draw, step, frames, pb.Download)
            try:
                with tally.timed():
                    download = decode_download(parse_download(content))
                    check_answer(steps[step], download)
            except FrameError as error:
                tally.refuse(kind, error)
            else:
                assert usable(download, steps[step]), f"accepted ({kind}): {content.hex()}"
                tally.valid[kind] += 1

    fuzz("answers", batch, 50, capsys)


# ---- the same with codecs

CODED = replace(PLAN, up=parse("int8-channel"), down=parse("randtopk:0.4:0.2"))
SPARSE = replace(PLAN, up=parse("randtopk:0.4:0.2"), down=parse("int8"))


@pytest.mark.parametrize("plan", [CODED, SPARSE], ids=["int8-channel", "randtopk"])
def test_no_malformed_coded_frame_is_accepted(plan: RoundPlan, capsys: pytest.CaptureFixture[str]) -> None:
    steps = uploads(train_session(plan), plan)
    frames = [encode_upload(upload).SerializeToString() for upload in steps]
    check, checks = train_check(plan), []
    for upload in steps:
        checks.append(copy.copy(check))
        check(upload)

    def batch(draw: Random, tally: Tally) -> None:
        wanted = tally.inputs + 50
        while tally.inputs < wanted:
            step = draw.randrange(len(frames))
            kind, content = mutated(draw, step, frames, pb.Upload)
            check = copy.copy(checks[step])
            try:
                with tally.timed():
                    upload = decode_upload(parse_upload(content))
                    check(upload)
                    assert coding.smashed(plan.up, upload, torch.float32).isfinite().all()  # and it can be decoded
            except FrameError as error:
                tally.refuse(kind, error)
            else:
                assert same_but_values(upload, steps[step]), f"accepted ({kind}): {content.hex()}"
                tally.valid[kind] += 1

    fuzz("coded frames", batch, 50, capsys)


@pytest.mark.parametrize("plan", [CODED, SPARSE], ids=["randtopk", "int8"])
def test_no_malformed_coded_answer_is_accepted(plan: RoundPlan, capsys: pytest.CaptureFixture[str]) -> None:
    steps = uploads(train_session(plan), plan)
    right = [answer_to(upload, upload.clients[: k % 3], plan) for k, upload in enumerate(steps)]
    frames = [encode_download(download).SerializeToString() for download in right]

    def batch(draw: Random, tally: Tally) -> None:
        wanted = tally.inputs + 50
        while tally.inputs < wanted:
            step = draw.randrange(len(frames))
            kind, content = mutated(draw, step, frames, pb.Download)
            try:
                with tally.timed():
                    download = decode_download(parse_download(content))
                    check_answer(steps[step], download)
                    coding.gradients(plan.down, download, torch.float32)
            except FrameError as error:
                tally.refuse(kind, error)
            else:
                assert usable_coded(download, steps[step], right[step]), f"accepted ({kind}): {content.hex()}"
                tally.valid[kind] += 1

    fuzz("coded answers", batch, 50, capsys)
