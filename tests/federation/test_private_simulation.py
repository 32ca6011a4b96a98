"""Real Flower, no mocks: tiny apps run on private SuperLinks, and nothing may be left of them."""

import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.common.constant import ErrorCode

from sglr_flower.errors import UserError
from sglr_flower.federation import simulation, warm
from sglr_flower.federation.client import Outcome, Submission
from sglr_flower.federation.simulation import Resources, Simulation, check_fits
from sglr_flower.run import machine

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

PYPROJECT = """
[project]
name = "tiny"
version = "0.1.0"
description = "An app for a test."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "tiny"

[tool.flwr.app.components]
serverapp = "tiny_app:server"
clientapp = "tiny_app:client"

[tool.flwr.app.config]
then = ""
"""

APP = """
import os, signal, sys, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.train()
def train(message, context):
    if message.content["ask"].get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    print("a node's own words", flush=True)
    reply = ConfigRecord({"ray": "ray" in sys.modules, "process": os.getpid()})
    return Message(RecordDict({"reply": reply}), reply_to=message)

@client.query()
def query(message, context):
    raise ValueError("a node failed on purpose")

@server.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    messages = [Message(RecordDict({"ask": ConfigRecord({})}), node, "train") for node in nodes]
    print("replies:", len(list(grid.send_and_receive(messages))), flush=True)
    if context.run_config["then"] == "ask":
        (asked,) = grid.send_and_receive([Message(RecordDict({"ask": ConfigRecord({})}), nodes[0], "train")])
        print("ray:", asked.content["reply"]["ray"], flush=True)
    if context.run_config["then"] == "kill":
        asks = [ConfigRecord({"die": node == nodes[0]}) for node in nodes]
        messages = [Message(RecordDict({"ask": ask}), node, "train") for ask, node in zip(asks, nodes)]
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
        print("killed:", replies[nodes[0]].error.reason, flush=True)
        print("the other failed:", replies[nodes[1]].has_error(), flush=True)
        messages = [Message(RecordDict({"ask": ConfigRecord({})}), node, "train") for node in nodes * 3]
        replies = [reply.content["reply"] for reply in grid.send_and_receive(messages)]
        print("processes:", len({reply["process"] for reply in replies}), "of", len(replies), flush=True)
        print("ray:", any(reply["ray"] for reply in replies), flush=True)
        (failed,) = grid.send_and_receive([Message(RecordDict({"ask": ConfigRecord({})}), nodes[0], "query")])
        print("failed:", failed.error.code, failed.error.reason, flush=True)
    if context.run_config["then"] == "raise":
        raise ValueError("failed on purpose,\\nin two lines")
    if context.run_config["then"] == "sleep":
        time.sleep(600)
"""

CALL = """
import sys
from pathlib import Path
from sglr_flower.federation.client import Submission
from sglr_flower.federation.simulation import Resources, Simulation
with Simulation() as simulation:
    simulation.run(Submission(*map(Path, sys.argv[1:]), lambda: None), Resources(2, 0.5, 0))
"""

SMALL = Resources(nodes=2, cpus_per_node=0.5, gpus_per_node=0)


def simulate(app: Path, run_config: Path, log: Path, watch: Callable[[], None] = lambda: None) -> Outcome:
    with Simulation() as started:
        return started.run(Submission(app, run_config, log, watch), SMALL)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "tiny_app.py").write_text(APP)
    for then in ("end", "kill", "raise", "sleep"):
        (tmp_path / f"{then}.toml").write_text(f'then = "{then}"\n')
    return folder


