"""What a command costs, with all that it starts: time, processor time, processes and memory, looked at from outside.

Processes are known by a variable in their environment, whoever their parent is: Flower's SuperLink is started in a
session of its own, and a fork has no command line of its own. The kernel keeps a process's processor time only as long
as there is the process, so that it is looked at every few hundredths of a second, and what is used after the last look
is lost: at most one interval of each process, and all of a process that lives shorter than one.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

MARK = "SGLR_BENCHMARK_PROCESS"
"""Environment variable by which the processes are known."""
FIRST_STEP = "SGLR_BENCHMARK_FIRST_STEP"
"""Environment variable with the file in which a network tells of its first step (`benchmarks.peers.networks`)."""
SECONDS_BETWEEN_LOOKS = 0.025
SECONDS_BETWEEN_LOOKS_AT_MEMORY = 0.2
_YOUNG_SECONDS = 2.0
"""Until then a process may be a fork that has yet to become what it is started for, with another environment."""


@dataclass(frozen=True)
class Cost:
    """What a command cost until it ended.

    Attributes
    ----------
    seconds, seconds_to_first_step : float
        Wall time.
    processor_seconds, processor_seconds_to_first_step : float
        Of all its processes, in user and kernel mode; of those that had been there before only what came since.
    processes : int
        Largest number at one moment.
    pss_bytes, rss_bytes : int
        Largest sum over all processes at one moment of their proportional and of their resident set sizes: the former
        shares pages out among those that have them, the latter counts them for each. 0 where not looked at.
    processor_seconds_of : dict[str, float]
        Name of a process, as `top` shows it -> the processor time of all that are called so.
    """

    seconds: float
    seconds_to_first_step: float
    processor_seconds: float
    processor_seconds_to_first_step: float
    processes: int
    pss_bytes: int
    rss_bytes: int
    processor_seconds_of: dict[str, float]


class Marked:
    """Processes with a mark of their own; all of them end with the block.

    Parameters
    ----------
    home : Path
        Folder for what the commands say (``log``), and for the time of the first step.
    """

    def __init__(self, home: Path) -> None:
        self._mark, self._first_step = secrets.token_hex(8), home / "first-step"
        self.log = home / "log"
        self._known: dict[int, _Known] = {}

    def __enter__(self) -> Marked:
        return self

    def __exit__(self, *_: object) -> None:
        while left := [process for process in self.find() if is_alive(process)]:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1)

    def run(
        self,
        command: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        *,
        memory: bool = False,
        timeout: float = 1800,
    ) -> Cost:
        """Run a command to its end.

        Parameters
        ----------
        command : Sequence[str]
            Its command line.
        folder : Path
            Where it runs.
        env : Mapping[str, str]
            Its environment, but for the mark.
        memory : bool
            Whether memory is looked at, for which the kernel walks through all pages, so that it costs time.
        timeout : float
            Seconds that it may take.

        Raises
        ------
        RuntimeError
            If it failed, made no step or took too long, with what it said.
        """
        self._first_step.unlink(missing_ok=True)
        seen = _Seen(self._look())
        marked = {**env, MARK: self._mark, FIRST_STEP: str(self._first_step)}
        started = time.monotonic()
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=marked, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            look_at_memory = started if memory else float("inf")
            while process.poll() is None and time.monotonic() - started < timeout:
                seen.take(self._look())
                if time.monotonic() >= look_at_memory:
                    seen.take_memory(list(self.find()))
                    look_at_memory = time.monotonic() + SECONDS_BETWEEN_LOOKS_AT_MEMORY
                time.sleep(SECONDS_BETWEEN_LOOKS)
            seconds = time.monotonic() - started
            seen.take(self._look())
        finally:
            process.terminate()  # of no effect where it has ended by itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        if process.returncode or not self._first_step.exists():
            said = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"exit status {process.returncode}: {' '.join(command)}\n{said}")
        return seen.cost(started, seconds, float(self._first_step.read_text(encoding="utf-8")))

    def find(self) -> Iterator[psutil.Process]:
        """Those that are there, and those that have ended and are not asked for yet."""
        pids = set(psutil.pids())
        self._known = {pid: known for pid, known in self._known.items() if pid in pids}
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                if pid not in self._known:
                    self._known[pid] = _Known(psutil.Process(pid))
                known = self._known[pid]
                if not known.ours and time.time() < known.until:
                    known.ours = known.process.environ().get(MARK) == self._mark
                if known.ours:
                    yield known.process

    def _look(self) -> dict[psutil.Process, _Look]:
        found = {}
        for process in self.find():
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                alive = process.status() != psutil.STATUS_ZOMBIE
                found[process] = _Look(process.name(), times.user + times.system, alive)
        return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended, be it that nobody has asked for its exit status."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class _Known:
    """A process, and whether it is ours, which can become true ``until`` a time."""

    def __init__(self, process: psutil.Process) -> None:
        self.process, self.ours = process, False
        self.until = max(process.create_time() + _YOUNG_SECONDS, time.time() + 0.01)


class _Look(NamedTuple):
    """A process at one moment; one that has ended is there until its parent has asked for its exit status."""

    name: str
    processor_seconds: float
    alive: bool


@dataclass
class _Seen:
    """What has been seen of a command's processes; ``before``: what there was of them before it began."""

    before: Mapping[psutil.Process, _Look]
    times: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    last: dict[psutil.Process, _Look] = field(default_factory=dict)
    processes: int = 0
    pss: int = 0
    rss: int = 0

    def take(self, look: Mapping[psutil.Process, _Look]) -> None:
        self.last |= look
        self.times.append(time.monotonic())
        self.totals.append(sum(self._used(process) for process in self.last))
        self.processes = max(self.processes, sum(one.alive for one in look.values()))

    def take_memory(self, processes: Sequence[psutil.Process]) -> None:
        pss = rss = 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                held = process.memory_full_info()
                pss, rss = pss + held.pss, rss + held.rss
        self.pss, self.rss = max(self.pss, pss), max(self.rss, rss)

    def cost(self, started: float, seconds: float, first_step: float) -> Cost:
        named: dict[str, float] = defaultdict(float)
        for process, look in self.last.items():
            named[look.name] += self._used(process)
        return Cost(
            seconds=seconds,
            seconds_to_first_step=first_step - started,
            processor_seconds=self.totals[-1],
            processor_seconds_to_first_step=float(np.interp(first_step, self.times, self.totals)),
            processes=self.processes,
            pss_bytes=self.pss,
            rss_bytes=self.rss,
            processor_seconds_of={name: round(named[name], 2) for name in sorted(named, key=lambda name: -named[name])},
        )

    def _used(self, process: psutil.Process) -> float:
        earlier = self.before.get(process)
        return self.last[process].processor_seconds - (earlier.processor_seconds if earlier else 0.0)
