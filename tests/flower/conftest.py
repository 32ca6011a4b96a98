"""What tests of both sides need: Flower's identity of a process, and a clock that nobody waits for."""

from __future__ import annotations

import pytest
from flwr.supercore.task_identity import TaskIdentity

from sglr_flower.flower import delivery, greeting, roster, server


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower gives every process of an app an identity, which replies carry."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the server's side."""
    made = Clock()
    for module in (delivery, greeting, roster, server):
        monkeypatch.setattr(module, "time", made)
    return made
