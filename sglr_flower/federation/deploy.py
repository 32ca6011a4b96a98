"""Submits a run to the SuperLink of a federation, follows it, and says how it ended.

``flwr run`` exits 0 whatever became of the run, and its log stream ends with the connection; so the SuperLink is asked
in the end, by the run's id.
"""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from sglr_flower.federation import internals as flower
from sglr_flower.federation.connection import Connection
from sglr_flower.federation.launch import Outcome, outcome_of
from sglr_flower.federation.processes import said_since, script

ASK_SECONDS = 20.0
"""How long a SuperLink that was reached before may be out of reach, when it is asked how a run ended."""

_STARTED = re.compile(rf"{flower.STARTED}(\d+)")
_ID_SECONDS = 15.0


def submit(
    app_dir: Path,
    connection: Connection,
    run_config: Path,
    log_file: Path,
    watch: Callable[[], None],
    interval: float = 0.25,
) -> Outcome:
    """Run a Flower app on a federation and wait for its end; if this call ends early, the run is stopped.

    Parameters
    ----------
    app_dir : Path
        Directory of the app's ``pyproject.toml``.
    connection : Connection
        To the SuperLink.
    run_config : Path
        TOML file with the run-config.
    log_file : Path
        File to which everything the run logs is appended.
    watch : Callable[[], None]
        Called every `interval` seconds while the run lasts.
    interval : float
        Seconds between two calls of `watch`.

    Returns
    -------
    Outcome
        What the SuperLink recorded about the run.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log_file.touch()
    before = log_file.stat().st_size
    run_id, recorded = "", dict[str, str]()
    command = ["run", str(app_dir), connection.name, "--stream", "--run-config", str(run_config)]
    with log_file.open("ab") as log, _flwr(command, log) as client:
        try:
            while client.poll() is None:
                watch()
                time.sleep(interval)
            watch()
            run_id = _run_id(log_file, before)
            if not run_id:
                return outcome_of({}, log_file, before)
            recorded = _ended(connection, run_id, watch)
            if not recorded:
                return Outcome(
                    False, f"the SuperLink at {connection.address} does not answer any more; its run may have ended"
                )
        finally:
            if not recorded:
                _stop(connection, client, log_file, before)
    return outcome_of(recorded, log_file, before)


def _environment() -> dict[str, str]:
    """The user's own, as the connections are in their FLWR_HOME."""
    quiet = {"FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    return {**quiet, **os.environ}


@contextlib.contextmanager
def _flwr(arguments: list[str], stdout: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    client = subprocess.Popen(
        [script("flwr"), *arguments],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        process_group=0,  # Ctrl-C reaches this process alone, which then stops the run
    )
    try:
        yield client
    finally:
        client.terminate()
        client.wait()


def _run_id(log_file: Path, before: int) -> str:
    found = _STARTED.search(said_since(log_file, before))
    return found[1] if found else ""


def _ended(connection: Connection, run_id: str, watch: Callable[[], None]) -> dict[str, str]:
    """What the SuperLink knows of a run once it has ended; nothing if it cannot be reached any more."""
    deadline = time.monotonic() + ASK_SECONDS
    while time.monotonic() < deadline:
        if run := _ask(connection, run_id):
            if run["status"].startswith(flower.FINISHED):
                return run
            deadline = time.monotonic() + ASK_SECONDS
        watch()
        time.sleep(1.0)
    return {}


def _ask(connection: Connection, run_id: str) -> dict[str, str]:
    command = [script("flwr"), "ls", connection.name, "--run-id", run_id, "--format", "json"]
    with contextlib.suppress(ValueError, LookupError, subprocess.TimeoutExpired):
        listing = subprocess.run(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_SECONDS,
            check=False,
            process_group=0,
        ).stdout
        run: dict[str, str] = json.loads(listing)["runs"][0]
        return run
    return {}


def _stop(connection: Connection, client: subprocess.Popen[bytes], log_file: Path, before: int) -> None:
    """Have the SuperLink stop the run, which may be about to be submitted at this moment."""
    deadline = time.monotonic() + _ID_SECONDS
    while not (run_id := _run_id(log_file, before)) and client.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if run_id:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [script("flwr"), "stop", run_id, connection.name],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=ASK_SECONDS,
                check=False,
                process_group=0,  # a second Ctrl-C would end it
            )
