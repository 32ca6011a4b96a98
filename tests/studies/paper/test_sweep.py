"""Sweeps that are stopped, killed, continued, and whose cells fail; in processes of their own, without Flower."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import summaries

from sglr_flower.errors import UserError
from sglr_flower.studies.leakage.attack import Settings
from sglr_flower.studies.paper import sweep
from sglr_flower.studies.paper.cells import Cell, select
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.scales import SCALES
from sglr_flower.studies.paper.sweep import Failure, Running
from sglr_flower.studies.paper.workers import Workers, find

PAPER = [sys.executable, "-m", "sglr_flower.cli", "paper", "table1", "--in-process", "--jobs", "1"]
SMOKE = SCALES["smoke"]


def smoke_cells(only: str = "") -> list[Cell]:
    return select(EXPERIMENTS["table1"].cells(SMOKE, [0]), only)


def wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)


def test_a_sweep_killed_by_sigkill_goes_on_without_redoing_finished_cells(tmp_path: Path) -> None:
    """A real sweep of two cells, killed while the second is under way."""
    command = [*PAPER, "--scale", "smoke", "--only", "clients=2", "--out", str(tmp_path)]
    first, second = (
        tmp_path / "cells" / f"{name}_seed-0" for name in ("psl_clients-2_alpha-0", "slr_clients-2_alpha-1")
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        wait_for(second / "launch.toml")
        killed.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in (first / "summary.json", first / "run-id")}
    run_id = (second / "run-id").read_text()
    with (tmp_path / "results.csv").open() as file:
        assert [(row["alpha"], row["run_dir"]) for row in csv.DictReader(file)] == [("0.0", f"cells/{first.name}")]
    assert not (second / "summary.json").exists()

    said = subprocess.run(command, capture_output=True, text=True, check=False)

    assert said.returncode == 0, said.stdout + said.stderr
    assert "2 cells, 1 of them finished" in said.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert (second / "run-id").read_text() == run_id
    assert "sglr resume" not in said.stdout
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["alpha"] for row in rows] == ["0.0", "1.0"]
    assert all(0 <= float(row["test_accuracy_mean"]) <= 1 and int(row["rounds"]) == 2 for row in rows)
    assert (tmp_path / "picture.png").exists()

    # The same folder for another scale: the run and both values are named, and nothing is touched.
    with pytest.raises(
        UserError, match=r"psl_clients-2_alpha-0_seed-0 holds a run with dataset = 'digits', .* 'fashion-"
    ):
        sweep.check_same(tmp_path, EXPERIMENTS["table1"].cells(SCALES["small"], [0]))
    sweep.check_same(tmp_path, smoke_cells())


WRITE_RESULT = f"""
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
(folder / "summary.json").write_text({json.dumps(summaries.summary().to_json())!r})
"""
FAIL = "import sys; print('a line'); print('sglr: the data are missing', file=sys.stderr); sys.exit(1)"
DIE = "import os, signal; print('the last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
STAY = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1] + ".ended").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1] + ".begun").touch()
time.sleep(600)
"""


@dataclass(frozen=True)
class Scripted(Workers):
    """Runs a script for each cell in place of a training, by the cell's alpha."""

    scripts: dict[str, str] = field(default_factory=dict)

    def train(self, config: Path, run_dir: Path) -> list[str]:
        alpha = config.name.split("alpha-")[1].split("_")[0]
        return [sys.executable, "-c", self.scripts[alpha], str(run_dir)]


class Notes:
    """A watcher that remembers, and that can be made to raise once a file is there."""

    def __init__(self, interrupt_at: Path | None = None) -> None:
        self.names: list[str] = []
        self._interrupt_at = interrupt_at

    def update(self, running: Sequence[Running]) -> None:
        if self._interrupt_at and self._interrupt_at.exists():
            raise KeyboardInterrupt

    def finished(self, running: Running) -> None:
        self.names.append(running.cell.name)

    def failed(self, failure: Failure) -> None:
        self.names.append(failure.cell.name)


def run(folder: Path, cells: Sequence[Cell], notes: Notes, jobs: int, **scripts: str) -> list[Failure]:
    (folder / "cells").mkdir(exist_ok=True)
    workers = Scripted(jobs, 2, (), True, {key.removeprefix("alpha_"): script for key, script in scripts.items()})
    with sweep.locked(folder) as lock:
        return sweep.run(cells, folder, lock, workers, notes)


def test_a_cell_that_fails_does_not_stop_the_others_and_says_why(tmp_path: Path) -> None:
    cells = smoke_cells()
    notes = Notes()
    failures = run(tmp_path, cells, notes, 1, alpha_0=FAIL, alpha_1=WRITE_RESULT)
    assert sorted(notes.names) == sorted(cell.name for cell in cells)
    assert [failure.cell.labels["alpha"] for failure in failures] == [0.0, 0.0]
    assert failures[0].reason == "the data are missing"
    assert failures[0].log.read_text() == "a line\nsglr: the data are missing\n"


def test_a_cell_that_is_killed_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    (failure,) = run(tmp_path, smoke_cells("clients=2,alpha=0"), Notes(), 1, alpha_0=DIE)
    assert failure.reason == "exit status 137: the last words"


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    cells = smoke_cells("alpha=1")
    run(tmp_path, cells, Notes(), 2, alpha_1=WRITE_RESULT)
    notes = Notes()
    assert run(tmp_path, cells, notes, 2, alpha_1=FAIL) == []
    assert notes.names == []


