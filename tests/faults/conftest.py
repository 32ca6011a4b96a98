"""A federation for each file of the suite, and the suite's table at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.harness import Federation
from faults.table import Line, report

_LINES = pytest.StashKey[dict[str, Line]]()


@pytest.fixture(scope="session")
def seeds() -> int:
    """How often each fault is injected."""
    return int(os.environ.get("SGLR_FAULT_SEEDS", "2"))


@pytest.fixture(scope="module")
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink, and as many SuperNodes as the module's ``NODES`` says, up until its last test has ended."""
    if "SGLR_FAULT_SEEDS" not in os.environ:
        pytest.skip("faults of a whole federation take half an hour and more: `make faults SEEDS=2`")
    module = request.module.__name__.rpartition(".")[2]
    kept = os.environ.get("SGLR_FAULT_KEEP")
    home = Path(kept).absolute() / module if kept else tmp_path_factory.mktemp(module)
    with Federation(home, request.module.NODES) as up:
        yield up


@pytest.fixture(scope="session")
def lines(pytestconfig: pytest.Config) -> dict[str, Line]:
    """The table's lines by fault, for tests to add to."""
    return pytestconfig.stash.setdefault(_LINES, {})


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Print the table when all tests have ended, in whatever way."""
    if collected := config.stash.get(_LINES, {}):
        report(list(collected.values()))
