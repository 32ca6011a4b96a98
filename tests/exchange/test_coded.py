"""Coded frames: the right ones pass, also in shared memory, and each thing that can be wrong with one is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from rounds import (
    PLAN,
    SHAPE,
    TARGETS,
    answer_to,
    changed,
    evaluate_check,
    evaluate_session,
    train_check,
    train_session,
    uploads,
)

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import frames
from sglr_flower.exchange.checks import check_answer, frame_bytes
from sglr_flower.exchange.frames import FrameError
from sglr_flower.exchange.shared import Inbox, Outbox
from sglr_flower.split import codecs, coding
from sglr_flower.split.codecs import Codec
from sglr_flower.split.messages import Upload

OWN = "own_parts:Many"
"""With as many tensors, and as long names of them, as a codec may have."""
CODECS = ("bfloat16", "float16", "int8", "int8-channel", "topk:0.4", "randtopk:0.4:0.2", "own_parts:Halves", OWN)


def get(name: str) -> Codec:
    return codecs.get(name, "wire-up")


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("name", CODECS)
def test_a_coded_round_passes_as_it_was_sent(name: str, in_memory: bool) -> None:
    plan = replace(PLAN, up=get(name), down=get(name))
    inbox, outbox = (Inbox(), Outbox()) if in_memory else (None, None)
    check = train_check(plan)
    for upload in uploads(train_session(plan), plan):
        frame = frames.encode_upload(upload, outbox)
        got = frames.decode_upload(pb.Upload.FromString(frame.SerializeToString()), inbox)
        check(got)
        assert torch.equal(coding.smashed(plan.up, got, torch.float32), coding.smashed(plan.up, upload, torch.float32))
        assert got.payload == upload.payload
        size = frames.encode_upload(upload).ByteSize()
        assert frames.nbytes(frame) == size
        assert upload.payload.up < size <= frame_bytes(sum(upload.sizes), SHAPE, torch.float32, TARGETS, plan.up)

        answer = answer_to(upload, upload.clients[:1], plan)
        download = frames.decode_download(frames.encode_download(answer, outbox), inbox)
        check_answer(upload, download)
        got_back, sent = (coding.gradients(plan.down, each, torch.float32) for each in (download, answer))
        assert got_back.average is not None
        assert sent.average is not None
        assert torch.equal(got_back.average, sent.average)
        assert frames.nbytes(frames.encode_download(answer, outbox)) == frames.encode_download(answer).ByteSize()


@pytest.mark.parametrize("name", CODECS)
def test_a_coded_evaluation_passes(name: str) -> None:
    check = evaluate_check(codec=get(name))
    for upload in uploads(evaluate_session(600, get(name))):
        check(frames.decode_upload(frames.encode_upload(upload)))


def aside(upload: Upload, **tensors: torch.Tensor | None) -> Upload:
    """Another scale, positions or shape, or none."""
    changes = {f"smashed.{name}": tensor for name, tensor in tensors.items()}
    merged = {**upload.aside, **changes}
    return changed(upload, aside={name: tensor for name, tensor in merged.items() if tensor is not None})


def one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


WRONG: list[tuple[str, str, Callable[[Upload], Upload], str]] = [
    ("int8", "no scale", lambda u: aside(u, scale=None), "with no scale, instead of a scale of shape"),
    ("int8", "nan", lambda u: aside(u, scale=one(u.aside["smashed.scale"], torch.nan)), "negative or not finite"),
    ("int8", "infinity", lambda u: aside(u, scale=one(u.aside["smashed.scale"], torch.inf)), "negative or not finite"),
    ("int8", "too large", lambda u: aside(u, scale=one(u.aside["smashed.scale"], 3e38)), "negative or not finite"),
    ("int8", "negative", lambda u: aside(u, scale=-u.aside["smashed.scale"]), "negative or not finite"),
    ("int8", "one scale", lambda u: aside(u, scale=u.aside["smashed.scale"][:1]), r"a scale of shape \(1, 1, 1, 1\)"),
    ("int8", "wide", lambda u: aside(u, scale=u.aside["smashed.scale"].double()), "and torch.float64, instead of"),
    ("int8", "not coded", lambda u: changed(u, smashed=u.smashed.float()), "torch.float32, not .* and torch.int8"),
    ("int8", "positions too", lambda u: aside(u, positions=torch.zeros(1)), "with a positions of shape"),
    ("none", "coded", lambda u: changed(u, smashed=u.smashed.bfloat16()), "torch.bfloat16, not .* torch.float32"),
    (
        "none",
        "a scale",
        lambda u: aside(u, scale=torch.ones(8, 1, 1, 1)),
        "a scale of shape .* instead of no scale",
    ),
    ("bfloat16", "nan", lambda u: changed(u, smashed=one(u.smashed, torch.nan)), "not finite.*smaller client-lr"),
    ("float16", "inf", lambda u: changed(u, smashed=one(u.smashed, torch.inf)), "not finite.*smaller client-lr"),
    ("topk:0.4", "nan", lambda u: changed(u, smashed=one(u.smashed, torch.nan)), "not finite.*smaller client-lr"),
    ("topk:0.4", "far", lambda u: aside(u, positions=one(u.aside["smashed.positions"], 8)), "ascending from 0 to 7"),
    ("topk:0.4", "below", lambda u: aside(u, positions=u.aside["smashed.positions"] - 8), "ascending from 0 to 7"),
    ("topk:0.4", "twice", lambda u: aside(u, positions=u.aside["smashed.positions"] * 0), "ascending from 0 to 7"),
    ("topk:0.4", "long", lambda u: aside(u, positions=u.aside["smashed.positions"].long()), "torch.int64, instead of"),
    ("topk:0.4", "shape", lambda u: aside(u, shape=torch.tensor([2, 4, 1])), r"samples of shape \(2, 4, 1\)"),
    (OWN, "nan", lambda u: aside(u, low=one(u.aside["smashed.low"], torch.nan)), "not finite.*smaller client-lr"),
    (OWN, "its own", lambda u: aside(u, width=-u.aside["smashed.width"]), "smashed data with a width that is none"),
    (OWN, "no width", lambda u: aside(u, width=None), "with no width, instead of a width of shape"),
    (OWN, "wide", lambda u: aside(u, low=u.aside["smashed.low"].double()), "torch.float64, instead of"),
    (OWN, "a scale", lambda u: aside(u, scale=torch.ones(8)), "a scale of shape .* instead of no scale"),
    (OWN, "no shape", lambda u: aside(u, shape=None), "with no shape, instead of"),
    (OWN, "shape", lambda u: aside(u, shape=torch.tensor([8, 1, 1])), r"samples of shape \(8, 1, 1\)"),
    (OWN, "not coded", lambda u: changed(u, smashed=u.smashed.float()), "torch.float32, not .* and torch.int16"),
    ("topk:0.4", "fewer", lambda u: changed(u, smashed=u.smashed[:, 1:]), r"of shape \(2,\)"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong[0]}, {wrong[1]}")
def test_a_coded_frame_is_refused_for(wrong: tuple[str, str, Callable[[Upload], Upload], str]) -> None:
    codec, _, change, says = wrong
    plan = replace(PLAN, up=get(codec))
    first = uploads(train_session(plan), plan)[0]
    check = train_check(plan)
    with pytest.raises(FrameError, match=says):
        check(change(first))
    check(first)


def test_a_wrong_coded_answer_is_refused() -> None:
    plan = replace(PLAN, down=get("int8"))
    upload = uploads(train_session(plan), plan)[0]
    right = answer_to(upload, (2,), plan)
    check_answer(upload, right)
    plain = answer_to(upload, (2,))
    with pytest.raises(FrameError, match=r"average cut gradient of shape .* torch.float32, not .* torch.int8"):
        check_answer(upload, plain)
    scale = {**right.aside, "own.scale": one(right.aside["own.scale"], torch.nan)}
    with pytest.raises(FrameError, match="cut gradients with a scale that is negative or not finite"):
        check_answer(upload, replace(right, aside=scale))
    with pytest.raises(FrameError, match="own cut gradient with no scale"):
        check_answer(upload, replace(right, aside={"average.scale": right.aside["average.scale"]}))
    for_none = answer_to(upload, (2, 3, 5), plan)
    with pytest.raises(FrameError, match="a scale or positions of no own cut gradient"):
        check_answer(upload, replace(for_none, aside={**for_none.aside, "own.scale": torch.ones(1)}))


def test_the_bytes_in_shared_memory_are_those_of_safetensors_for_every_dtype() -> None:
    """Safetensors orders tensors by dtype and name; `stored_bytes` has to find the same header."""
    whole = (torch.int8, torch.int16, torch.int32, torch.int64)
    dtypes = (*whole, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    outbox = Outbox()
    for some in dtypes:
        for other in dtypes:
            aside_ = {"smashed.scale": torch.zeros(3, 11, dtype=some), "smashed.shape": torch.zeros(7, dtype=other)}
            smashed, labels = torch.zeros(3, 5, dtype=other), torch.zeros(3, dtype=torch.int64)
            upload = Upload(1, 0, "train", (0,), (3,), smashed, labels, last=True, aside=aside_)
            assert frames.nbytes(frames.encode_upload(upload, outbox)) == frames.encode_upload(upload).ByteSize()