WRITE_ATTACK = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "attack"
folder.mkdir(exist_ok=True)
(folder / "attack.json").write_text(sys.argv[2])
"""


@dataclass(frozen=True)
class Attacking(Workers):
    """Writes a run's result in place of a training, and in place of an attack what it is told to."""

    script: str = ""
    written: str = ""

    def train(self, config: Path, run_dir: Path) -> list[str]:
        return [sys.executable, "-c", WRITE_RESULT, str(run_dir)]

    def attack(self, run_dir: Path) -> list[str]:
        return [sys.executable, "-c", self.script, str(run_dir), self.written]


def attacked(round_: int, settings: Settings) -> str:
    return json.dumps({"run": {"round": round_}, "settings": asdict(settings)})


def test_a_cell_that_is_to_be_attacked_is_finished_when_it_is(tmp_path: Path) -> None:
    """Two rounds and seed 0. The attack fails; the sweep that goes on leaves the training alone and attacks again."""
    cells = EXPERIMENTS["table5"].cells(SMOKE, [0])[:1]
    (tmp_path / "cells").mkdir()
    done = attacked(2, Settings(seed=0))

    def go_on(script: str, written: str, jobs: int) -> tuple[list[str], list[Failure]]:
        notes = Notes()
        with sweep.locked(tmp_path) as lock:
            failures = sweep.run(cells, tmp_path, lock, Attacking(jobs, 2, (), True, script, written), notes)
        return notes.names, failures

    names, (failure,) = go_on(FAIL, "", 1)
    assert failure.reason == "the data are missing"
    summary = sweep.run_dir(tmp_path, cells[0]) / "summary.json"
    trained = summary.stat().st_mtime_ns
    for wrong in (attacked(1, Settings(seed=0)), attacked(2, Settings(seed=0, decoder_steps=3))):
        names, failures = go_on(WRITE_ATTACK, wrong, 1)
        assert len(failures) == 1
    names, failures = go_on(WRITE_ATTACK, done, 2)
    assert (names, failures) == ([cells[0].name], [])
    assert summary.stat().st_mtime_ns == trained
    assert go_on(FAIL, "", 1) == ([], [])
    assert sweep.is_finished(tmp_path, cells[0])


def test_ctrl_c_ends_the_cells_under_way_in_good_order(tmp_path: Path) -> None:
    cells = smoke_cells("clients=2")
    folders = [sweep.run_dir(tmp_path, cell) for cell in cells]
    notes = Notes(interrupt_at=folders[1].with_name(f"{folders[1].name}.begun"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cells, notes, 2, alpha_0=STAY, alpha_1=STAY)
    assert folders[1].with_name(f"{folders[1].name}.ended").exists()


def test_a_run_directory_that_was_never_whole_is_put_aside_and_not_deleted(tmp_path: Path) -> None:
    """A process killed while it made its directory leaves a config and no `launch.toml`."""
    (cell,) = smoke_cells("clients=2,alpha=1")
    folder = sweep.run_dir(tmp_path, cell)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")
    sweep.check_same(tmp_path, [cell])
    assert run(tmp_path, [cell], Notes(), 1, alpha_1=WRITE_RESULT) == []
    assert (tmp_path / "cells" / f"{cell.name}.unstarted-1" / "config.toml").exists()


def test_two_sweeps_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with (
        sweep.locked(tmp_path),
        pytest.raises(UserError, match="another sweep is working in"),
        sweep.locked(tmp_path, patience=0.2),
    ):
        pass
    with sweep.locked(tmp_path, patience=0):
        pass


def test_a_folder_is_not_free_before_the_last_cell_of_a_killed_sweep_has_ended(tmp_path: Path) -> None:
    """The lock is inherited by a cell's leash: closing it here is what SIGKILL does to the sweep."""
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    sweep._take(descriptor, tmp_path, 0)
    leash = [
        sys.executable,
        "-m",
        "sglr_flower.studies.paper.leash",
        sys.executable,
        "-c",
        STAY,
        str(tmp_path / "cell"),
    ]
    with subprocess.Popen(leash, stdin=subprocess.PIPE, pass_fds=(descriptor,)) as process:
        wait_for(tmp_path / "cell.begun")
        os.close(descriptor)
        with pytest.raises(UserError), sweep.locked(tmp_path, patience=0):
            pass
        assert process.stdin is not None
        process.stdin.close()
        with sweep.locked(tmp_path, patience=20):
            assert (tmp_path / "cell.ended").exists()
        assert process.wait(10) == 143


def test_places_share_the_cpus_and_take_the_gpus_in_turn() -> None:
    workers = Workers(jobs=4, cpus=8, gpus=("0", "3"), in_process=False)
    assert [workers.environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(4)] == ["0", "3", "0", "3"]
    assert workers.environment(0)["OMP_NUM_THREADS"] == "2"
    command = workers.train(Path("a.toml"), Path("a"))
    assert command[1:] == [
        *["-m", "sglr_flower.cli", "run", "a.toml", "--run-dir", "a", "--nodes", "1", "--cpus-per-node", "2"],
        *["--gpus-per-node", "1"],
    ]
    assert Workers(4, 2, (), True).train(Path("a.toml"), Path("a"))[-3:] == ["--cpus-per-node", "1", "--in-process"]


def test_without_flower_a_sentence_tells_of_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"flwr and ray cannot be imported: install it, or train .* by --in-process"):
        find(None, in_process=False)
    assert find(3, in_process=True).jobs == 3
