"""Submits a run to the SuperLink of a federation, follows it, and says how it ended."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from sglr_flower.federation import internals as flower
from sglr_flower.federation.client import Client, Outcome, Process, Submission, apart, outcome_of, watched
from sglr_flower.federation.connection import Connection
from sglr_flower.federation.processes import said_since

ASK_SECONDS = 20.0
"""How long a SuperLink that was reached before may be out of reach, when it is asked how a run ended."""

LINGER_SECONDS = 60.0
"""How long Flower may take to end a run that says itself that it has ended; then it is stopped."""

_STARTED = re.compile(rf"{flower.STARTED}(\d+)")
_ID_SECONDS = 15.0


def submit(run: Submission, connection: Connection) -> Outcome:
    """Run a Flower app on a federation and wait for its end; if this call ends early, the run is stopped.

    Parameters
    ----------
    run : Submission
        What is run.
    connection : Connection
        To the SuperLink.
    """
    run.log_file.parent.mkdir(parents=True, exist_ok=True)
    client, recorded = Client(apart(environment()), ASK_SECONDS, connection.name), dict[str, str]()
    with run.log_file.open("ab") as log:
        before = log.tell()
        with client.submitted(run, log.fileno()) as process:
            late = _Late(run)
            try:
                watched(run, lambda: process.poll() is None and not late())
                if not (run_id := _run_id(run, before)):
                    return outcome_of({}, run.log_file, before)
                recorded = _ended(client, run, run_id, late)
                if not recorded:
                    return Outcome(
                        False, f"the SuperLink at {connection.address} does not answer any more; its run may have ended"
                    )
            finally:
                if not recorded:
                    _stop(client, process, run, before)
    return outcome_of(recorded, run.log_file, before)


def environment() -> dict[str, str]:
    """The user's own, as the connections are in their FLWR_HOME."""
    quiet = {"FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    return {**quiet, **os.environ}


class _Late:
    """Whether a run has said long ago that it has ended."""

    def __init__(self, run: Submission) -> None:
        self._run, self._since = run, 0.0

    def __call__(self) -> bool:
        if not self._since and self._run.ended():
            self._since = time.monotonic()
        return bool(self._since) and time.monotonic() - self._since > LINGER_SECONDS


def _run_id(run: Submission, before: int) -> str:
    found = _STARTED.search(said_since(run.log_file, before))
    return found[1] if found else ""


def _ended(client: Client, run: Submission, run_id: str, late: Callable[[], bool]) -> dict[str, str]:
    """What the SuperLink knows of a run once it has ended; nothing if it cannot be reached any more.

    One that should have ended long ago is stopped.
    """
    deadline = time.monotonic() + ASK_SECONDS
    while time.monotonic() < deadline:
        if recorded := client.recorded(run_id):
            if recorded["status"].startswith(flower.FINISHED):
                return recorded
            if late():
                client.stop(run_id)
            deadline = time.monotonic() + ASK_SECONDS
        run.watch()
        time.sleep(1.0)
    return {}


def _stop(client: Client, process: Process, run: Submission, before: int) -> None:
    """Have the SuperLink stop the run, which may be about to be submitted at this moment."""
    deadline = time.monotonic() + _ID_SECONDS
    while not (run_id := _run_id(run, before)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if run_id:
        client.stop(run_id)
