"""What the tests with malformed inputs share: batches of them, what is counted, and which inputs are right ones."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import mutations
import psutil
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rounds import CLASSES, SHAPE
from torch import Tensor

from sglr_flower.exchange.frames import (
    FrameError,
    decode_upload,
    parse_upload,
)
from sglr_flower.split.messages import Download, Upload

INPUTS = int(os.environ.get("SGLR_FUZZ_INPUTS", "3000"))
FULL = "SGLR_FUZZ_INPUTS" in os.environ
SHARES = {
    "frames": 0.6,
    "answers": 0.2,
    "port": 0.08,
    "handshake": 0.08,
    "headers": 0.04,
    "coded frames": 0.15,
    "coded answers": 0.1,
}
GROWTH = 48 << 20
"""Bytes that the process may be larger after all inputs than after the first tenth."""
SLOWEST = 5.0
"""Seconds that one input may take on a busy machine."""

LIMIT = 120 + INPUTS // 40
"""Seconds after which a test of inputs counts as hanging."""


class Tally:
    """What was tried, how long one input took at most, and the process's size on the way."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.valid: Counter[str] = Counter()
        self.slowest = 0.0
        self.sizes: list[int] = []
        self.threads: list[int] = []
        self.began = time.monotonic()

    @property
    def inputs(self) -> int:
        return sum(self.refused.values())

    def refuse(self, kind: str, error: FrameError) -> None:
        """Count one that was refused, in a sentence that can be shown."""
        assert 0 < len(str(error)) < 1000, error
        assert str(error).isprintable(), error
        self.refused[kind] += 1

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.slowest = max(self.slowest, time.monotonic() - began)

    def measure(self) -> None:
        """Note the process's size now."""
        gc.collect()
        self.sizes.append(psutil.Process().memory_info().rss)
        self.threads.append(_threads())


def _threads() -> int:
    """Threads of this process, without those that wait for work in the pool of a server, which keeps what it once had.

    How many that are is a matter of timing, and of Python's version.
    """
    top = sys._current_frames()
    threads = [(thread.name, top.get(thread.ident or 0)) for thread in threading.enumerate()]
    return sum(
        not name.startswith("sglr-stream") or frame is None or frame.f_code.co_name != "_worker"
        for name, frame in threads
    )