def processes() -> list[tuple[int, int, int]]:
    """Return (pid, parent, group) of every process that still runs."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found.append((int(stat.parent.name), int(parent), int(group)))
    return found


def keepers(caller: int) -> set[int]:
    """Return the process groups a caller has started: their leaders are its children."""
    return {pid for pid, parent, group in processes() if parent == caller and pid == group}


def home(keeper: int) -> Path:
    environ = Path(f"/proc/{keeper}/environ").read_bytes().split(b"\0")
    return Path(next(entry for entry in environ if entry.startswith(b"FLWR_HOME=")).partition(b"=")[2].decode())


def left_of(groups: set[int], patience: float) -> list[int]:
    """Return the processes of the groups that still run after some seconds of patience."""
    deadline = time.monotonic() + patience
    while (left := [pid for pid, _, group in processes() if group in groups]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.flower
@linux
def test_two_at_once_end_as_recorded_and_leave_nothing(app: Path) -> None:
    groups: set[int] = set()
    homes: set[Path] = set()

    def watch() -> None:
        new = keepers(os.getpid()) - groups
        groups.update(new)
        homes.update(map(home, new))

    def run(then: str) -> Outcome:
        return simulate(app, app.parent / f"{then}.toml", app.parent / f"{then}.log", watch)

    with ThreadPoolExecutor() as pool:
        ended, raised = pool.map(run, ["end", "raise"])

    assert ended == Outcome(True, "")
    assert raised == Outcome(False, "ValueError: failed on purpose, in two lines")
    for then in ("end", "raise"):
        assert "replies: 2" in (app.parent / f"{then}.log").read_text()
    assert len(groups) == 2
    assert left_of(groups, patience=1) == []
    assert not any(folder.exists() for folder in homes)


@pytest.mark.flower
@linux
def test_nothing_outlives_a_caller_that_is_killed_or_interrupted(app: Path) -> None:
    def call(name: str) -> subprocess.Popen[str]:
        arguments = [str(app), str(app.parent / "sleep.toml"), str(app.parent / f"{name}.log")]
        return subprocess.Popen(
            [sys.executable, "-c", CALL, *arguments],
            cwd=Path(simulation.__file__).parents[1],
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # as a shell does: an interrupt goes to the whole of this group
        )

    callers = {"killed": call("killed"), "interrupted": call("interrupted")}
    try:
        for name, caller in callers.items():
            log = app.parent / f"{name}.log"
            while not log.exists() or "replies: 2" not in log.read_text():
                assert caller.poll() is None, caller.communicate()[1]
                time.sleep(0.2)
        groups = {name: keepers(caller.pid) for name, caller in callers.items()}
        homes = {home(keeper) for group in groups.values() for keeper in group}
        assert [len(group) for group in groups.values()] == [1, 1]

        callers["killed"].kill()
        os.killpg(callers["interrupted"].pid, signal.SIGINT)

        assert "KeyboardInterrupt" in callers["interrupted"].communicate(timeout=60)[1]
        assert left_of(groups["interrupted"], patience=20) == []
        assert left_of(groups["killed"], patience=30) == []
        assert not any(folder.exists() for folder in homes)
    finally:
        for caller in callers.values():
            caller.kill()
            caller.wait()


@pytest.mark.flower
@linux
def test_a_node_whose_process_is_killed_gets_another_and_none_is_rays(app: Path) -> None:
    log = app.parent / "kill.log"
    assert simulate(app, app.parent / "kill.toml", log) == Outcome(True, "")
    said = log.read_text()
    assert "killed: <class 'RuntimeError'>:<'the process of a simulated node was killed'>" in said
    assert "the other failed: False" in said
    found = re.search(r"processes: (\d) of 6", said)
    assert found is not None
    assert int(found[1]) in (1, 2)
    assert "ray: False" in said
    assert "a node's own words" in said
    assert f"failed: {ErrorCode.CLIENT_APP_RAISED_EXCEPTION} " in said
    assert "ValueError: a node failed on purpose" in said  # its traceback


@pytest.mark.flower
def test_where_nothing_is_forked_the_nodes_are_rays(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "FORKS", False)
    log = app.parent / "kill.log"
    (app.parent / "rays.toml").write_text('then = "ask"\n')
    assert simulate(app, app.parent / "rays.toml", log) == Outcome(True, "")
    assert "ray: True" in log.read_text()


@pytest.mark.flower
def test_a_run_that_flower_refuses_says_why(app: Path) -> None:
    (app.parent / "end.toml").write_text("unknown-key = 1\n")

    outcome = simulate(app, app.parent / "end.toml", app.parent / "refused.log")

    assert not outcome.succeeded
    assert "Invalid run configuration" in outcome.reason


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (Resources(2, 4096, 0), "A node asks for 4096 CPUs, but this machine has "),
        (Resources(2, 0, 0), "A node asks for 0 CPUs, but this machine has "),
        (Resources(2, 1, 99), "A node asks for 99 GPUs, but this machine has "),
    ],
)
def test_more_than_the_machine_has_is_refused(resources: Resources, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_fits(resources, 0)


@pytest.mark.flower
@linux
def test_a_superlink_that_ends_says_why_in_the_runs_log(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(simulation, "free_port", lambda: taken.getsockname()[1])
        outcome = simulate(app, app.parent / "end.toml", app.parent / "ended.log")

    assert not outcome.succeeded
    assert outcome.reason.startswith("Flower's SuperLink did not start: ")
    assert (app.parent / "ended.log").read_text().strip()


@pytest.mark.flower
@linux
def test_a_simulation_that_was_not_used_is_gone_at_once() -> None:
    with Simulation():
        (group,) = keepers(os.getpid())
        folder = home(group)
        while len(left_of({group}, 0)) < 3:  # the keeper, SuperLink and SuperExec
            time.sleep(0.02)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert not left_of({group}, 1)
    assert not folder.exists()


def test_freed_memory_is_kept_unless_the_user_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    usual = machine.steady_memory()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    own = machine.steady_memory()
    assert usual["GOMP_SPINCOUNT"] == "10000"
    assert own == {"GLIBC_TUNABLES": f"{usual['GLIBC_TUNABLES']}:glibc.malloc.hugetlb=0", "GOMP_SPINCOUNT": "5"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_block_that_is_freed_is_there_again_without_new_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    program = """
import ctypes, resource, threading
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults(size=30_000_000):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = []
thread = threading.Thread(target=lambda: found.extend(faults() for _ in range(3)))
thread.start(); thread.join()
print(max(found[1:]))
"""
    counts = {}
    for name, settings in {"usual": {}, "kept": machine.steady_memory()}.items():
        env = {**os.environ, **settings}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        counts[name] = int(done.stdout)
    assert counts["kept"] < 20 < counts["usual"]
