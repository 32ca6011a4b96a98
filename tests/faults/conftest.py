"""One federation for the whole suite, and its table at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.harness import NODES, Federation
from faults.table import Line, report


@pytest.fixture(scope="session")
def seeds() -> int:
    """How often each fault is injected."""
    return int(os.environ.get("SGLR_FAULT_SEEDS", "2"))


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """SuperLink and SuperNodes, up until the last test that uses them has ended."""
    kept = os.environ.get("SGLR_FAULT_KEEP")
    home = Path(kept).absolute() if kept else tmp_path_factory.mktemp("federation")
    with Federation(home, NODES) as up:
        yield up


@pytest.fixture(scope="session")
def lines(pytestconfig: pytest.Config) -> Iterator[dict[str, Line]]:
    """The table's lines by fault; printed when the suite has ended."""
    collected: dict[str, Line] = {}
    yield collected
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        report(list(collected.values()))
