"""Frames: what goes in comes out, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange.frames import FrameError, decode_download, decode_upload, encode_download, encode_upload
from sglr_flower.split.messages import Download, Upload

UPLOAD = Upload(
    server_round=3,
    step=7,
    split="train",
    clients=(2, 5),
    sizes=(3, 1),
    smashed=torch.randn(4, 2, 3, 3, dtype=torch.float64),
    labels=torch.tensor([0, 9, 1, 2]),
    last=True,
)


def test_an_upload_survives_the_wire() -> None:
    back = decode_upload(pb.Upload.FromString(encode_upload(UPLOAD).SerializeToString()))
    for name in ("server_round", "step", "split", "clients", "sizes", "last"):
        assert getattr(back, name) == getattr(UPLOAD, name)
    assert_close(back.smashed, UPLOAD.smashed, rtol=0, atol=0)
    assert_close(back.labels, UPLOAD.labels, rtol=0, atol=0)


def test_a_tensor_comes_out_as_it_lay_in_memory() -> None:
    smashed = torch.randn(4, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    frame = encode_upload(replace(UPLOAD, smashed=smashed))

    back = decode_upload(frame).smashed

    assert_close(back, smashed, rtol=0, atol=0)
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert bytes(smashed.permute(0, 2, 3, 1).numpy().tobytes()) in frame.tensors


@pytest.mark.parametrize(
    "tensors",
    [
        {"smashed:channels_last": torch.zeros(4, 2, 3)},
        {"smashed:channels_last": torch.zeros(4, 2, 3, 3), "smashed": torch.zeros(4, 2, 3, 3)},
        {"other:channels_last": torch.zeros(4, 2, 3, 3)},
    ],
    ids=["three dimensions", "twice", "another name"],
)
def test_a_wrong_tensor_as_it_lies_in_memory_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    frame = encode_upload(UPLOAD)
    frame.tensors = safetensors.torch.save({**tensors, "labels": UPLOAD.labels})
    with pytest.raises(FrameError, match="it has tensors smashed and labels, not"):
        decode_upload(frame)


@pytest.mark.parametrize(
    ("average", "own"),
    [(torch.randn(3, 2), torch.randn(4, 2)), (None, torch.randn(4, 2)), (torch.randn(3, 2), None), (None, None)],
)
def test_a_download_survives_the_wire(average: torch.Tensor | None, own: torch.Tensor | None) -> None:
    back = decode_download(
        pb.Download.FromString(encode_download(Download(1, 2, (4,), average, own)).SerializeToString())
    )
    assert (back.server_round, back.step, back.active) == (1, 2, (4,))
    for ours, theirs in ((back.average, average), (back.own, own)):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert_close(ours, theirs, rtol=0, atol=0)


def test_a_frame_is_little_larger_than_its_tensors() -> None:
    payload = UPLOAD.smashed.nbytes + UPLOAD.labels.nbytes
    assert payload < encode_upload(UPLOAD).ByteSize() < payload + 256


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": [3, 2]},
        {"sizes": [4]},
        {"sizes": [4, 0]},
        {"clients": [5, 2]},
        {"clients": [2, 2]},
        {"clients": []},
        {"tensors": b""},
        {"tensors": b"\x80\x04\x95pickle"},
        {"tensors": encode_upload(UPLOAD).tensors[:-1]},
        {"tensors": encode_download(Download(1, 1, (), None, torch.zeros(2))).tensors},
    ],
    ids=[
        "samples",
        "one size",
        "no samples",
        "order",
        "twice",
        "no clients",
        "empty",
        "pickle",
        "cut off",
        "a download",
    ],
)
def test_an_upload_that_does_not_fit_is_refused(changes: dict) -> None:
    frame = encode_upload(UPLOAD)
    for name, value in changes.items():
        if name == "tensors":
            frame.tensors = value
        else:
            del getattr(frame, name)[:]
            getattr(frame, name).extend(value)
    with pytest.raises(FrameError):
        decode_upload(frame)


def test_a_download_that_does_not_fit_is_refused() -> None:
    with pytest.raises(FrameError):
        decode_download(pb.Download(tensors=encode_upload(UPLOAD).tensors))
    with pytest.raises(FrameError):
        decode_download(pb.Download(tensors=b"rubbish"))
