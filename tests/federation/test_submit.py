"""A run that has ended, and whose command or SuperLink does not: against a stand-in for the command ``flwr``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sglr_flower.federation import submit
from sglr_flower.federation.client import Process, Start, Submission
from sglr_flower.federation.connection import Connection
from sglr_flower.federation.processes import ended_with_block

FLWR = """
import json, pathlib, sys, time
here, command = pathlib.Path(sys.argv[1]), sys.argv[2]
if command == "run":
    print("Successfully started run 77", flush=True)
    time.sleep(600)
if command == "stop":
    (here / "stopped").write_text(sys.argv[3])
status = "finished:stopped" if (here / "stopped").exists() else "running"
print(json.dumps({"runs": [{"status": status, "status-details": "stopped by user"}]}))
"""


def stand_in(folder: Path) -> Start:
    def start(arguments: Sequence[str], stdout: int, stderr: int) -> AbstractContextManager[Process]:
        command = [sys.executable, "-c", FLWR, str(folder), *arguments]
        return ended_with_block(subprocess.Popen(command, stdout=stdout, stderr=stderr))

    return start


def test_a_run_that_has_ended_and_that_flower_goes_on_with_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "apart", lambda env: stand_in(tmp_path))
    monkeypatch.setattr(submit, "LINGER_SECONDS", 1.0)
    log = tmp_path / "flower.log"
    run = Submission(tmp_path, tmp_path / "c.toml", log, lambda: None, lambda: log.exists() and "77" in log.read_text())
    outcome = submit.submit(run, Connection("lab", "127.0.0.1:1", ""))
    assert (tmp_path / "stopped").read_text() == "77"
    assert not outcome.succeeded
    assert "finished:stopped" in outcome.reason
