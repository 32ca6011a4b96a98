"""The network of the fault suite, and the faults that a process of a run does to itself at a planned moment.

Every process of a run loads this module, because the run's config names it: ``model = "faults.faulty:network"``. Where
the harness has set `FOLDER` in a process's environment, a node's `Cohort.forward` (and in the ServerApp
`ServerSegment.update`) looks at the folder's plan before and after each training step and does to itself what the plan
says for this node, round and step. Nothing in the package knows of it.

The folder: ``plan.json``, the faults to come; ``struck/ID``, made by the process at the moment it strikes;
``released/ID``, made by the harness when a held process may go on; ``trace.jsonl``, a line for every step that the
server made: the time, the round, the step, and the clients whose smashed data it used.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from sglr_flower.exchange import exchange_pb2, session
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.messages import Upload
from sglr_flower.split.server import ServerSegment

FOLDER = "SGLR_FAULT_FOLDER"
"""Environment: the folder with the plan."""
NODE = "SGLR_FAULT_NODE"
"""Environment: which SuperNode this process belongs to; without it, the ServerApp."""
HOLD_SECONDS = 60.0
"""A held process goes on by itself after this long, so that no bug of the harness blocks a node for ever."""


def network(num_classes: int, image_size: int) -> nn.Sequential:
    """A network of some 400 weights with batch norm on both sides of the cut, so that a step takes milliseconds."""
    # No bias before a batch norm: its gradient is zero but for rounding, and Adam makes steps of full size of that.
    conv = functools.partial(nn.Conv2d, bias=False)
    low = nn.Sequential(nn.AvgPool2d(image_size // 8), conv(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
    high = nn.Sequential(conv(4, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, num_classes))
    return nn.Sequential(OrderedDict(low=low, high=high))


network.cut = "low"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Fault:
    """One planned fault.

    Attributes
    ----------
    id : str
        Its own, also a file's name.
    kind : str
        A key of `BEFORE` or `AFTER`.
    round, step : int
        When it strikes.
    node : int | None
        The SuperNode that it strikes, by its partition; None: the ServerApp.
    seconds : float
        How long it lasts, of those that last.
    again : bool
        Whether it strikes in every attempt of the round, or once.
    """

    id: str
    kind: str
    round: int
    step: int
    node: int | None = None
    seconds: float = 0.0
    again: bool = False


def write_plan(folder: Path, faults: list[Fault]) -> None:
    """Replace the plan; a process sees the old or the new one."""
    partial = folder / ".plan.json.partial"
    partial.write_text(json.dumps([asdict(fault) for fault in faults]))
    partial.replace(folder / "plan.json")


def read_plan(folder: Path) -> list[Fault]:
    return [Fault(**fault) for fault in json.loads((folder / "plan.json").read_text())]


# What a process does to itself before it forwards the step -----------------------------------------------------------


def _kill(folder: Path, fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_node(folder: Path, fault: Fault) -> None:
    """All processes of the node, as when a device loses its power; this one last."""
    ours = {FOLDER: os.environ[FOLDER], NODE: os.environ[NODE]}
    for process in psutil.process_iter():
        if process.pid != os.getpid() and ours.items() <= _environment(process).items():
            with contextlib.suppress(psutil.Error):
                process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(folder: Path, fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _sleep(folder: Path, fault: Fault) -> None:
    time.sleep(fault.seconds)


def _hold(folder: Path, fault: Fault) -> None:
    """Until the harness has done something from outside: cut the network, ended the run, ..."""
    deadline = time.monotonic() + HOLD_SECONDS
    while not (folder / "released" / fault.id).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _raise(folder: Path, fault: Fault) -> None:
    raise RuntimeError(f"planned fault {fault.id}")


BEFORE: dict[str, Callable[[Path, Fault], None]] = {
    "kill": _kill,
    "kill-node": _kill_node,
    "stop": _stop,
    "sleep": _sleep,
    "hold": _hold,
    "raise": _raise,
}
"""Kind -> what happens at the step's beginning: the answer to the step before has been used, nothing sent yet."""


# What it sends in place of its upload --------------------------------------------------------------------------------


def _nan(upload: Upload) -> Upload:
    smashed = upload.smashed.clone()
    smashed.view(-1)[-1] = torch.nan
    return replace(upload, smashed=smashed)


