"""Trackers by their real libraries, without a network: what they stored is read back."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import trained_runs
from run.track.stores import READERS, Stored

from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checks, track
from sglr_flower.run.config import TRACKERS, RunConfig
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.run.track import apart

EACH = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            find_spec(name) is None, reason=f"{name} is not installed: pip install 'sglr-flower[{name}]'"
        ),
    )
    for name in TRACKERS
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a user without settings, logged in nowhere."""
    for name in os.environ:
        if name.startswith(("MLFLOW_", "WANDB_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty database of MLflow's, which takes it ten seconds to make."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    script = f"from mlflow import MlflowClient; MlflowClient('sqlite:///{file}').search_experiments()"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return file.read_bytes()


@pytest.fixture
def ready(request: pytest.FixtureRequest, home: Path) -> None:
    """Spare MLflow the making of its database."""
    if request.node.callspec.params["name"] == "mlflow":
        (home / "mlflow.db").write_bytes(request.getfixturevalue("database"))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def train(run_dir: Path, **changes: Any) -> dict[str, Any]:
    return trained_runs.run(run_dir, evaluate_samples=20, **changes)


def only(name: str, home: Path) -> Stored:
    """What is stored of the one run that there is."""
    (stored,) = READERS[name](home).values()
    return stored


def recorded(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    with (run_dir / "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [(int(row.pop("round")), row) for row in rows]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def stopped_in_round(number: int, monkeypatch: pytest.MonkeyPatch, run_dir: Path, **changes: Any) -> None:
    plan = assembly.plan

    def stopping(config: RunConfig, server_round: int) -> Any:
        if server_round == number:
            raise KeyboardInterrupt
        return plan(config, server_round)

    with monkeypatch.context() as patch:
        patch.setattr(assembly, "plan", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(run_dir, **changes)


@pytest.mark.parametrize("name", EACH)
def test_rounds_settings_and_summary_are_read_back(
    name: str, home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "END_SECONDS", 120.0)  # this machine may be busy
    summary = train(home / "run", track=name, num_server_rounds=3, evaluate_every=2)

    stored = only(name, home)
    assert stored.rounds == recorded(home / "run")
    assert [step for step, _ in stored.rounds] == [1, 2, 3]
    assert "test_accuracy_mean" not in stored.rounds[0][1]  # it was not evaluated
    assert stored.config["method"] == "sglr"
    assert float(stored.config["client-lr"]) == 0.003
    assert stored.config.keys() == RunConfig.parse({}).values().keys()
    assert stored.summary["test_accuracy_mean"] == summary["test_accuracy_mean"]
    assert stored.summary["client/samples"] == summary["client"]["samples"]
    assert stored.ended_well is (None if name == "trackio" else True)
    assert warnings(caplog) == []
    said = read_json(home / "run" / "status.json")["observers"]
    assert all(saying["sentence"].startswith(f"{name}: ") and not saying["failed"] for saying in said)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", EACH)
def test_a_resumed_run_goes_on_with_each_round_once(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in round 4, whose last checkpoint is after round 2: round 3 is trained a second time."""
    monkeypatch.setattr(apart, "END_SECONDS", 120.0)
    settings: dict[str, Any] = {"track": name, "num_server_rounds": 4, "checkpoint_every": 2}
    stopped_in_round(4, monkeypatch, home / "run", **settings)
    train(home / "run", resume=True, **settings)

    stored = only(name, home)
    assert [step for step, _ in stored.rounds] == [1, 2, 3, 4]
    own = {"seconds", "step_seconds_median"}  # round 3's are those of its first time
    for (_, figures), (_, row) in zip(stored.rounds, recorded(home / "run"), strict=True):
        assert {key: figures[key] for key in figures.keys() - own} == {key: row[key] for key in row.keys() - own}
    assert stored.summary["rounds"] == 4
    assert stored.ended_well is (None if name == "trackio" else True)
    assert warnings(caplog) == []


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", EACH[:1])
def test_rounds_that_no_tracker_saw_are_made_up_for(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server was away in the first part of the run."""
    monkeypatch.setattr(apart, "END_SECONDS", 120.0)
    settings: dict[str, Any] = {"track": name, "num_server_rounds": 3}
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "nowhere://")
        stopped_in_round(3, monkeypatch, home / "run", **settings)
    train(home / "run", resume=True, **settings)

    assert only(name, home).rounds == recorded(home / "run")


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", EACH)
def test_a_stopped_run_is_not_shown_as_finished(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "STOP_SECONDS", 120.0)
    stopped_in_round(2, monkeypatch, home / "run", track=name, num_server_rounds=2)

    stored = only(name, home)
    assert [step for step, _ in stored.rounds] == [1]
    assert stored.summary == {}
    assert stored.ended_well is (None if name == "trackio" else False)


@pytest.mark.parametrize("name", EACH)
def test_a_tracker_that_cannot_write_is_said_once_and_the_run_ends_well(
    name: str, home: Path, closed_port: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(apart, "END_SECONDS", 120.0)
    unreachable = {
        "mlflow": {"MLFLOW_TRACKING_URI": closed_port, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        "wandb": {"WANDB_BASE_URL": closed_port, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1"},
        "trackio": {"TRACKIO_DIR": "/dev/null/trackio"},
    }
    for key, value in unreachable[name].items():
        monkeypatch.setenv(key, value)
    summary = train(home / "run", track=name, num_server_rounds=3)

    (warning,) = warnings(caplog)
    reason = {"mlflow": closed_port, "wandb": "resume status|timed out", "trackio": "directory: '/dev/null/trackio'"}
    assert warning.startswith(f"{name} is off: ")
    assert re.search(reason[name], warning)
    assert str(home / "run" / "tracking" / f"{name}.log") in warning
    assert len(recorded(home / "run")) == summary["rounds"] == 3
    status = read_json(home / "run" / "status.json")
    assert status["state"] == "finished"
    assert [said["sentence"] for said in status["observers"] if said["failed"]] == [warning]


@pytest.mark.parametrize("name", EACH[:1])
def test_a_tracker_that_blocks_delays_neither_rounds_nor_the_end(
    name: str, home: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow would wait two minutes for an answer, and ask eight times."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    monkeypatch.setattr(apart, "END_SECONDS", 0.5)
    train(home / "run", track=name)

    (warning,) = warnings(caplog)
    assert warning.startswith("mlflow is off: it did not finish within 0.5 s of the run's end")
    assert read_json(home / "run" / "status.json")["state"] == "finished"


@pytest.mark.parametrize("name", EACH[:1])
def test_a_tracker_whose_process_is_killed_is_a_tracker_that_failed(name: str, tmp_path: Path) -> None:
    directory, config = RunDirectory(tmp_path / "run"), RunConfig.parse({"track": name})
    directory.claim(config)
    observer = apart.Apart(name, config, directory, print)
    observer.begin([])
    assert observer._process is not None
    os.kill(observer._process.pid, signal.SIGKILL)
    observer._process.wait()

    with pytest.raises(RuntimeError, match=r"its process has ended \(see .*mlflow\.log\)"):
        observer.end({})


def test_a_run_larger_than_a_pipe_is_handed_over_at_once(
    home: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A library that blocks must not fill the pipe, which holds 64 kB, and so the run with it."""
    if find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed: pip install 'sglr-flower[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    monkeypatch.setattr(apart, "END_SECONDS", 0.0)
    directory, config = RunDirectory(home / "run"), RunConfig.parse({"track": "mlflow"})
    directory.claim(config)
    observer = apart.Apart("mlflow", config, directory, print)
    observer.begin([])
    for number in range(1000):
        observer._tell({"round": number, "figures": {"train_loss": math.nan, "padding" * 20: 1.0}})

    observer.end({})
    with pytest.raises(RuntimeError, match="did not finish"):
        observer.close()


def test_a_library_that_is_missing_is_said_before_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    config = RunConfig.parse({"track": "wandb", "num-clients": 2, "run-dir": str(home / "run")})

    expected = r"track = 'wandb': wandb is not installed: pip install 'sglr-flower\[wandb\]'"
    with pytest.raises(UserError, match=expected):
        checks.check(config)


def test_a_folder_with_the_librarys_name_is_not_the_library(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ./wandb is, after an offline run."""
    (home / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(home)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="wandb is not installed"):
        track.check(RunConfig.parse({"track": "wandb"}))


def test_a_password_in_a_uri_is_not_shown() -> None:
    said = apart.without_password("run 7 in postgresql://me:p@ss@db.lan:5432/runs, not in https://lan/@team/a@b")
    assert said == "run 7 in postgresql://db.lan:5432/runs, not in https://lan/@team/a@b"


@pytest.mark.parametrize("name", EACH[:1])
def test_a_password_is_not_shown_where_the_tracker_fails(
    name: str, home: Path, closed_port: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(apart, "END_SECONDS", 120.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port.replace("//", "//me:geheim@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trained_runs.run(home / "run", track=name)

    (warning,) = warnings(caplog)
    assert "geheim" not in warning
    assert closed_port in warning
