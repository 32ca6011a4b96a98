"""Tensors in memory that two processes have."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import frames, shared
from sglr_flower.exchange.frames import FrameError
from sglr_flower.exchange.shared import Inbox, Outbox, Proof
from sglr_flower.split.messages import Download, Upload

pytestmark = pytest.mark.skipif(not shared.available(), reason="this system has no anonymous memory files")

READER = """
import sys
from sglr_flower.exchange import exchange_pb2 as pb, shared
found = shared.Inbox().get(pb.Shared.FromString(bytes.fromhex(sys.argv[1])))
print(found["a"].double().sum().item(), found["b"].tolist())
found["b"][0] = 9
"""


def test_another_process_reads_and_writes_the_same_memory() -> None:
    outbox = Outbox()
    placed = outbox.put({"a": torch.arange(1000, dtype=torch.float32), "b": torch.tensor([1, 2, 3])})
    command = [sys.executable, "-c", READER, placed.SerializeToString().hex()]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "499500.0 [1, 2, 3]\n"
    assert Inbox().get(placed)["b"].tolist() == [9, 2, 3]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_frame_comes_out_as_it_went_in(dtype: torch.dtype, layout: torch.memory_format) -> None:
    inbox, outbox = Inbox(), Outbox()
    for samples in (3, 50, 2):  # the memory grows, and is used again
        smashed = torch.randn(samples, 4, 5, 6, dtype=dtype).contiguous(memory_format=layout)
        upload = Upload(1, 2, "train", (7,), (samples,), smashed, torch.arange(samples), False)
        frame = frames.encode_upload(upload, outbox)
        found = frames.decode_upload(pb.Upload.FromString(frame.SerializeToString()), inbox)
        assert torch.equal(found.smashed, smashed)
        assert found.smashed.is_contiguous(memory_format=layout)
        assert torch.equal(found.labels, upload.labels)
        assert frames.nbytes(frame) == frames.encode_upload(upload).ByteSize()
    both = Download(1, 2, (7,), torch.randn(1, 4, 5, 6, dtype=dtype), torch.randn(9, 4, 5, 6, dtype=dtype))
    assert frames.nbytes(frames.encode_download(both, outbox)) == frames.encode_download(both).ByteSize()
    download = Download(1, 2, (7,), torch.randn(1, 4, 5, 6, dtype=dtype), None)
    answer = frames.decode_download(frames.encode_download(download, outbox), inbox)
    assert answer.own is None
    assert answer.average is not None
    assert torch.equal(answer.average, download.average)
    nothing = frames.decode_download(frames.encode_download(Download(1, 2), Outbox()), Inbox())  # an evaluation's
    assert (nothing.average, nothing.own) == (None, None)


def test_a_device_cannot_make_the_server_open_its_memory() -> None:
    upload = Upload(1, 0, "train", (0,), (1,), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), False)
    with pytest.raises(FrameError, match="shared memory, which is for simulated nodes"):
        frames.decode_upload(frames.encode_upload(upload, Outbox()))


@pytest.mark.parametrize(
    "placed",
    [
        pb.Placed(name="smashed", dtype="float32", shape=[10_000], offset=0),  # beyond the end
        pb.Placed(name="smashed", dtype="float32", shape=[2], offset=1 << 40),
        pb.Placed(name="smashed", dtype="complex64", shape=[2], offset=0),
    ],
)
def test_tensors_that_do_not_lie_there_are_refused(placed: pb.Placed) -> None:
    frame = pb.Upload(clients=[0], sizes=[1], shared=Outbox().put({"a": torch.zeros(4)}))
    del frame.shared.tensors[:]
    frame.shared.tensors.append(placed)
    with pytest.raises(FrameError, match="tensors that cannot be read"):
        frames.decode_upload(frame, Inbox())


def test_memory_that_is_gone_is_refused() -> None:
    outbox = Outbox()
    frame = pb.Upload(clients=[0], sizes=[1], shared=outbox.put({"a": torch.zeros(4)}))
    outbox.close()
    with pytest.raises(FrameError, match="tensors that cannot be read"):
        frames.decode_upload(frame, Inbox())


def test_who_can_read_the_memory_can_prove_it() -> None:
    proof = Proof()
    assert proof.accepts(shared.read_proof(proof.shown))
    assert not Proof().accepts(shared.read_proof(proof.shown))
    proof.close()
    assert shared.read_proof(proof.shown) == ""
    assert shared.read_proof(b"\xff") == ""
    assert not proof.accepts("")


def test_closed_memory_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        outbox, inbox = Outbox(), Inbox()
        inbox.get(outbox.put({"a": torch.zeros(1000)}))
        outbox.close()
        del inbox
    assert len(os.listdir("/proc/self/fd")) <= before + 1
