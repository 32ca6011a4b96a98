"""The command `sglr` as a user types it: real runs through `flwr run`, kill and resume, and every user's mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tomli_w
from filelock import FileLock
from integration.runs import final_weights, largest_difference

from sglr_flower.cli import main
from sglr_flower.run import rundir
from sglr_flower.run.rundir import read_json

QUICK = {
    "num-clients": 4,
    "samples-per-client": 40,
    "local-epochs": 3,  # rounds long enough to be killed inside
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


def finished(process: subprocess.Popen[str], within: float = 300) -> tuple[int, str, str]:
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
    """One uninterrupted run through Flower, its clients' states kept by the nodes; and what it printed."""
    cwd = tmp_path_factory.mktemp("flower")
    code, out, err = finished(sglr("run", quick(cwd, evaluate="client"), "--run-dir", "whole", cwd=cwd))
    assert code == 0, out + err
    return cwd / "whole", out


@pytest.mark.flower
def test_a_run_writes_its_directory_and_a_closing_table(through_flower: tuple[Path, str]) -> None:
    run_dir, out = through_flower
    summary = json.loads((run_dir / "summary.json").read_text())
    wanted = """method model dataset clients nodes exchange rounds steps seconds step_seconds_median test_accuracy_mean
    test_accuracy_std bytes_up bytes_down"""
    assert set(wanted.split()) <= summary.keys()
    assert (summary["clients"], summary["nodes"], summary["exchange"], summary["rounds"]) == (4, 2, "stream", 6)
    assert summary["steps"] == 6 * 3 * 5
    rows = (run_dir / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("round,steps,clients,train_loss")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert (run_dir / "config.toml").exists()
    assert list((run_dir / "tensorboard").glob("events*"))
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == [f"round-000{n}" for n in (4, 5, 6)]
    assert f"{100 * summary['test_accuracy_mean']:.2f} ± {100 * summary['test_accuracy_std']:.2f} %" in out
    assert str(run_dir) in out
    assert "round 6/6" in out


@pytest.mark.flower
def test_resuming_a_finished_run_shows_its_result(through_flower: tuple[Path, str]) -> None:
    run_dir, _ = through_flower
    code, out, _ = finished(sglr("resume", str(run_dir), cwd=run_dir.parent))
    assert code == 0
    assert "finished already" in out


@pytest.mark.flower
def test_ones_own_model_and_method_train_through_flower(tmp_path: Path) -> None:
    """From the folder where `sglr` is started; the nodes are processes of Ray with another working directory."""
    (tmp_path / "mine.py").write_text(
        "from collections import OrderedDict\n"
        "from torch import nn\n"
        "from sglr_flower import splitavg\n"
        "from sglr_flower.split.methods import Method\n"
        "def tiny(num_classes, image_size):\n"
        "    return nn.Sequential(OrderedDict(low=nn.Conv2d(3, 2, 3, 2), top=nn.Sequential(nn.Flatten(), "
        "nn.LazyLinear(num_classes))))\n"
        "tiny.cut = 'low'\n"
        "halved = Method(cut_gradient=lambda *arguments: splitavg.average(*arguments) / 2)\n"
    )
    config = quick(tmp_path, model="mine:tiny", method="mine:halved", num_server_rounds=1)
    code, out, err = finished(sglr("run", config, "--run-dir", "own", cwd=tmp_path))

    assert code == 0, out + err
    assert "mine:halved with mine:tiny on digits" in out
    assert (tmp_path / "own" / "partition.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.flower
def test_the_directory_of_another_run_is_left_alone(through_flower: tuple[Path, str]) -> None:
    run_dir, _ = through_flower
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    code, _, err = finished(sglr("run", "-s", "seed=9", "--run-dir", str(run_dir), cwd=run_dir.parent))
    assert code != 0
    assert "holds another run" in err
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def await_step(run_dir: Path, server_round: int) -> dict:
    """The status as soon as the run is inside the given round or a later one."""
    deadline = time.monotonic() + 180
    while True:
        status = read_json(run_dir / "status.json")
        if status.get("round", 0) >= server_round and status.get("step", 0) > 0:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.002)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that is dead but not yet reaped does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.flower
@pytest.mark.timeout(600)
def test_killed_and_stopped_inside_rounds_through_flower_it_ends_with_the_same_bits(
    through_flower: tuple[Path, str],
) -> None:
    whole, _ = through_flower
    cwd, broken = whole.parent, whole.parent / "broken"
    process = sglr("run", quick(cwd, evaluate="client"), "--run-dir", "broken", cwd=cwd)
    trainer = await_step(broken, 2)["pid"]
    assert psutil.Process(process.pid).memory_full_info().pss < 150e6  # torch is in the others only
    os.kill(trainer, signal.SIGKILL)
    code, out, err = finished(process, within=40)  # Flower alone would take a minute to notice, and exit 0
    assert code == 1, out + err
    assert "its training process was killed" in err

    process = sglr("resume", "broken", cwd=cwd)
    pid = await_step(broken, 4)["pid"]
    process.send_signal(signal.SIGINT)
    code, out, err = finished(process, within=60)
    assert code == 130, out + err
    assert f"sglr resume {broken}" in out
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)

    code, out, err = finished(sglr("resume", "broken", cwd=cwd))
    assert code == 0, out + err
    assert set(final_weights(whole)) == {"server", "client-0", "client-1", "client-2", "client-3"}
    assert largest_difference(final_weights(broken), final_weights(whole)) == 0.0
    figures = ("test_accuracy_mean", "test_accuracy_std", "steps", "rounds", "bytes_up", "bytes_down")
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (broken, whole))
    assert {name: ours[name] for name in figures} == {name: theirs[name] for name in figures}
    assert len((broken / "metrics.csv").read_text().splitlines()) == 7


