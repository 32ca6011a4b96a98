"""A node's real frames pass, and each thing that can be wrong with one is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from rounds import (
    CLASSES,
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

from sglr_flower.exchange.checks import check_answer, frame_bytes
from sglr_flower.exchange.frames import FrameError, encode_upload
from sglr_flower.split.finite import all_finite
from sglr_flower.split.messages import Download, Upload


@pytest.mark.parametrize("clients", [PLAN.clients, (2,), (5,)])
def test_all_frames_of_a_real_round_pass(clients: tuple[int, ...]) -> None:
    plan = replace(PLAN, clients=clients)
    check = train_check(plan)
    frames = uploads(train_session(plan))
    for upload in frames:
        check(upload)
    assert len(frames) == (6 if 2 in clients else 2)
    with pytest.raises(FrameError, match="after the node's last one"):
        check(changed(frames[-1], step=len(frames)))


@pytest.mark.parametrize("images", [1, 499, 500, 501, 1000])
def test_all_frames_of_a_real_evaluation_pass(images: int) -> None:
    check = evaluate_check(samples=images + 100)
    for upload in uploads(evaluate_session(images)):
        check(upload)
    with pytest.raises(FrameError, match="after the node's last one"):
        check(upload)


def test_a_frame_of_the_smallest_float_and_the_largest_passes() -> None:
    first = uploads(train_session())[0]
    first.smashed.fill_(torch.finfo(torch.float32).max)  # their sum is infinite, none of them is
    train_check()(first)
    assert all_finite(torch.full((9,), 65504.0, dtype=torch.float16))


def first_of(upload: Upload, value: float) -> torch.Tensor:
    smashed = upload.smashed.clone()
    smashed.view(-1)[-1] = value
    return smashed


WRONG: dict[str, tuple[Callable[[Upload], Upload], str]] = {
    "an earlier step": (lambda u: changed(u, step=1), "'train' step 1 of round 3 instead of train step 2 of round 3"),
    "a later step": (lambda u: changed(u, step=3), "'train' step 3"),
    "another round": (lambda u: changed(u, server_round=2), "of round 2 instead"),
    "an evaluation's": (lambda u: changed(u, split="test"), "'test' step 2"),
    "last too early": (lambda u: changed(u, last=True), "not the node's last one"),
    "another node's client": (lambda u: changed(u, clients=(0, 3, 5)), r"clients \(0, 3, 5\)"),
    "who does not take part": (lambda u: changed(u, clients=(2, 3, 9)), r"clients \(2, 3, 9\)"),
    "a client missing": (
        lambda u: changed(u, clients=(2,), sizes=(1,), smashed=u.smashed[:1], labels=u.labels[:1]),
        r"clients \(2,\)",
    ),
    "a client more": (
        lambda u: changed(
            u, clients=(2, 3, 5), sizes=(1, 3, 1), smashed=torch.ones(5, *SHAPE), labels=torch.ones(5).long()
        ),
        r"not \(2, 3\)",
    ),
    "other batch sizes": (lambda u: changed(u, sizes=(2, 2)), r"\(2, 2\) samples"),
    "another shape": (lambda u: changed(u, smashed=u.smashed.reshape(-1, 2, 4, 1)), r"shape \(2, 4, 1\)"),
    "no shape": (lambda u: changed(u, smashed=u.smashed[:, 0, 0, 0]), r"shape \(\)"),
    "another dtype": (lambda u: changed(u, smashed=u.smashed.double()), "torch.float64, not"),
    "labels as floats": (lambda u: changed(u, labels=u.labels.float()), "labels of torch.float32"),
    "a negative label": (lambda u: changed(u, labels=u.labels - CLASSES), "labels from -"),
    "a label too high": (lambda u: changed(u, labels=u.labels * 0 + CLASSES), "labels from 5 to 5, not from 0 to 4"),
    "nan": (lambda u: changed(u, smashed=first_of(u, torch.nan)), "not finite.*smaller client-lr"),
    "infinity": (lambda u: changed(u, smashed=first_of(u, -torch.inf)), "not finite.*smaller client-lr"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_training_frame_is_refused_for(wrong: str) -> None:
    check, frames = train_check(), uploads(train_session())
    change, says = WRONG[wrong]
    for upload in frames[:2]:
        check(upload)
    bad = change(frames[2])
    with pytest.raises(FrameError, match=says):
        check(bad)
    check(frames[2])  # what was refused has not moved the check on


def test_a_last_frame_has_to_say_so() -> None:
    check, frames = train_check(), uploads(train_session())
    for upload in frames[:-1]:
        check(upload)
    with pytest.raises(FrameError, match="is the node's last one"):
        check(changed(frames[-1], last=False))


def test_numbers_and_sizes_are_looked_at_before_contents() -> None:
    class Unread(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in ("sum", "isfinite", "aminmax", "all"):
                raise AssertionError("the contents were read")
            return super().__torch_function__(func, types, args, kwargs or {})

    first = uploads(train_session())[0]
    unread = first.smashed.as_subclass(Unread)
    for bad in ({"step": 1}, {"sizes": (3, 3, 2)}, {"last": True}, {"labels": first.labels - CLASSES}):
        with pytest.raises(FrameError):
            train_check()(changed(first, smashed=unread, **bad))
    with pytest.raises(AssertionError, match="were read"):
        train_check()(changed(first, smashed=unread))


EVALUATION: dict[str, tuple[Callable[[Upload], Upload], str]] = {
    "another step": (lambda u: changed(u, step=2), "step 2"),
    "a training frame": (lambda u: changed(u, split="train"), "'train' step 1"),
    "another client": (lambda u: changed(u, clients=(2, 3)), r"clients \(2, 3\)"),
    "one client": (lambda u: changed(u, clients=(2,), sizes=(400,)), r"clients \(2,\)"),
    "different sizes": (lambda u: changed(u, sizes=(199, 201)), r"with \(199, 201\)"),
    "different labels": (lambda u: changed(u, labels=u.labels.sort().values), "labels differ"),
    "last too early": (lambda u: changed(u, last=True), "last chunk is of test samples"),
    "nan": (lambda u: changed(u, smashed=first_of(u, torch.nan)), "not finite"),
    "a label too high": (lambda u: changed(u, labels=u.labels + CLASSES), "labels from"),
}


@pytest.mark.parametrize("wrong", EVALUATION)
def test_an_evaluations_frame_is_refused_for(wrong: str) -> None:
    check, frames = evaluate_check(), uploads(evaluate_session(700))
    change, says = EVALUATION[wrong]
    check(frames[0])
    with pytest.raises(FrameError, match=says):
        check(change(frames[1]))
    check(frames[1])


def test_after_the_test_images_began_validation_is_over() -> None:
    check, frames = evaluate_check(), uploads(evaluate_session(700))
    for upload in frames[:3]:
        check(upload)
    assert frames[2].split == "test"
    with pytest.raises(FrameError, match="instead of test step 3"):
        check(changed(frames[3], split="validation"))


def test_a_chunk_that_is_not_full_is_its_splits_last() -> None:
    check, frames = evaluate_check(), uploads(evaluate_session(700))
    check(frames[0])
    check(frames[1])
    with pytest.raises(FrameError, match="instead of test step 2"):
        check(changed(frames[1], step=2))


def test_an_evaluation_does_not_go_on_for_ever() -> None:
    check, first = evaluate_check(samples=1200), uploads(evaluate_session(700))[0]
    check(first)
    check(changed(first, step=1))
    with pytest.raises(FrameError, match="1500 validation samples so far: too many"):
        check(changed(first, step=2))


def test_chunks_larger_than_a_node_may_send_are_refused() -> None:
    first = uploads(evaluate_session(700))[0]
    twice = changed(first, sizes=(501, 501), smashed=torch.zeros(1002, *SHAPE), labels=torch.zeros(1002).long())
    with pytest.raises(FrameError, match="501 samples in a chunk"):
        evaluate_check()(twice)


# ---- the node checks the server's answers


@pytest.mark.parametrize("active", [(), (2,), (3, 5), (2, 3, 5)])
def test_a_right_answer_passes(active: tuple[int, ...]) -> None:
    upload = uploads(train_session())[0]
    check_answer(upload, answer_to(upload, active))
    if active:
        one_row = replace(answer_to(upload, active), average=torch.ones(1, *SHAPE))
        check_answer(upload, one_row)
        longer = replace(answer_to(upload, active), average=torch.ones(4, *SHAPE))  # another node's batch is larger
        check_answer(upload, longer)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": 1}, "an answer to step 1"),
        ({"server_round": 4}, "of round 4"),
        ({"active": (2, 9)}, r"active clients \(2, 9\)"),
        ({"active": ()}, "an average cut gradient"),
        ({"average": None}, "no average cut gradient"),
        ({"own": None}, "no own cut gradient"),
        ({"active": (2, 3, 5)}, "an own cut gradient"),
        ({"own": torch.ones(5, *SHAPE)}, "own gradients of 5 samples, not 6"),
        ({"own": torch.ones(6, 8)}, r"own cut gradient of shape \(8,\)"),
        ({"own": torch.ones(6, *SHAPE).double()}, "torch.float64"),
        ({"average": torch.ones(2, *SHAPE)}, "an average of 2 positions for batches of 3"),
        ({"average": torch.ones(0, *SHAPE)}, r"average cut gradient \(0, 2, 2, 2\)"),
        ({"average": torch.ones(())}, r"average cut gradient \(\)"),
        ({"average": torch.full((3, *SHAPE), torch.inf)}, "not finite.*smaller client-lr"),
    ],
    ids=str,
)
def test_a_wrong_answer_is_refused(changes: dict, says: str) -> None:
    upload = uploads(train_session())[0]
    with pytest.raises(FrameError, match=says):
        check_answer(upload, replace(answer_to(upload, (2,)), **changes))


def test_the_answer_to_an_evaluation_is_empty() -> None:
    upload = uploads(evaluate_session(10))[0]
    check_answer(upload, Download(3, 0))
    with pytest.raises(FrameError, match="cut gradients in an evaluation"):
        check_answer(upload, Download(3, 0, own=torch.ones(20, *SHAPE)))


def test_no_real_frame_is_larger_than_frame_bytes() -> None:
    for frames in (uploads(train_session()), uploads(evaluate_session(700))):
        for upload in frames:
            limit = frame_bytes(sum(upload.sizes), SHAPE, torch.float32, TARGETS)
            assert upload.payload.up < encode_upload(upload).ByteSize() <= limit


@pytest.mark.parametrize(("split", "other"), [("validation", "test"), ("test", "validation")])
def test_a_node_that_has_images_of_one_split_alone(split: str, other: str) -> None:
    check, frames = evaluate_check(splits=(split,)), uploads(evaluate_session(700, splits=(split,)))
    assert {upload.split for upload in frames} == {split}
    check(frames[0])
    with pytest.raises(FrameError, match=f"instead of {split} step 1"):
        check(changed(frames[1], split=other))
    check(frames[1])
    with pytest.raises(FrameError, match="chunk 2 after the node's last one"):
        check(changed(frames[1], step=2))
    if split == "test":  # not of a node that has both
        with pytest.raises(FrameError, match="instead of validation step 0"):
            evaluate_check()(frames[0])
