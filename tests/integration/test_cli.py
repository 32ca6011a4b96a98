"""The command `sglr` as a user types it: real runs through `flwr run`, kill and resume, and every user's mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from integration.runs import final_weights, largest_difference

from sglr_flower.rundir import read_json

QUICK = {
    "num-clients": 4,
    "samples-per-client": 40,
    "num-server-rounds": 6,
    "evaluate-every": 2,
    "evaluate-samples": 100,
}


def sglr(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sglr_flower.cli", *arguments]
    kept = {key: value for key, value in os.environ.items() if key != "SGLR_DATA_DIR"}
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**kept, "COLUMNS": "200", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str], within: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=within)
    return process.returncode, out, err


def quick(cwd: Path, **changes: object) -> str:
    path = cwd / "quick.toml"
    path.write_text(tomli_w.dumps({**QUICK, **{key.replace("_", "-"): value for key, value in changes.items()}}))
    return str(path)


def kill_when(process: subprocess.Popen[str], run_dir: Path, reached: Callable[[dict], bool]) -> None:
    """SIGKILL to the whole process group as soon as the run's status is what the test wants."""
    deadline = time.monotonic() + 90
    while not reached(read_json(run_dir / "status.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def through_flower(tmp_path_factory) -> tuple[Path, str]:
    """One uninterrupted run through Flower: its directory and what it printed."""
    cwd = tmp_path_factory.mktemp("flower")
    code, out, err = finished(sglr("run", quick(cwd), "--run-dir", "whole", cwd=cwd))
    assert code == 0, out + err
    return cwd / "whole", out


def test_a_run_writes_its_directory_and_a_closing_table(through_flower: tuple[Path, str]) -> None:
    run_dir, out = through_flower
    summary = json.loads((run_dir / "summary.json").read_text())
    wanted = """method model dataset clients nodes exchange rounds steps seconds step_seconds_median test_accuracy_mean
    test_accuracy_std bytes_up bytes_down"""
    assert set(wanted.split()) <= summary.keys()
    assert (summary["clients"], summary["nodes"], summary["exchange"], summary["rounds"]) == (4, 2, "stream", 6)
    assert summary["steps"] == 6 * 5
    rows = (run_dir / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("round,steps,clients,train_loss")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert (run_dir / "config.toml").exists()
    assert list((run_dir / "tensorboard").glob("events*"))
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == [f"round-000{n}" for n in (4, 5, 6)]
    assert f"{100 * summary['test_accuracy_mean']:.2f} ± {100 * summary['test_accuracy_std']:.2f} %" in out
    assert str(run_dir) in out
    assert "round 6/6" in out


def test_resuming_a_finished_run_shows_its_result(through_flower: tuple[Path, str]) -> None:
    run_dir, _ = through_flower
    code, out, _ = finished(sglr("resume", str(run_dir), cwd=run_dir.parent))
    assert code == 0
    assert "finished already" in out


def test_the_directory_of_another_run_is_left_alone(through_flower: tuple[Path, str]) -> None:
    run_dir, _ = through_flower
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    code, _, err = finished(sglr("run", "-s", "seed=9", "--run-dir", str(run_dir), cwd=run_dir.parent))
    assert code != 0
    assert "holds another run" in err
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.timeout(240)
def test_killed_inside_a_round_through_flower_and_resumed_it_ends_with_the_same_bits(
    through_flower: tuple[Path, str],
) -> None:
    whole, _ = through_flower
    cwd, killed = whole.parent, whole.parent / "killed"
    process = sglr("run", quick(cwd), "--run-dir", "killed", cwd=cwd)
    kill_when(process, killed, lambda status: status.get("round", 0) >= 3 and status.get("step", 0) > 0)

    code, out, err = finished(sglr("resume", "killed", cwd=cwd))

    assert code == 0, out + err
    assert largest_difference(final_weights(killed), final_weights(whole)) == 0.0
    figures = ("test_accuracy_mean", "test_accuracy_std", "steps", "rounds", "bytes_up", "bytes_down")
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (killed, whole))
    assert {name: ours[name] for name in figures} == {name: theirs[name] for name in figures}
    assert len((killed / "metrics.csv").read_text().splitlines()) == 7


@pytest.mark.timeout(240)
@pytest.mark.parametrize("evaluate", ["server", "client"])
def test_killed_again_and_again_in_process_it_ends_with_the_same_bits(tmp_path: Path, evaluate: str) -> None:
    config = quick(tmp_path, evaluate=evaluate, checkpoint_every=2)
    code, out, err = finished(sglr("run", config, "--in-process", "--run-dir", "whole", cwd=tmp_path))
    assert code == 0, out + err
    # Killed between two rounds (a checkpoint may be half written), inside a round, and after the last one.
    moments: list[Callable[[dict], bool]] = [
        lambda status: status.get("rounds_done", 0) == 2,
        lambda status: status.get("round", 0) == 4 and status.get("step", 0) >= 2,
        lambda status: status.get("rounds_done", 0) >= 5,
    ]
    process = sglr("run", config, "--in-process", "--run-dir", "killed", cwd=tmp_path)
    for reached in moments:
        kill_when(process, tmp_path / "killed", reached)
        process = sglr("resume", "killed", cwd=tmp_path)
    code, out, err = finished(process)

    assert code == 0, out + err
    assert largest_difference(final_weights(tmp_path / "killed"), final_weights(tmp_path / "whole")) == 0.0


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(tmp_path: Path) -> None:
    config = quick(tmp_path)
    process = sglr("run", config, "--in-process", "--run-dir", "run", cwd=tmp_path)
    kill_when(process, tmp_path / "run", lambda status: status.get("rounds_done", 0) >= 3)
    last = sorted((tmp_path / "run" / "checkpoints").glob("round-*"))[-1]
    content = bytearray((last / "server.safetensors").read_bytes())
    content[-1] ^= 1
    (last / "server.safetensors").write_bytes(content)

    code, out, err = finished(sglr("resume", "run", cwd=tmp_path))

    assert code == 0, out + err
    assert f"{last.name} is damaged (server.safetensors" in out + err
    assert finished(sglr("run", config, "--in-process", "--run-dir", "whole", cwd=tmp_path))[0] == 0
    assert largest_difference(final_weights(tmp_path / "run"), final_weights(tmp_path / "whole")) == 0.0


@pytest.mark.timeout(120)
def test_a_killed_training_process_is_noticed(tmp_path: Path) -> None:
    """Flower alone would take a minute to notice, and `flwr run` would exit 0."""
    process = sglr("run", quick(tmp_path, num_server_rounds=1000), "--run-dir", "run", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while "step" not in (status := read_json(tmp_path / "run" / "status.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(status["pid"], signal.SIGKILL)

    code, _, err = finished(process, within=20)

    assert code == 1
    assert f"its training process {status['pid']} was killed" in err


@pytest.mark.timeout(120)
def test_ctrl_c_stops_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = sglr("run", quick(tmp_path, num_server_rounds=1000), "--run-dir", "run", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while "step" not in (status := read_json(tmp_path / "run" / "status.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)

    code, _, err = finished(process, within=20)

    assert code == 130
    assert "sglr resume" in err
    time.sleep(1)
    assert not Path(f"/proc/{status['pid']}").exists()


MISTAKES = {
    "unknown key": (["-s", "phi=0.5"], ["'phi'", "unknown run-config key"]),
    "wrong type": (["-s", "num-clients=many"], ["num-clients", "'many'", "integer"]),
    "alpha out of range": (["-s", "splitlr-alpha=3"], ["splitlr-alpha", "3.0", "less than or equal to 2"]),
    "phi out of range": (["-s", "splitavg-phi=-0.1"], ["splitavg-phi", "-0.1", "greater than or equal to 0"]),
    "no clients": (["-s", "num-clients=0"], ["num-clients", "0", "greater than or equal to 1"]),
    "too many samples": (["-s", "samples-per-client=1000"], ["num-clients", "samples-per-client", "1000"]),
    "unknown model": (["-s", "model=vgg"], ["model", "'vgg'", "resnet16"]),
    "unknown cut": (["-s", "cut=layer9"], ["cut", "'layer9'", "stage2"]),
    "unknown data set": (["-s", "dataset=imagenet"], ["dataset", "imagenet", "fashion-mnist"]),
    "unknown partition": (["-s", "partition=magic"], ["partition", "magic", "balanced"]),
    "unknown method": (["-s", "method=fedsgd"], ["method", "'fedsgd'", "sglr, slr, sgl, psl"]),
    "missing config": (["absent.toml"], ["absent.toml", "does not exist"]),
    "corrupt config": (["corrupt.toml"], ["corrupt.toml", "not valid TOML"]),
    "unwritable run directory": (
        ["--run-dir", "corrupt.toml/run"],
        ["corrupt.toml/run", "run-dir", "cannot be written"],
    ),
    "too many CPUs": (["--cpus-per-node", "4096"], ["4096", "CPUs"]),
    "no nodes": (["--nodes", "0"], ["--nodes", "0"]),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_a_nonzero_exit(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "corrupt.toml").write_text("method = 'sglr")
    code, out, err = finished(sglr("run", *arguments, cwd=tmp_path))
    assert code != 0
    assert "Traceback" not in out + err
    assert all(word in err for word in words), err
    assert (tmp_path / "corrupt.toml").read_text() == "method = 'sglr"
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_missing_data_and_no_network_is_one_sentence(tmp_path: Path) -> None:
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    code, out, err = finished(sglr("run", "-s", "dataset=mnist", "-s", "data-dir=here", cwd=tmp_path, env=nowhere))
    assert code == 1
    assert "Traceback" not in out + err
    assert str(tmp_path / "here") in err
    assert "mnist" in err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "config.toml").unlink(), ["is not a run directory"]),
        (lambda run: (run / "config.toml").write_text("method = 7"), ["config.toml is damaged", "method"]),
        (lambda run: (run / "launch.toml").unlink(), ["launch.toml cannot be read"]),
        (lambda run: [file.unlink() for file in run.glob("checkpoints/*/server.safetensors")], ["no checkpoint"]),
    ],
    ids=["no config", "corrupt config", "no launch", "corrupt checkpoints"],
)
def test_a_run_that_cannot_be_resumed_says_why(
    through_flower: tuple[Path, str], tmp_path: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(through_flower[0], run)
    (run / "summary.json").unlink()
    damage(run)
    code, out, err = finished(sglr("resume", "run", cwd=tmp_path))
    assert code == 1
    assert "Traceback" not in out + err
    assert all(word in err for word in words), err