AFTER: dict[str, Callable[[Upload, Upload | None], Upload]] = {
    "nan": lambda upload, before: _nan(upload),
    "shape": lambda upload, before: replace(upload, smashed=upload.smashed[..., :1]),
    "dtype": lambda upload, before: replace(upload, smashed=upload.smashed.float()),
    "labels": lambda upload, before: replace(upload, labels=upload.labels + 10),
    "step": lambda upload, before: replace(upload, step=upload.step + 1),
    "round": lambda upload, before: replace(upload, server_round=upload.server_round + 1),
    "split": lambda upload, before: replace(upload, split="test"),
    "client": lambda upload, before: replace(upload, clients=tuple(c + 1 for c in upload.clients)),
    "last": lambda upload, before: replace(upload, last=not upload.last),
    "replay": lambda upload, before: before or replace(upload, step=upload.step + 1),
}
"""Kind -> what is sent, made of the right upload and the one before it (None in the first step)."""

SOON = "kill-soon"
"""Killed some milliseconds after the forward, before the next one: before, while or after the frame travels."""
BYTES = "bytes"
"""The frame's tensors are random bytes."""


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


class _Striker:
    """What a process knows of the plan."""

    def __init__(self, folder: Path, node: int | None) -> None:
        self._folder, self._node = folder, node
        self._previous: Upload | None = None
        self._doomed: Fault | None = None

    def due(self, server_round: int, step: int) -> Fault | None:
        """The fault that strikes here and now, marked as struck; None: none does."""
        for fault in read_plan(self._folder):
            if (fault.node, fault.round, fault.step) != (self._node, server_round, step):
                continue
            mark = self._folder / "struck" / fault.id
            if fault.again or not mark.exists():
                mark.write_text(json.dumps({"time": time.time(), "pid": os.getpid()}))
                return fault
        return None

    def forward(self, original: Callable[..., Upload], cohort: Cohort, plan: Any, step: int, **options: Any) -> Upload:
        """A node's forward of a step."""
        if options.get("again"):  # the grid exchange rebuilds a graph: nothing is sent
            return original(cohort, plan, step, **options)
        if self._doomed:
            _kill(self._folder, self._doomed)  # at the latest
        fault = self.due(plan.server_round, step)
        if fault is not None and fault.kind in BEFORE:
            BEFORE[fault.kind](self._folder, fault)
        upload = sent = original(cohort, plan, step, **options)
        if fault is not None and fault.kind in AFTER:
            sent = AFTER[fault.kind](upload, self._previous)
        elif fault is not None and fault.kind == BYTES:
            noise = exchange_pb2.Upload(server_round=plan.server_round, step=step, tensors=random.randbytes(1000))
            session.encode_upload = lambda upload: noise  # type: ignore[attr-defined]
        elif fault is not None and fault.kind == SOON:
            self._doomed = fault
            threading.Timer(fault.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        self._previous = upload
        return sent

    def update(self, original: Callable[..., Any], server: ServerSegment, plan: Any, step: int, *parts: Any) -> Any:
        """The server's update of a step."""
        fault = self.due(plan.server_round, step)
        if fault is not None:
            BEFORE[fault.kind](self._folder, fault)
        result = original(server, plan, step, *parts)
        line = {"time": time.time(), "round": plan.server_round, "step": step, "clients": sorted(parts[0])}
        with (self._folder / "trace.jsonl").open("a") as trace:
            trace.write(json.dumps(line) + "\n")
        return result


def _arm(folder: Path, node: int | None) -> None:
    striker = _Striker(folder, node)
    if node is None:
        update = ServerSegment.update

        @functools.wraps(update)
        def updating(self: ServerSegment, plan: Any, step: int, *parts: Any) -> Any:
            return striker.update(update, self, plan, step, *parts)

        ServerSegment.update = updating  # type: ignore[method-assign, assignment]
    else:
        forward = Cohort.forward

        @functools.wraps(forward)
        def forwarding(self: Cohort, plan: Any, step: int, **options: Any) -> Upload:
            return striker.forward(forward, self, plan, step, **options)

        Cohort.forward = forwarding  # type: ignore[method-assign]


if FOLDER in os.environ:
    _arm(Path(os.environ[FOLDER]), int(os.environ[NODE]) if NODE in os.environ else None)
