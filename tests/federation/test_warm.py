"""A warm interpreter's forks: what they are given, how they end, and that they have what it has imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglr_flower.federation import warm
from sglr_flower.federation.simulation import Simulation
from sglr_flower.federation.warm import Interpreter

pytestmark = [
    pytest.mark.flower,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
]

OWN = """
import os, pathlib, signal, sys, time

def tell():
    print(*sys.argv[1:], sys.stdin.read(), "torch" in sys.modules, "ray" in sys.modules, os.getppid())
    print("aside", file=sys.stderr)
    return 3

def wait():
    def ended(*_):
        pathlib.Path(sys.argv[1]).write_text("in good order")
        sys.exit(0)
    signal.signal(signal.SIGTERM, ended)
    pathlib.Path(sys.argv[1]).write_text("waits")
    time.sleep(600)

def raise_():
    raise ValueError("on purpose")

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_commands.py").write_text(OWN)
    with Simulation(folder) as simulation:
        yield simulation.interpreter


def run(up: Interpreter, folder: Path, *command: str, said: str = "") -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    (folder / "in").write_text(said)
    with (folder / "in").open() as stdin, (folder / "out").open("w") as out:
        forked = up.start(command, stdin.fileno(), out.fileno(), out.fileno())
        code = forked.wait(60)
        forked.close()
    return code, (folder / "out").read_text()


def test_a_fork_has_its_arguments_its_files_and_what_was_imported(up: Interpreter, tmp_path: Path) -> None:
    code, said = run(up, tmp_path, "own_commands:tell", "a b", "c", said="question")

    assert code == 3
    assert said == f"a b c question True False {up.process.pid}\naside\n"


def test_flowers_own_command_is_run_as_it_is(up: Interpreter, tmp_path: Path) -> None:
    code, said = run(up, tmp_path, "flwr", "--version")
    assert (code, said.split()[0]) == (0, "Flower")

    code, said = run(up, tmp_path, "flwr", "no-such-command")
    assert code == 2
    assert "no-such-command" in said


def test_how_it_ends_is_told(up: Interpreter, tmp_path: Path) -> None:
    code, said = run(up, tmp_path, "own_commands:raise_")
    assert code == 1
    assert said.endswith("ValueError: on purpose\n")

    assert run(up, tmp_path, "own_commands:die") == (-signal.SIGKILL, "")


def test_one_that_is_wanted_no_more_ends_in_good_order(up: Interpreter, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    forked = up.start(["own_commands:wait", str(mark)], subprocess.DEVNULL, subprocess.DEVNULL, 2)
    deadline = time.monotonic() + 60
    while not mark.exists() or mark.read_text() != "waits":
        assert forked.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)

    forked.close()

    assert forked.poll() == 0
    assert mark.read_text() == "in good order"


def test_where_the_interpreter_is_gone_nobody_waits_for_its_forks(tmp_path: Path) -> None:
    with Simulation() as simulation:
        forked = simulation.interpreter.start(["flwr", "--version"], *[subprocess.DEVNULL] * 3)
        os.kill(simulation.interpreter.process.pid, signal.SIGKILL)
        assert forked.wait(60) == -signal.SIGKILL


def test_without_forks_the_scripts_themselves_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: the same interpreter, which then imports nothing."""
    monkeypatch.setattr(warm, "FORKS", False)
    with Simulation() as simulation:
        up = simulation.interpreter
        assert run(up, tmp_path, "flwr", "--version")[1].startswith("Flower version")
        assert "torch" not in Path(f"/proc/{up.process.pid}/maps").read_text()
