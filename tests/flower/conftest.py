"""What tests of both sides need: Flower's identity of a process, and a clock that nobody waits for."""

from __future__ import annotations

import pytest
from flower.fakegrid import Clock
from flwr.supercore.task_identity import TaskIdentity

from sglr_flower.flower import delivery, greeting, roster, strategy, waiting


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower gives every process of an app an identity, which replies carry."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the server's side."""
    made = Clock()
    for module in (delivery, greeting, roster, strategy, waiting):
        monkeypatch.setattr(module, "time", made)
    return made
