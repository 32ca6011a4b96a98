"""Flower's command ``flwr``: it hands a run to a SuperLink, asks how it ended, stops it, and registers nodes.

``flwr run`` exits 0 whatever became of the run, and its log stream ends with the connection; so the SuperLink is asked
in the end.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sglr_flower.errors import UserError
from sglr_flower.federation import internals as flower
from sglr_flower.federation.processes import complaint, ended_with_block, said_since, script

WATCH_SECONDS = 0.25
"""Between two looks at a run."""

_RAISED = re.compile(r"^(?:\w+\.)*(\w+): (.+?)\s*$", re.MULTILINE)


class Process(Protocol):
    """What is asked of a process of ``flwr``, as `subprocess.Popen` answers it."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status once it has ended."""


Start = Callable[[Sequence[str], int, int], AbstractContextManager[Process]]
"""Starts ``flwr`` with arguments and the files of stdout and stderr, until the end of a block at the latest."""


@dataclass(frozen=True)
class Submission:
    """A Flower app that is to be run.

    Attributes
    ----------
    app_dir : Path
        Directory of the app's ``pyproject.toml``.
    run_config : Path
        TOML file with the run-config.
    log_file : Path
        File to which everything the run logs is appended.
    watch : Callable[[], None]
        Called every `WATCH_SECONDS` while the run lasts.
    ended : Callable[[], bool]
        Whether the run itself says that it has ended; never, where nobody here can know.
    """

    app_dir: Path
    run_config: Path
    log_file: Path
    watch: Callable[[], None]
    ended: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    succeeded : bool
        Whether the SuperLink recorded the run as completed; the exit code of ``flwr run`` says nothing of that.
    reason : str
        Empty on success, otherwise one sentence saying why the run failed.
    """

    succeeded: bool
    reason: str


@dataclass(frozen=True)
class Client:
    """``flwr`` for one SuperLink.

    Attributes
    ----------
    start : Start
        How it is started.
    patience : float
        Seconds that the SuperLink may take for an answer.
    superlink : str
        The name of its connection in FLWR_HOME; empty: the only one there.
    """

    start: Start
    patience: float
    superlink: str = ""

    @contextlib.contextmanager
    def submitted(self, run: Submission, log: int, *options: str) -> Iterator[Process]:
        """Submit a run; the process that logs it to an open file, until the run or the block ends."""
        command = ["run", str(run.app_dir), *self._where(), "--stream", "--run-config", str(run.run_config), *options]
        with self.start(command, log, log) as process:
            yield process

    def recorded(self, run_id: str = "") -> dict[str, str]:
        """What the SuperLink knows of a run, or of the only one that it has; nothing if it has none or is not there."""
        one = ["--run-id", run_id] if run_id else []
        with contextlib.suppress(ValueError, LookupError, subprocess.TimeoutExpired):
            run: dict[str, str] = json.loads(self._said(["ls", *self._where(), *one, "--format", "json"]))["runs"][0]
            return run
        return {}

    def stop(self, run_id: str) -> None:
        """Have the SuperLink stop a run, if it answers."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._said(["stop", run_id, *self._where()])

    def register(self, key: Path) -> None:
        """Tell the SuperLink of a node's public key, whose file has the node's name; again does no harm.

        Raises
        ------
        UserError
            If it does not answer, or does not take the key.
        """
        try:
            answer = self._said(
                ["supernode", "register", str(key), *self._where(), "--name", key.stem, "--format", "json"]
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"the SuperLink did not answer when {key} was registered; it is tried again") from None
        # It has no error code of its own for a key that the database has.
        if flower.REGISTERED not in answer and flower.KEY_KNOWN not in answer:
            raise UserError(f"the SuperLink did not take {key}: {' '.join(answer.split())}")

    def _where(self) -> list[str]:
        return [self.superlink] if self.superlink else []

    def _said(self, arguments: Sequence[str]) -> str:
        with (
            tempfile.TemporaryFile() as out,
            self.start(arguments, out.fileno(), subprocess.DEVNULL) as process,
        ):
            process.wait(self.patience)
            out.seek(0)
            return out.read().decode(errors="replace")


def apart(env: Mapping[str, str]) -> Start:
    """``flwr`` as a process of its own, with an environment; Ctrl-C in a terminal does not reach it."""

    def start(arguments: Sequence[str], stdout: int, stderr: int) -> AbstractContextManager[Process]:
        return ended_with_block(
            subprocess.Popen(
                [script("flwr"), *arguments],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                process_group=0,
            )
        )

    return start


def watched(run: Submission, goes_on: Callable[[], bool]) -> None:
    """Call a run's `watch` for as long as it goes on, and once more."""
    while goes_on():
        run.watch()
        time.sleep(WATCH_SECONDS)
    run.watch()


def outcome_of(recorded: Mapping[str, str], log_file: Path, before: int) -> Outcome:
    """How a run ended, from what the SuperLink recorded (an entry of ``flwr ls``; empty: it never got the run).

    Parameters
    ----------
    recorded : mapping of str to str
        The entry.
    log_file, before
        The run's log, and its size before the run.
    """
    status = recorded.get("status", "")
    if status == flower.COMPLETED:
        return Outcome(True, "")
    if not recorded:
        return Outcome(False, f"Flower did not take the run: {complaint(log_file, before)}")
    details = recorded["status-details"].removeprefix(flower.DETAILS).strip()
    said = said_since(log_file, before)
    return Outcome(False, _raised(details, said) or f"The run ended as {status}, {details} (see {log_file}).")


def _raised(details: str, said: str) -> str:
    """Return the exception that ended the run as "name: message", or nothing where the log holds none."""
    for found in reversed(list(_RAISED.finditer(said))):
        name, line = found.groups()
        if line not in flower.WRAPPERS and (details in flower.WRAPPERS or details.startswith(line)):
            message = " ".join((line if details in flower.WRAPPERS else details).split())  # details has all its lines
            return message if name == UserError.__name__ else f"{name}: {message}"
    return ""
