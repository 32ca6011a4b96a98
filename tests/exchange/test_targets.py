"""Targets of every type in frames: what goes in comes out; what is none of the source's is refused by a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from rounds import PLAN, SHAPE, changed, train_session, uploads
from torch import Tensor

from sglr_flower.data.samples import Tensors, each
from sglr_flower.data.targets import Classes, Kind, MultiLabel, Several, Values
from sglr_flower.exchange import frames
from sglr_flower.exchange.checks import TrainCheck, frame_bytes
from sglr_flower.exchange.frames import FrameError
from sglr_flower.exchange.shared import Inbox, Outbox
from sglr_flower.split.messages import Upload

KINDS: dict[str, Kind] = {
    "labels": MultiLabel(("a", "b", "c")),
    "a value": Values(()),
    "values": Values((2,)),
    "several": Several((("kind", Classes(("a", "b"))), ("size", Values((2,))))),
}


def targets(kind: Kind, count: int) -> Tensors:
    if isinstance(kind, Several):
        return {name: targets(own, count) for name, own in kind.parts}  # type: ignore[misc]
    if isinstance(kind, Values):
        return torch.randn(count, *kind.shape)
    if isinstance(kind, Classes):
        return torch.randint(0, kind.outputs, (count,))
    return torch.randint(0, 2, (count, kind.outputs)).float()


def with_targets(kind: Kind) -> list[Upload]:
    return [replace(upload, labels=targets(kind, sum(upload.sizes))) for upload in uploads(train_session())]


def check(kind: Kind) -> TrainCheck:
    from rounds import SAMPLES

    return TrainCheck(PLAN, SAMPLES, SHAPE, torch.float32, kind)


@pytest.mark.parametrize("name", KINDS)
def test_what_goes_in_comes_out_and_is_accepted(name: str) -> None:
    kind, outbox, inbox = KINDS[name], Outbox(), Inbox()
    through = check(kind)
    for upload in with_targets(kind):
        packed = frames.encode_upload(upload)
        back = frames.decode_upload(frames.parse_upload(packed.SerializeToString()))
        laid = frames.decode_upload(frames.encode_upload(upload, outbox), inbox)
        for other in (back, laid):
            each(lambda ours, theirs: torch.testing.assert_close(ours, theirs) or ours, upload.labels, other.labels)
            assert isinstance(other.labels, Tensor) == isinstance(upload.labels, Tensor)
        through(back)
        assert upload.payload.labels == back.payload.labels
        assert packed.ByteSize() <= frame_bytes(sum(upload.sizes), SHAPE, torch.float32, kind)
    outbox.close()


WRONG: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "half a label": ("labels", lambda own: each(lambda t: t * 0 + 0.5, own), "labels that are not all 0 or 1"),
    "whole numbers": ("labels", lambda own: each(Tensor.long, own), "labels of torch.int64, not torch.float32"),
    "too few labels": ("labels", lambda own: each(lambda t: t[:, :2].clone(), own), r"labels of shape \(\d+, 2\)"),
    "no number": ("values", lambda own: each(lambda t: t * torch.nan, own), "values that are not finite"),
    "infinite": ("a value", lambda own: each(lambda t: t + torch.inf, own), "values that are not finite"),
    "a column more": ("a value", lambda own: each(lambda t: t[:, None], own), r"labels of shape \(\d+, 1\)"),
    "other widths": ("values", lambda own: each(Tensor.double, own), "labels of torch.float64, not torch.float32"),
    "one of two": ("several", lambda own: {"kind": own["kind"]}, "labels kind, size, not kind"),  # type: ignore[index]
    "one tensor": ("several", lambda own: own["kind"], "labels kind, size, not one tensor"),  # type: ignore[index]
    "three": ("several", lambda own: {**own, "more": own["kind"].clone()}, "labels kind, size, not kind, more, size"),  # type: ignore[dict-item, index]
    "a class too high": (
        "several",
        lambda own: {**own, "kind": own["kind"] + 2},  # type: ignore[dict-item, index]
        "kind: labels from",
    ),
    "several for one": ("values", lambda own: {"kind": own}, r"several labels \(kind\) instead of one tensor"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", WRONG)
def test_other_targets_are_refused(name: str) -> None:
    kind, spoil, sentence = WRONG[name]
    upload = with_targets(KINDS[kind])[0]
    spoilt = changed(upload, labels=spoil(upload.labels))
    with pytest.raises(FrameError, match=sentence):
        check(KINDS[kind])(frames.decode_upload(frames.encode_upload(spoilt)))


@pytest.mark.parametrize(
    "labels",
    [{}, {f"n{k}": torch.zeros(0) for k in range(40)}, {"x": torch.zeros(1)}],
    ids=["none", "too many", "of another length"],
)
def test_labels_that_are_none_do_not_get_through(labels: dict[str, Tensor]) -> None:
    upload = uploads(train_session())[0]
    count = sum(upload.sizes)
    fitting = {name: own.new_zeros(count if len(own) == 0 else count + 1) for name, own in labels.items()}
    with pytest.raises(FrameError):
        frames.decode_upload(frames.encode_upload(changed(upload, labels=fitting)))
