"""A tracker in a process of its own: the observer in the run's process, and the other end.

The library may block for minutes, ask on the terminal, print, start threads or hang when the interpreter ends: here all
that costs the run nothing. Messages are JSON lines; the other end reads them at once, whatever its library does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from sglr_flower.files import write_atomic
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import RoundMetrics, figures
from sglr_flower.run.nodetable import printable
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.run.summary import Summary
from sglr_flower.run.track.tracker import TrackedRun, Tracker

FOLDER = "tracking"
"""Of the run directory: for each tracker its library's output, and what is needed to continue its run."""

END_SECONDS = 60.0
"""How long a tracker has to finish once the run has ended. A run's figures are a few kB, but MLflow's first database
takes it 10 s to make, and longer on a machine that is busy."""

SILENT_SECONDS = 2.0
"""How long of that passes before the user is told what the run waits for."""

STOP_SECONDS = 1.0
"""How long a run that was stopped waits; the tracker still has `END_SECONDS`, on its own."""

_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from sglr_flower.run.track.apart import serve
serve(sys.argv[2])
"""

_Say = Callable[[str], None]


class Apart:
    """The observer whose tracker is another process.

    Parameters
    ----------
    name : str
        The tracker's: a module of this folder.
    config : RunConfig
        The run's.
    directory : RunDirectory
        The run's.
    say : Callable[[str], None]
        Called with what the tracker has to say to the user.
    """

    def __init__(self, name: str, config: RunConfig, directory: RunDirectory, say: _Say) -> None:
        self._name, self._config, self._directory, self._say = name, config, directory, say
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._deadline: float | None = None

    def begin(self, rows: Sequence[RoundMetrics]) -> None:
        """Start the process; it records the rounds that it has not recorded yet."""
        folder = self._directory.path / FOLDER
        folder.mkdir(exist_ok=True)
        path = [*sys.path, str(Path(__file__).resolve().parents[3])]
        with (folder / f"{self._name}.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(path), self._name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                process_group=0,  # neither Ctrl-C nor the end of the run's group may cut it short: it ends by itself
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        run_dir, config = self._directory.path, self._config.values()
        self._tell({"run_dir": str(run_dir), "id": self._directory.run_id, "config": config})
        for row in rows:
            self.round(row)

    def round(self, row: RoundMetrics) -> None:
        """Hand a round over."""
        self._tell({"round": row.round, "figures": figures(row)})
        self._listen()

    def end(self, summary: Summary) -> None:
        """Hand the summary over."""
        self._deadline = time.monotonic() + END_SECONDS
        self._tell({"summary": dict(_flat(summary))})

    def close(self) -> None:
        """Wait for its end: after `end` until it is kept and sent, else a moment."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if self._deadline is None:
            ended = self._has_ended(STOP_SECONDS)
        elif not (ended := self._has_ended(min(SILENT_SECONDS, self._deadline - time.monotonic()))):
            self._say(f"{self._name}: it is given {END_SECONDS:g} s to finish")
            if not (ended := self._has_ended(self._deadline - time.monotonic())):
                self._kill()
                raise RuntimeError(f"it did not finish within {END_SECONDS:g} s of the run's end{self._see_log()}")
        if ended:
            self._listen()

    def _has_ended(self, seconds: float) -> bool:
        """Whether its process ends within this time."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))
        return self._process.returncode is not None

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has ended
            self._process.wait()
            self._listen()
            raise RuntimeError(f"its process has ended{self._see_log()}") from None

    def _listen(self) -> None:
        """Pass on what it has said by now.

        Raises
        ------
        RuntimeError
            If it has failed.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        *lines, self._heard = (self._heard + (self._process.stdout.read() or b"")).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "failed" in message:
                self._kill()
                raise RuntimeError(f"{message['failed']}{self._see_log()}")
            self._say(message["said"])
        if self._process.poll():
            raise RuntimeError(f"its process has ended{self._see_log()}")

    def _see_log(self) -> str:
        return f" (see {self._directory.path / FOLDER / self._name}.log)"

    def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _flat(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a summary, those of its tables by names such as ``client/samples``."""
    for name, value in summary.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def without_password(text: str) -> str:
    """A text with the URIs of servers and databases without user and password, for logs that others may read."""
    return re.sub(r"//[^/\s]*@", "//", text)


def serve(name: str) -> None:
    """Be the other process: messages on stdin, what is to be said on stdout."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what the library prints goes to the log

        def say(**message: str) -> None:
            shown = {kind: without_password(text) for kind, text in message.items()}
            with contextlib.suppress(OSError):  # the run's process has ended
                print(json.dumps(shown), file=out, flush=True)

        inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=_receive, args=(inbox,), daemon=True).start()
        try:
            _follow(name, inbox, lambda sentence: say(said=sentence))
        except BaseException as error:  # a library may also exit
            traceback.print_exc()
            say(failed=printable(f"{type(error).__name__}: {error}"))
    sys.stderr.flush()
    os._exit(0)  # what a library does at exit may wait for its network


def _receive(inbox: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Take messages as they come, so that the run never waits for the library; then see that this process ends."""
    for line in sys.stdin.buffer:
        inbox.put(json.loads(line))
    inbox.put(None)
    time.sleep(END_SECONDS)
    os._exit(1)


def _follow(name: str, inbox: queue.SimpleQueue[dict[str, Any] | None], say: _Say) -> None:
    """Hand messages to the tracker, each round once: also one that is trained again, as its run was lost after it."""
    first = inbox.get()
    if first is None:
        return
    run_dir = Path(first["run_dir"])
    file = run_dir / FOLDER / f"{name}.json"
    with FileLock(file.with_suffix(".lock")):  # of a run that is resumed at once the process before may still be busy
        kept = read_json(file)
        make: Callable[[TrackedRun], Tracker] = importlib.import_module(f"sglr_flower.run.track.{name}").Tracker
        tracker = make(TrackedRun(run_dir.name, first["id"], first["config"], kept))
        done = kept.setdefault("rounds", 0)
        write_atomic(file, json.dumps(kept).encode(), durable=False)
        say(f"{name}: {tracker.where}")
        summary = None
        while (message := inbox.get()) is not None:
            summary = message.get("summary")
            if summary is None and message["round"] > done:
                done = kept["rounds"] = message["round"]
                tracker.log(done, message["figures"])
                write_atomic(file, json.dumps(kept).encode(), durable=False)
        tracker.end(done, summary)
