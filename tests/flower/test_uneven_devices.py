"""Devices whose data are their own and uneven: any part of the classes, and maybe nothing to be scored on.

Whole runs over a grid in this process; over a real federation: `tests/integration/test_uneven_devices_on_flower.py`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from flower.fakegrid import Clock, Device, FakeGrid
from flwr.app import RecordDict
from uneven import CLASSES, write

from sglr_flower.data import folder
from sglr_flower.errors import UserError
from sglr_flower.flower.protocol import METRICS
from sglr_flower.flower.server import serve
from sglr_flower.run.rundir import read_json

SETTINGS: dict[str, Any] = {
    "model": "flower.smallnet:network",
    "dataset": "folder",
    "image-size": 16,
    "partition": "own",
    "samples-per-client": 0,
    "batch-size": 8,
    "num-server-rounds": 2,
    "evaluate": "client",
    "exchange": "grid",
    "start-timeout": 20.0,
}
DEVICES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "all": ({"disc": 12, "stripe": 12, "ring": 12}, {}),
    "lacking": ({"disc": 12, "stripe": 12}, {}),
    "one": ({"ring": 9}, {"ring": 4}),
    "few": ({"stripe": 3, "ring": 2}, {}),  # too few to hold anything out
}
TRAIN = {"all": (8, 8, 8), "lacking": (8, 8, 0), "one": (0, 0, 8), "few": (0, 3, 2)}


def grid(root: Path, names: list[str]) -> FakeGrid:
    made = []
    for place, name in enumerate(names):
        train, test = DEVICES[name]
        config = {"name": name, "partition-id": place, "num-partitions": len(names)}
        data = write(root / name / "data", train, test)
        made.append(Device(11 + place, {**config, "data-dir": str(data)}, root / name / "state"))
    return FakeGrid(made)


def run(root: Path, names: list[str], **settings: object) -> Path:
    values = {**SETTINGS, "num-clients": len(names), "run-dir": str(root / "run"), **settings}
    serve(grid(root, names), values)  # type: ignore[arg-type]
    return root / "run"


@pytest.mark.parametrize("tolerant", [{}, {"min-clients": 1, "round-retries": 1}])
def test_any_part_of_the_classes_takes_part(tmp_path: Path, clock: Clock, tolerant: dict[str, Any]) -> None:
    server = write(tmp_path / "server", dict.fromkeys(CLASSES, 0))
    done = run(tmp_path, list(DEVICES), **{"data-dir": str(server)}, **tolerant)
    partition = read_json(done / "partition.json")
    assert partition["classes"] == sorted(CLASSES)
    order = [CLASSES.index(name) for name in partition["classes"]]
    assert [sum(row) for row in partition["counts"]] == [sum(TRAIN[name]) for name in DEVICES]
    for row, name in zip(partition["counts"], DEVICES, strict=True):
        assert [bool(count) for count in row] == [bool(TRAIN[name][k]) for k in order]
    summary = read_json(done / "summary.json")
    assert (summary["rounds"], summary["clients"]) == (2, 4)
    assert 0 <= summary["test_accuracy_mean"] <= 1
    best = json.loads(sorted(done.glob("checkpoints/*/state.json"))[-1].read_text())["state"]["history"]["best"]
    assert sorted(best) == ["0", "1", "2"]  # the last has nothing to be scored on


def test_the_server_needs_no_folder_where_the_classes_are_given(tmp_path: Path, clock: Clock) -> None:
    done = run(tmp_path, ["lacking", "one"], classes="stripe,ring,disc")
    partition = read_json(done / "partition.json")
    assert partition["classes"] == ["stripe", "ring", "disc"]
    assert partition["counts"][1] == [0, 8, 0]


def test_without_anything_to_score_on_a_run_has_no_score(tmp_path: Path, clock: Clock) -> None:
    done = run(tmp_path, ["few"], classes="disc,stripe,ring")
    summary = read_json(done / "summary.json")
    assert (summary["test_accuracy_mean"], summary["evaluated_images"], summary["rounds"]) == (None, 0, 2)
    assert summary["train_loss"] > 0


def test_a_class_that_is_none_of_the_servers_is_named_with_the_device(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(UserError, match=r"^node all \(11\): Folder .*train has the class 'ring', which is none of the"):
        run(tmp_path, ["all", "lacking"], classes="disc,stripe")


def test_a_device_whose_counts_are_not_its_sizes_is_refused(tmp_path: Path, clock: Clock) -> None:
    from flower.test_odd_nodes import field

    made = grid(tmp_path, ["lacking"])
    made.devices[11].changes["query.assign"] = field("counts", [1, 1, 1])
    values = {**SETTINGS, "num-clients": 1, "classes": "disc,stripe,ring", "run-dir": str(tmp_path / "run")}
    with pytest.raises(Exception, match=r"lacking .* counts = \(1, 1, 1\): they should add up to \(16,\)"):
        serve(made, values)  # type: ignore[arg-type]


def test_pictures_that_come_during_a_run_are_said_and_not_trained_on(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    made = grid(tmp_path, ["lacking"])
    values = {**SETTINGS, "num-clients": 1, "num-server-rounds": 3, "classes": "disc,stripe,ring"}
    came = 0

    def more(content: RecordDict) -> RecordDict:
        nonlocal came
        if METRICS in content:  # at the end of a round
            came += 1
            write(tmp_path / "lacking" / "data", {"disc": 12 + came, "ring": 2})
            folder.load.cache_clear()  # a device has a process for every message
        return content

    made.devices[11].changes["train.grid"] = more
    serve(made, {**values, "run-dir": str(tmp_path / "run")})  # type: ignore[arg-type]
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (came, summary["rounds"], summary["steps"]) == (3, 3, 6)
    said = [record.getMessage() for record in caplog.records if "data have changed" in record.getMessage()]
    goes_on = "node lacking: its data have changed since the run began, and it trains on those that it had:"
    assert [line.partition(goes_on)[2] for line in said] == [
        " 3 images were added (disc 1, ring 2)",
        " 4 images were added (disc 2, ring 2)",
    ]


@pytest.mark.parametrize("cache", [500, 0])
def test_pictures_that_are_replaced_or_go_during_a_run(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, cache: int
) -> None:
    """With those that it had a device trains as if nothing had happened; where none are kept a sentence names them."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    values = {**SETTINGS, "num-clients": 1, "num-server-rounds": 3, "classes": "disc,stripe,ring", "cache": cache}
    losses = []
    for place in ("left alone", "changed"):
        made = grid(tmp_path / place, ["lacking"])
        disc = tmp_path / place / "lacking" / "data" / "train" / "disc"

        def change(content: RecordDict, disc: Path = disc) -> RecordDict:
            if METRICS in content and not (disc / "link.png").is_symlink():  # after the first round
                first, *_, last = sorted(disc.iterdir())
                first.write_bytes(next((disc.parent / "stripe").iterdir()).read_bytes())
                last.unlink()
                (disc / "link.png").symlink_to("nowhere.png")
                folder.load.cache_clear()
            return content

        if place == "changed":
            made.devices[11].changes["train.grid"] = change
        if place == "changed" and not cache:
            with pytest.raises(UserError, match=r"node lacking.*: 2 of the images that the run began with are not"):
                serve(made, {**values, "run-dir": str(tmp_path / place / "run")})  # type: ignore[arg-type]
            return
        serve(made, {**values, "run-dir": str(tmp_path / place / "run")})  # type: ignore[arg-type]
        losses.append((tmp_path / place / "run" / "metrics.csv").read_text().splitlines())
    loss = losses[0][0].split(",").index("train_loss")
    assert [row.split(",")[loss] for row in losses[0]] == [row.split(",")[loss] for row in losses[1]]
    said = [record.getMessage() for record in caplog.records if "data have changed" in record.getMessage()]
    assert [line.partition("that it had: ")[2] for line in said] == [
        "1 image was removed (disc 1); 1 image was replaced by others (disc 1)"
    ]
