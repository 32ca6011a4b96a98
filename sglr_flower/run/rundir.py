"""The run directory: what a run writes, for people, reports and resume.

``config.toml`` (the resolved run-config), ``metrics.csv`` (one row per round), ``nodes.csv`` (one row per node and
attempt of a round), ``summary.json``, ``checkpoints/``, and ``status.json``, which says at any moment how far the run
is.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock, Timeout

from sglr_flower.errors import UserError
from sglr_flower.files import is_full, write_atomic
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import History, RoundMetrics, columns
from sglr_flower.run.nodetable import NodeRow, from_csv, to_csv
from sglr_flower.run.settings import read_config, read_toml
from sglr_flower.run.summary import Summary
from sglr_flower.run.summary import read as read_summary

if TYPE_CHECKING:
    from sglr_flower.run.checkpoint import Checkpoint

STATUS_INTERVAL = 0.2
"""Seconds between two writes of ``status.json`` within a round: often enough to watch, too rare to cost."""

UNDER_WAY = ("starting", "training")
"""States in ``status.json`` of a run whose process is alive; the others are ``finished`` and ``failed``."""

LAUNCH = "launch.toml"
"""File that says how `sglr run` started the run, for `sglr resume`."""

KEPT_IMAGES = "images.safetensors"
"""What `data.imagecache` keeps while the run lasts."""

LOCK_SECONDS = 10.0
"""How long to wait for a folder: processes of a run that was killed take a few seconds to be gone."""


def new_run_dir(parent: Path | None, config: RunConfig) -> Path:
    """Make a new directory in ``parent`` (None: the user's data folder), named by time, method and data set.

    Raises
    ------
    UserError
        If it cannot be made.
    """
    parent = parent or platformdirs.user_data_path("sglr-flower") / "runs"
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.method}-{config.dataset}".replace(":", "-")  # of an import path
    for number in itertools.count(1):
        path = parent.absolute() / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)  # two runs of the same second get two directories
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"run directory {path} (run-dir) cannot be written: {error.strerror or error}") from None
        return path
    raise AssertionError("unreachable")


class RunDirectory:
    """One run's folder.

    Parameters
    ----------
    path : Path
        Absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")
        self._status: dict[str, Any] = {}
        self._status_due = 0.0

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def _nodes_file(self) -> Path:
        return self.path / "nodes.csv"

    @property
    def run_id(self) -> str:
        """What nodes file their own checkpoints of this run under: 32 hexadecimal digits, the same when resumed."""
        return (self.path / "run-id").read_text(encoding="utf-8")

    def claim(self, config: RunConfig) -> None:
        """Make the folder a new run's, by creating its config: of two that try, one succeeds.

        Raises
        ------
        UserError
            If it cannot be written, or holds a run already; nothing in it is touched.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A link is made whole or not at all, and not over another: killed here, the folder is still free.
            partial = self.path / f".config.{secrets.token_hex(4)}.toml"
            partial.write_text(config.to_toml(), encoding="utf-8")
            try:
                self._link(partial, self.path / "config.toml")
            finally:
                partial.unlink()
            write_atomic(self.path / "run-id", secrets.token_hex(16).encode())
        except FileExistsError:
            raise UserError(
                f"run directory {self.path} (run-dir) holds another run: give a new one, or continue that run with "
                f"`sglr resume {self.path}`"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run directory {self.path} (run-dir) cannot be written: {reason}") from None

    @staticmethod
    def _link(partial: Path, path: Path) -> None:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError:  # exFAT, a cloud's or a phone's folder: no links, so that half of it may be seen for a moment
            with path.open("xb") as file:
                file.write(partial.read_bytes())

    def read_config(self) -> RunConfig:
        """The resolved config of the run in this folder.

        A model or method of the user's own is looked for where the run was started, too.

        Raises
        ------
        UserError
            If the folder holds no run, or its config is damaged.
        """
        if not (self.path / "config.toml").is_file():
            raise UserError(f"{self.path} is not a run directory: it has no config.toml")
        launch = self.path / LAUNCH
        code_dir = str(read_toml(launch).get("code_dir", "")) if launch.exists() else ""
        if code_dir and code_dir not in sys.path:
            sys.path.append(code_dir)
        try:
            values = read_config(self.path / "config.toml")
            if values.get("dataset") == "folder":  # before there were these keys images were read so
                values = {"ground": "none", "levels": "16", **values}
            return RunConfig.parse({**values, "run-dir": str(self.path)})  # it may have been moved
        except UserError as error:
            raise UserError(f"{self.path / 'config.toml'} cannot be used: {error}") from None

    @contextmanager
    def session(self, config: RunConfig) -> Iterator[None]:
        """Train in the folder: it is this process's until the block ends, and its status says how that was.

        Raises
        ------
        UserError
            If another process is training in it, or it holds another run.
        """
        if not config.resume and not (self.path / "config.toml").exists():
            self.claim(config)
        self._check_same(config)
        self._take()
        try:
            if not config.resume and (self.path / "metrics.csv").exists():
                raise UserError(f"run directory {self.path} (run-dir) holds another run: give a new one")
            self.status(state="starting", pid=os.getpid(), rounds=config.num_server_rounds)
            import torch.utils.tensorboard  # noqa: F401 - half a second, while the nodes start

            yield
            (self.path / KEPT_IMAGES).unlink(missing_ok=True)
            self.status(state="finished")
        except OSError as error:
            told = UserError(self._full(error)) if is_full(error) else error
            self._failed(told)
            raise told from error
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._lock.release()

    def _failed(self, error: BaseException) -> None:
        if not self._status:
            return
        # Ctrl-C, an exit, and Flower's own sign that the run was stopped are no `Exception`.
        failed = isinstance(error, Exception)
        words = (str(error) or type(error).__name__) if failed else "it was stopped"
        try:
            self.status(state="failed", error=words)
        except OSError:  # not one more file has room: in the place of the one that is there
            (self.path / "status.json").write_text(json.dumps(self._status), encoding="utf-8")

    def _full(self, error: OSError) -> str:
        from sglr_flower.run import checkpoint

        checkpoint.discard_unfinished(self.checkpoints)
        rounds = checkpoint.rounds(self.checkpoints)
        whole = f"the checkpoint of round {rounds[0]} is whole" if rounds else "there is no checkpoint yet"
        return (
            f"the disk of the run directory {self.path} is full ({error.filename or error.strerror} could not be "
            f"written), and {whole}: make room, then go on with `sglr resume {self.path}`"
        )

    def _check_same(self, config: RunConfig) -> None:
        saved = self.read_config().values()
        same_place = {"run-dir", "resume"}  # a run directory may have been moved
        changed = [key for key, value in config.values().items() if saved[key] != value and key not in same_place]
        if changed:
            raise UserError(
                f"run directory {self.path} (run-dir) holds a run with other settings: {', '.join(changed)}"
            )

    def check_free(self) -> None:
        """Find out whether another process is training in the folder.

        Raises
        ------
        UserError
            If so.
        """
        self._take()
        self._lock.release()

    def is_abandoned(self) -> bool:
        """Whether the process that was training here is gone although its status says that it trains."""
        if read_json(self.path / "status.json").get("state") not in UNDER_WAY:
            return False
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        self._lock.release()
        # It may have ended well between the two looks.
        return read_json(self.path / "status.json").get("state") in UNDER_WAY

    def _take(self) -> None:
        try:
            self._lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise UserError(f"another process is training in {self.path}: wait for it or stop it") from None
        except OSError as error:
            raise UserError(f"run directory {self.path} (run-dir) cannot be written: {error.strerror}") from None

    def begin(self, history: History) -> None:
        """Begin to record: ``metrics.csv`` holds exactly the rounds of ``history``, ``nodes.csv`` no others."""
        names = columns(history.score)
        write_atomic(self.path / "metrics.csv", _csv_rows([dict(zip(names, names, strict=True))]))
        if said := history.score.to_json():  # for who reads a run that is not finished
            self.status(**said)
        for row in history.rows:
            self._append(row)
        if self._nodes_file.exists():  # a run without Flower has none
            done = {row.round for row in history.rows}
            kept = [row for row in self.nodes() if row.round in done]
            write_atomic(self._nodes_file, to_csv(kept, header=True).encode())

    def record(self, row: RoundMetrics) -> None:
        """Add a round to ``metrics.csv``."""
        self._append(row)

    def record_origin(self, origin: Mapping[str, str]) -> None:
        """Add what trains from here on to ``origin.json``; a run that is resumed may have several."""
        there = self.origins()
        if not there or there[-1] != origin:
            write_atomic(self.path / "origin.json", (json.dumps({"origins": [*there, origin]}) + "\n").encode())

    def origins(self) -> list[dict[str, str]]:
        """What `record_origin` wrote, the first one first; empty of a run of a version that did not."""
        return list(read_json(self.path / "origin.json").get("origins", []))

    def keep_places(self, count: int) -> None:
        """Write over how many nodes the clients are spread; 0: not over nodes that have numbers."""
        write_atomic(self.path / "places.json", json.dumps({"places": count}).encode())

    def places(self) -> int:
        """What `keep_places` wrote; 0 if nothing."""
        return int(read_json(self.path / "places.json").get("places", 0))

    def record_nodes(self, rows: Sequence[NodeRow]) -> None:
        """Add the nodes of an attempt of a round to ``nodes.csv``."""
        with self._nodes_file.open("ab") as file:
            file.write(to_csv(rows, header=file.tell() == 0).encode())

    def nodes(self) -> list[NodeRow]:
        """The rows of ``nodes.csv``, in the order in which they were recorded; empty if there is no such file."""
        if not self._nodes_file.exists():
            return []
        return from_csv(self._nodes_file.read_text(encoding="utf-8", errors="replace"))

    def status(self, *, force: bool = True, **changes: Any) -> None:
        """Write ``status.json``: the last status with ``changes``; without ``force`` only now and then."""
        self._status.update(changes)
        now = time.monotonic()
        if force or now >= self._status_due:
            self._status_due = now + STATUS_INTERVAL
            write_atomic(self.path / "status.json", json.dumps(self._status).encode(), durable=False)

    def finish(self, summary: Summary) -> None:
        """Write ``summary.json``, with which the run is finished."""
        write_atomic(self.path / "summary.json", (json.dumps(summary.to_json(), indent=2) + "\n").encode())

    def summary(self) -> Summary:
        """What the run came to.

        Raises
        ------
        UserError
            If its summary is damaged, or there is none, as the run is not finished.
        """
        return read_summary(self.path / "summary.json")

    def is_finished(self) -> bool:
        """Whether there is a summary that can be read; a damaged one is made again by whoever continues the run."""
        try:
            self.summary()
        except UserError:
            return False
        return True

    def take_images(self, folder: Path) -> None:
        """Take the images that were kept in a folder while the run was checked, so that it need not decode them."""
        if (folder / KEPT_IMAGES).exists():
            shutil.move(folder / KEPT_IMAGES, self.path / KEPT_IMAGES)

    def partition(self, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Write ``partition.json``: the class names, and for each client its number of samples of each class."""
        content = {"classes": list(classes), "counts": [list(row) for row in counts]}
        write_atomic(self.path / "partition.json", (json.dumps(content) + "\n").encode())

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint (see `checkpoint.latest`)."""
        from sglr_flower.run import checkpoint  # torch, which `sglr run` does without

        return checkpoint.latest(self.checkpoints)

    def _append(self, row: RoundMetrics) -> None:
        with (self.path / "metrics.csv").open("ab") as file:
            file.write(_csv_rows([row.named()]))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty if there is none (yet)."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _csv_rows(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, list(rows[0]), lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
