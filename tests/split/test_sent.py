"""What was sent, counted: messages of known sizes, and sums."""

from __future__ import annotations

from dataclasses import astuple

import torch

from sglr_flower.exchange.link import Traffic
from sglr_flower.run.metrics import byte_columns
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.sent import Sent, total


def test_messages_know_the_bytes_of_what_they_carry() -> None:
    smashed = torch.zeros(5, 2, 3)  # float32: 120 bytes
    upload = Upload(1, 0, "train", (0, 1), (2, 3), smashed, torch.zeros(5, dtype=torch.int64), last=True)
    assert upload.payload == Sent(smashed=120, labels=40)
    download = Download(1, 0, (0,), torch.zeros(3, 2, 3), torch.zeros(3, 2, 3, dtype=torch.float64))
    assert download.payload == Sent(broadcast=72, unicast=144)
    assert Download(1, 0).payload == Sent()


def test_it_adds_up_part_by_part() -> None:
    one = Sent(1, 2, 3, 4, 5, 6, 7, 8)
    assert (one.up, one.down) == (1 + 2 + 5 + 7, 3 + 4 + 6 + 8)
    assert astuple(total([one, one, Sent()])) == (2, 4, 6, 8, 10, 12, 14, 16)
    assert total([]) == Sent()


def test_what_a_frame_has_besides_its_tensors_is_framing() -> None:
    traffic = Traffic()
    traffic.came(Sent(smashed=100, labels=20), 150)
    traffic.went(Sent(unicast=60, broadcast=30), 95)
    assert traffic.sent == Sent(100, 20, 60, 30, framing_up=30, framing_down=5)
    assert (traffic.sent.up, traffic.sent.down) == (150, 95)


def test_columns_are_totals_and_all_parts() -> None:
    columns = byte_columns(Sent(1, 2, 3, 4, 5, 6, 7, 8))
    assert columns == {
        "bytes_up": 15,
        "bytes_down": 21,
        "bytes_smashed": 1,
        "bytes_labels": 2,
        "bytes_unicast": 3,
        "bytes_broadcast": 4,
        "bytes_segments_up": 5,
        "bytes_segments_down": 6,
        "bytes_framing_up": 7,
        "bytes_framing_down": 8,
    }
