"""Reads back what trackers have written, from the stores that they keep without a network."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Stored:
    """A run as it was found: figures of each step in the order in which they were written, the settings, its end."""

    rounds: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    ended_well: bool | None = None


def of_mlflow(home: Path) -> dict[str, Stored]:
    from mlflow import MlflowClient

    client, runs = MlflowClient(f"sqlite:///{home}/mlflow.db"), {}
    experiment = client.get_experiment_by_name("sglr-flower")
    for run in client.search_runs([experiment.experiment_id]):
        stored = runs[run.info.run_id] = Stored(config=dict(run.data.params))
        stored.ended_well = {"FINISHED": True, "FAILED": False}.get(run.info.status)
        steps: dict[int, dict[str, float]] = {}
        for name in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, name)
            assert len({point.step for point in points}) == len(points), f"{name} has a round twice"
            for point in points:
                if name.startswith("summary/"):
                    stored.summary[name.removeprefix("summary/")] = point.value
                else:
                    steps.setdefault(point.step, {})[name] = point.value
        stored.rounds = sorted(steps.items())
    return runs


def of_wandb(home: Path) -> dict[str, Stored]:
    """All its offline folders, in the order of their making; those of one run id as one."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: dict[str, Stored] = {}
    for file in sorted(home.glob("wandb/offline-run-*/*.wandb")):
        stored = runs.setdefault(file.stem.removeprefix("run-"), Stored())
        for content in _leveldb_log(file.read_bytes()):
            record = Record.FromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                stored.config = {name: value for name, value in settings.items() if not name.startswith("_")}
            elif kind == "history":
                row = {_key(item): json.loads(item.value_json) for item in record.history.item}
                figures = {name: value for name, value in row.items() if not name.startswith("_")}
                stored.rounds.append((record.history.step.num, figures))
            elif kind == "summary":
                items = {_key(item): json.loads(item.value_json) for item in record.summary.update}
                own = {name: value for name, value in items.items() if name.startswith("summary/")}
                stored.summary |= {name.removeprefix("summary/"): value for name, value in own.items()}
            elif kind == "exit":
                stored.ended_well = record.exit.exit_code == 0
    return runs


def of_trackio(home: Path) -> dict[str, Stored]:
    runs: dict[str, Stored] = {}
    with sqlite3.connect(home / "trackio" / "sglr-flower.db") as database:
        for run, config in database.execute("SELECT run_id, config FROM configs"):
            settings = {name: value for name, value in json.loads(config).items() if not name.startswith("_")}
            runs[run] = Stored(config=settings)
        for run, step, written in database.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id"):
            figures = json.loads(written)
            own = {name: value for name, value in figures.items() if name.startswith("summary/")}
            if own:
                runs[run].summary = {name.removeprefix("summary/"): value for name, value in own.items()}
            else:
                runs[run].rounds.append((step, figures))
    return runs


READERS: dict[str, Callable[[Path], dict[str, Stored]]] = {
    "mlflow": of_mlflow,
    "wandb": of_wandb,
    "trackio": of_trackio,
}


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after wandb's own header of seven bytes."""
    block, place, parts = 32_768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # too little is left of the block for a header
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
