"""Runs the cells of an experiment, several at once, each as an ``sglr`` process with a run directory of its own.

What is finished is read from the run directories alone, so a sweep that was stopped or killed at any moment is
continued by the same command: finished cells stay, those under way are resumed from their last checkpoint.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import tomli_w

from sglr_flower.errors import UserError
from sglr_flower.federation.processes import held, let_go
from sglr_flower.files import write_atomic
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.studies.leakage.record import is_attacked
from sglr_flower.studies.paper.cells import NOT_LEARNED, Cell
from sglr_flower.studies.paper.leash import GRACE_SECONDS
from sglr_flower.studies.paper.workers import Workers

Step = Literal["train", "attack"]
"""What a process does for a cell."""

_PLACES = ("run-dir", "data-dir", "resume")
"""Keys that say where a run is and that it goes on, and nothing of what is trained."""

_POLL_SECONDS = 0.1
_REASON_LINES = 3


@dataclass(frozen=True)
class Failure:
    """A cell that ended without a result: why, and the file with all that it said."""

    cell: Cell
    reason: str
    log: Path


@dataclass(frozen=True)
class Running:
    """A cell under way: what is done for it, in which place, its process, and where its output begins in its log.

    ``started`` is when the first of its steps in this call was.
    """

    cell: Cell
    step: Step
    run_dir: Path
    place: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def update(self, running: Sequence[Running]) -> None:
        """Called several times a second with the cells under way."""

    def finished(self, running: Running) -> None:
        """A cell has its result."""

    def failed(self, failure: Failure) -> None:
        """A cell has ended without one."""


def run_dir(folder: Path, cell: Cell) -> Path:
    """A cell's run directory in a sweep's folder."""
    return folder / "cells" / cell.name


def is_finished(folder: Path, cell: Cell) -> bool:
    """Whether a sweep's folder holds all of a cell's results."""
    return _step(folder, cell) is None


def _step(folder: Path, cell: Cell) -> Step | None:
    """What is to be done next for a cell; None: it is finished."""
    directory = run_dir(folder, cell)
    if not RunDirectory(directory).is_finished():
        return "train"
    return "attack" if cell.attack and not is_attacked(directory, cell.config) else None


def check_same(folder: Path, cells: Sequence[Cell]) -> None:
    """Find out whether the runs that are there are of these cells.

    Raises
    ------
    UserError
        If one has other settings, because of another scale, say, or of defaults that have changed since.
    """
    for cell in cells:
        directory = run_dir(folder, cell)
        if not _is_started(directory):
            continue
        saved, wanted = RunDirectory(directory).read_config().values(), cell.config.values()
        for key, value in wanted.items():
            if key not in NOT_LEARNED and saved[key] != value:
                raise UserError(
                    f"{directory} holds a run with {key} = {saved[key]!r}, but this sweep's cell has {value!r}: "
                    "give another --out"
                )


@contextmanager
def locked(folder: Path, patience: float = GRACE_SECONDS + 5) -> Iterator[int]:
    """Hold a sweep's folder; gives the lock's file descriptor, for the processes that must end before it is free.

    ``flock`` itself and not filelock, because the lock has to be inherited: after a SIGKILL of the sweep the folder is
    free when its last cell has ended, and not before; ``patience`` is how many seconds to wait for that.

    Raises
    ------
    UserError
        If another sweep is working in it.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, folder, patience)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(f"another sweep is working in {folder} (--out): wait for it or stop it") from None
            time.sleep(_POLL_SECONDS)
        else:
            return


def run(cells: Sequence[Cell], folder: Path, lock: int, workers: Workers, watcher: Watcher) -> list[Failure]:
    """Run the cells that are not finished.

    Whatever ends this call, Ctrl-C included, ends the cells under way in good order first.

    Parameters
    ----------
    cells : Sequence[Cell]
        In the order in which they are begun.
    folder : Path
        Of the sweep; a cell's run directory and log are in ``cells/``.
    lock : int
        From `locked`.
    workers : Workers
        Where and how cells run.
    watcher : Watcher
        Told how it goes.

    Returns
    -------
    list[Failure]
        Of the cells that have no result; the others were run nevertheless.
    """
    pending = deque(cell for cell in cells if not is_finished(folder, cell))
    begun: dict[str, float] = {}
    free = deque(range(workers.jobs))
    running: list[Running] = []
    failures: list[Failure] = []
    try:
        while pending or running:
            while pending and free:
                cell = pending.popleft()
                begun.setdefault(cell.name, time.monotonic())
                running.append(_start(cell, folder, lock, workers, free.popleft(), begun[cell.name]))
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                free.append(ended.place)
                step = _step(folder, ended.cell)
                if step is None:
                    watcher.finished(ended)
                elif step != ended.step:
                    pending.appendleft(ended.cell)
                else:
                    failures.append(Failure(ended.cell, _reason(ended), ended.log))
                    watcher.failed(failures[-1])
            watcher.update(running)
            time.sleep(_POLL_SECONDS)
    finally:
        let_go([cell.process for cell in running], GRACE_SECONDS + 5)
    return failures


def _start(cell: Cell, folder: Path, lock: int, workers: Workers, place: int, started: float) -> Running:
    directory, step = run_dir(folder, cell), _step(folder, cell)
    assert step is not None
    if step == "attack":
        command = workers.attack(directory)
    elif _is_started(directory):
        command = workers.resume(directory)
    else:
        _put_aside(directory)
        config = directory.with_name(f"{cell.name}.toml")
        values = {key: value for key, value in cell.config.values().items() if key not in _PLACES}
        write_atomic(config, tomli_w.dumps(values).encode())
        command = workers.train(config, directory)
    log_file = directory.with_name(f"{cell.name}.log")
    leash = [sys.executable, "-m", "sglr_flower.studies.paper.leash", *command]
    with log_file.open("ab") as log:
        log_start = log.tell()
        process = held(leash, workers.environment(place), log.fileno(), subprocess.STDOUT, [lock])
    return Running(cell, step, directory, place, process, log_file, log_start, started)


def _is_started(directory: Path) -> bool:
    """Whether a run has begun to be written there; ``launch.toml`` is the last of the files that make a run."""
    return (directory / "launch.toml").exists() or (directory / "metrics.csv").exists()


def _put_aside(directory: Path) -> None:
    """Rename what a process left that was killed while it made its run directory."""
    if not (directory / "config.toml").exists():
        return
    for number in itertools.count(1):
        aside = directory.with_name(f"{directory.name}.unstarted-{number}")
        if not aside.exists():
            directory.rename(aside)
            return


def _reason(ended: Running) -> str:
    """What a cell said of its failure: the sentence of `sglr`, else its last lines."""
    with ended.log.open("rb") as file:
        file.seek(ended.log_start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    sentences = [line.removeprefix("sglr: ") for line in lines if line.startswith("sglr: ")]
    if sentences:
        return sentences[-1]
    said = " / ".join(lines[-_REASON_LINES:]) or "it said nothing"
    return f"exit status {ended.process.returncode}: {said}"
