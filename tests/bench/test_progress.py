"""Benchmarks tell what they do: a line for each part with the time that is left, and what is kept if one interrupts."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import exchange, machine, step
from benchmarks.progress import Progress, duration

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_is_a_line_with_what_was_measured_and_the_time_left(tmp_path: Path) -> None:
    now, said = 0.0, io.StringIO()

    def take(seconds: float) -> float:
        nonlocal now
        now += seconds
        return seconds / 1000

    with Progress(["a", "b", "a", "b"], tmp_path, said, lambda: now) as progress:
        for part, seconds in (("a", 10), ("b", 50), ("a", 20), ("b", 50)):
            progress.measure(part, lambda taken=seconds: take(taken), machine.told)
            assert said.getvalue().count("\n") == progress._done
    assert said.getvalue().splitlines() == [
        "1/4 a ... 10 ms; about 30 s left",  # as long as the one so far
        "2/4 b ... 50 ms; about 60 s left",
        "3/4 a ... 20 ms; about 50 s left",
        "4/4 b ... 50 ms",
    ]


def test_what_is_under_way_is_said_before_it_is_measured(tmp_path: Path) -> None:
    said = io.StringIO()
    with Progress(["a"], tmp_path, said) as progress:
        assert progress.measure("a", said.getvalue, lambda _: "done") == "1/1 a ... "


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_who_interrupts_is_told_what_is_kept(end: type[BaseException], tmp_path: Path) -> None:
    def interrupted() -> float:
        raise end

    def ending(measured: int) -> str:
        said, takes = io.StringIO(), [lambda: 1.0] * measured + [interrupted]
        with pytest.raises(end):
            measure(Progress(["a"] * 3, tmp_path / "a.json", said), takes)
        return said.getvalue().splitlines()[-1]

    assert ending(2) == f"stopped after 2 of 3 parts: they are kept in {tmp_path / 'a.json'}"
    assert ending(0) == "stopped after 0 of 3 parts: nothing is measured yet"


def measure(progress: Progress, takes: Sequence[Callable[[], float]]) -> None:
    with progress:
        for take in takes:
            progress.measure("a", take, machine.told)


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    said = io.StringIO()
    with pytest.raises(ZeroDivisionError):
        measure(Progress(["a"], tmp_path, said), [lambda: 1 / 0])
    assert "stopped" not in said.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("has", [True, False])
def test_the_step_with_autocast_is_measured_where_the_cpu_can(
    has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []
    monkeypatch.setattr(step, "has_bfloat16", lambda: has)
    monkeypatch.setattr(step, "KINDS", {name: lambda clients: clients / 1000 for name in step.KINDS})
    monkeypatch.setattr(
        machine, "save", lambda path, result, save=machine.save: (saved.append(result), save(path, result))
    )
    step.main(only=[2, 10], out=tmp_path / "step.json")

    written = json.loads((tmp_path / "step.json").read_text())
    assert written["finished"]
    assert [cell["run_seconds"]["median"] for cell in written["steps"]] == [0.002, 0.01]
    assert all(("mixed_precision_run_seconds" in cell) == has for cell in written["steps"])
    assert all(cell["ratio"]["median"] == 1 for cell in written["steps"])
    assert len(saved) == 2 * 5 * (4 if has else 3)  # after every part
    assert not any(result["finished"] for result in saved[:-1])
    assert saved[0]["steps"] == [
        {"clients": 2, "run_seconds": {"median": 0.002, "repetitions": [0.002]}},
        {"clients": 10},
    ]
    said = capsys.readouterr().out
    assert ("autocast is passed over: this CPU has no instructions for bfloat16" in said) == (not has)
    assert ("run in bfloat16" in said) == has
    assert len([line for line in said.splitlines() if line.endswith(" left")]) == len(saved) - 1


@pytest.mark.parametrize("through", [["-m", "sglr_flower.cli", "bench", "exchange"], ["-m", "benchmarks.exchange"]])
def test_ctrl_c_keeps_what_is_measured(through: list[str], tmp_path: Path) -> None:
    """As a terminal sends it: to the command and the benchmark that it has started."""
    out = tmp_path / "exchange.json"
    place = ["--out", str(tmp_path)] if "bench" in through else ["--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, *through, *place], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not out.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    kept = json.loads(out.read_text())["wire"]
    assert not kept["finished"]
    done = sum(len(cell["step_seconds"]["repetitions"]) for cell in kept["figures"])
    parts = 7 * len(exchange.PAYLOADS) * len(exchange.TRANSPORTS)
    assert f"stopped after {done} of {parts} parts: they are kept in {out}" in said