@pytest.fixture(scope="module")
def in_process(tmp_path_factory) -> Path:
    """One uninterrupted run in a single process."""
    cwd = tmp_path_factory.mktemp("in-process")
    code, out, err = finished(sglr("run", quick(cwd), "--in-process", "--run-dir", "whole", cwd=cwd))
    assert code == 0, out + err
    return cwd / "whole"


@pytest.mark.timeout(240)
def test_killed_again_and_again_in_process_it_ends_with_the_same_bits(in_process: Path) -> None:
    cwd, killed = in_process.parent, in_process.parent / "killed"
    # Between two rounds (a checkpoint may be half written), inside a round, and between again.
    moments: list[Callable[[dict], bool]] = [
        lambda status: status.get("rounds_done", 0) == 2,
        lambda status: status.get("round", 0) >= 4 and status.get("step", 0) >= 1,
        lambda status: status.get("rounds_done", 0) >= 5,
    ]
    process = sglr("run", quick(cwd), "--in-process", "--run-dir", "killed", cwd=cwd)
    for reached in moments:
        kill_when(process, killed, reached)
        process = sglr("resume", "killed", cwd=cwd)
    code, out, err = finished(process)

    assert code == 0, out + err
    assert largest_difference(final_weights(killed), final_weights(in_process)) == 0.0


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(in_process: Path) -> None:
    run = shutil.copytree(in_process, in_process.parent / "damaged")
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "round-0006")
    weights = run / "checkpoints" / "round-0005" / "server.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    code, out, err = finished(sglr("resume", "damaged", cwd=run.parent))

    assert code == 0, out + err
    assert "round-0005 is damaged (server.safetensors" in out + err
    assert largest_difference(final_weights(run), final_weights(in_process)) == 0.0


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
    "resume by hand": (["-s", "resume=true"], ["resume", "sglr resume RUN_DIR"]),
    "no nodes": (["--nodes", "0"], ["--nodes", "0"]),
}


def mistaken(arguments: list[str], cwd: Path, monkeypatch, capsys) -> str:
    """Run the command's own entry point (without the three seconds of a new process); what it says to stderr."""
    monkeypatch.chdir(cwd)
    monkeypatch.delenv("SGLR_DATA_DIR", raising=False)
    monkeypatch.setattr(sys, "argv", ["sglr", *arguments])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main()
    signal.signal(signal.SIGTERM, before)
    assert caught.value.code not in (0, None)
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return " ".join(said.err.split())  # a terminal's line breaks are not the sentence's


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_a_nonzero_exit(
    tmp_path: Path, monkeypatch, capsys, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "corrupt.toml").write_text("method = 'sglr")
    said = mistaken(["run", *arguments], tmp_path, monkeypatch, capsys)
    assert all(word in said for word in words), said
    assert (tmp_path / "corrupt.toml").read_text() == "method = 'sglr"
    assert not list(tmp_path.glob("runs/*"))


def test_a_mistake_ends_the_real_command_alike(tmp_path: Path) -> None:
    code, out, err = finished(sglr("run", "-s", "num-clients=0", cwd=tmp_path))
    assert (code, out) == (1, "")
    assert err == "sglr: run-config key num-clients = 0: it should be greater than or equal to 1\n"


def test_missing_data_and_no_network_is_one_sentence(tmp_path: Path) -> None:
    # A process of its own: urllib keeps the first proxy it has met.
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
        (lambda run: (run / "config.toml").write_text("method = 7"), ["config.toml cannot be used", "method"]),
        (lambda run: (run / "launch.toml").write_text("nodes = 'two'"), ["launch.toml is damaged", "nodes", "'two'"]),
        (lambda run: (run / "launch.toml").write_text("nodes = "), ["launch.toml is not valid TOML"]),
        (lambda run: [file.unlink() for file in run.glob("checkpoints/*/server.safetensors")], ["no checkpoint"]),
    ],
    ids=["no config", "corrupt config", "wrong launch", "corrupt launch", "corrupt checkpoints"],
)
def test_a_run_that_cannot_be_resumed_says_why(
    in_process: Path, tmp_path: Path, monkeypatch, capsys, damage: Callable[[Path], object], words: list[str]
) -> None:
    run = shutil.copytree(in_process, tmp_path / "run")
    (run / "summary.json").unlink()
    damage(run)
    said = mistaken(["resume", "run"], tmp_path, monkeypatch, capsys)
    assert all(word in said for word in words), said


def test_a_killed_run_without_a_checkpoint_starts_again(in_process: Path, tmp_path: Path) -> None:
    run = shutil.copytree(in_process, tmp_path / "run")
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints")
    code, out, err = finished(sglr("resume", "run", cwd=tmp_path))
    assert code == 0, out + err
    assert "starts again from its first round" in out
    assert largest_difference(final_weights(run), final_weights(in_process)) == 0.0


def test_two_runs_started_at_once_get_two_directories(tmp_path: Path) -> None:
    config = quick(tmp_path, num_server_rounds=1)
    both = [sglr("run", config, "--in-process", "-s", f"seed={seed}", cwd=tmp_path) for seed in (1, 2)]
    for process in both:
        assert finished(process)[0] == 0
    seeds = {json.loads(path.read_text())["seed"] for path in tmp_path.glob("runs/*/summary.json")}
    assert seeds == {1, 2}


def test_two_processes_do_not_train_in_one_directory(in_process: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run = shutil.copytree(in_process, tmp_path / "run")
    (run / "summary.json").unlink()
    monkeypatch.setattr(rundir, "LOCK_SECONDS", 0.1)
    with FileLock(run / ".lock"):
        said = mistaken(["resume", "run"], tmp_path, monkeypatch, capsys)
    assert "another process is training in" in said