def fuzz(share: str, batch: Callable[[Random, Tally], None], size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Run batches of ``size`` inputs until there are enough of them."""
    batches = max(2, math.ceil(INPUTS * SHARES[share] / size))
    tally = Tally()

    def some(count: int) -> None:
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=not FULL,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.integers(0, 2**63))
        def drive(seed: int) -> None:
            batch(Random(seed), tally)

        drive()

    state = random.getstate()
    for count in (max(1, batches // 10), batches - max(1, batches // 10)):
        some(count)
        tally.measure()
    random.setstate(state)
    if FULL:
        with capsys.disabled():
            kinds = ", ".join(f"{kind} {number}" for kind, number in tally.refused.most_common())
            print(
                f"\n{share}: {tally.inputs} malformed inputs, 0 accepted ({kinds}); "
                f"{sum(tally.valid.values())} mutations left a right frame; "
                f"{time.monotonic() - tally.began:.0f} s, slowest {1000 * tally.slowest:.0f} ms; resident memory "
                f"{tally.sizes[0] / 2**20:.0f} MiB after a tenth, {tally.sizes[1] / 2**20:.0f} MiB at the end; "
                f"threads {tally.threads[0]}, {tally.threads[1]}"
            )
    assert tally.inputs >= batches * size
    assert tally.slowest < SLOWEST
    assert tally.sizes[1] - tally.sizes[0] < GROWTH
    assert tally.threads[1] <= tally.threads[0] + 10


def mutated(draw: Random, step: int, frames: list[bytes], kind: type[mutations.Frame]) -> tuple[str, bytes]:
    """A malformed input for a step, and its name; now and then it is a right one after all."""
    content, others = frames[step], [frame for k, frame in enumerate(frames) if k != step]
    name = draw.choice([*mutations.BYTES, "splices", "wrong order", "fields", "tensors", "lying headers", "twice"])
    if name in mutations.BYTES:
        return name, mutations.BYTES[name](draw, content)
    if name == "splices":
        return name, mutations.splice(draw, content, others)
    if name == "wrong order":
        return name, draw.choice(others)
    if name == "fields":
        return name, mutations.swap_fields(draw, content, others, kind)
    if name == "tensors":
        return name, mutations.other_tensors(draw, content, kind)
    if name == "lying headers":
        return name, mutations.lying_header(draw, content, kind)
    several = mutations.BYTES["bits of the header"](draw, mutations.swap_fields(draw, content, others, kind))
    return "several", several


def same_but_values(got: Upload, sent: Upload) -> bool:
    """Whether a frame differs from the right one in its tensors' values only, all of them possible ones.

    The definition of a right frame, apart from the code under test.
    """
    numbers = ("server_round", "step", "split", "clients", "sizes", "last")
    return (
        all(getattr(got, name) == getattr(sent, name) for name in numbers)
        and (got.smashed.dtype, got.smashed.shape) == (sent.smashed.dtype, sent.smashed.shape)
        and got.aside.keys() == sent.aside.keys()
        and all(len(tensor) == len(sent.aside[name]) for name, tensor in got.aside.items())
        and all(possible(name, tensor, sent.aside[name]) for name, tensor in got.aside.items())
        and (got.labels.dtype, got.labels.shape) == (sent.labels.dtype, sent.labels.shape)
        and all(0 <= label < CLASSES for label in got.labels.tolist())
        and all(map(math.isfinite, got.smashed.flatten().tolist()))
    )


def possible(name: str, got: Tensor, like: Tensor) -> bool:
    """Whether a scale, positions or a shape are such as a codec could send."""
    if (got.dtype, got.shape[1:]) != (like.dtype, like.shape[1:]):
        return False
    if name.endswith(".scale"):
        return all(0 <= value <= 3e36 for value in got.flatten().tolist())
    if name.endswith(".shape"):
        return bool(got.tolist() == list(SHAPE))
    return all(row == sorted(set(row)) and row[0] >= 0 and row[-1] < math.prod(SHAPE) for row in got.tolist())


def usable_coded(got: Download, upload: Upload, right: Download) -> bool:
    """As `usable`, of a coded answer, whose tensors have to be of the right one's kinds."""
    sizes = dict(zip(upload.clients, upload.sizes, strict=True))
    active = [sizes.pop(client, 0) for client in got.active]
    rows = {"average": 0 if got.average is None else len(got.average), "own": 0 if got.own is None else len(got.own)}
    tensors = [tensor for tensor in (got.average, got.own) if tensor is not None]
    like = next(tensor for tensor in (right.average, right.own) if tensor is not None)
    kinds = {name.partition(".")[2]: tensor for name, tensor in right.aside.items()}
    return (
        (got.server_round, got.step) == (upload.server_round, upload.step)
        and all(active)
        and bool(rows["average"]) == bool(active)
        and (not active or rows["average"] == 1 or rows["average"] >= max(active))
        and rows["own"] == sum(sizes.values())
        and all((tensor.dtype, tensor.shape[1:]) == (like.dtype, like.shape[1:]) for tensor in tensors)
        and all(map(math.isfinite, (value for tensor in tensors for value in tensor.double().flatten().tolist())))
        and got.aside.keys() == {f"{name}.{kind}" for name, count in rows.items() if count for kind in kinds}
        and all(possible(name, tensor, kinds[name.partition(".")[2]]) for name, tensor in got.aside.items())
        and all(
            len(tensor) == rows[name.partition(".")[0]]
            for name, tensor in got.aside.items()
            if not name.endswith(".shape")
        )
    )


def refusable(content: bytes, sent: Upload) -> bool:
    """Whether an input is malformed, by the definition above."""
    try:
        return not same_but_values(decode_upload(parse_upload(content)), sent)
    except FrameError:
        return True


def usable(got: Download, upload: Upload) -> bool:
    """Whether an answer is one that the server could give: who is active is its to draw, and all finite gradients."""
    if (got.server_round, got.step) != (upload.server_round, upload.step):
        return False
    sizes = dict(zip(upload.clients, upload.sizes, strict=True))
    active = [sizes.pop(client, 0) for client in got.active]
    average = [] if got.average is None else got.average.tolist()
    own = [] if got.own is None else got.own.tolist()
    tensors = [tensor for tensor in (got.average, got.own) if tensor is not None]
    return (
        all(active)
        and bool(average) == bool(active)
        and (not active or len(average) == 1 or len(average) >= max(active))
        and len(own) == sum(sizes.values())
        and all(tensor.dtype == torch.float32 and tuple(tensor.shape[1:]) == SHAPE for tensor in tensors)
        and all(map(math.isfinite, (value for tensor in tensors for value in tensor.flatten().tolist())))
    )
