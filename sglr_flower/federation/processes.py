"""Processes that belong to one call: Flower's own, started as one group that ends with the call.

A keeper process leads the group and reads from a pipe whose other end only the caller holds. The pipe closes when the
call ends in whatever way, SIGKILL included, and then the keeper ends the group and itself.
"""

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from sglr_flower.errors import UserError
from sglr_flower.federation import internals

END_SECONDS = 5.0  # Flower's own force-exit limit, so waiting longer brings nothing
LOG_BYTES = 10_000_000


@contextlib.contextmanager
def keeper(
    commands: Sequence[Sequence[str]],
    output: Path,
    env: Mapping[str, str],
    *,
    remove: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """Run commands as one group that ends with the block, and with this process in whatever way that ends.

    Parameters
    ----------
    commands : sequence of sequence of str
        Command lines, all started at once; when one ends, all are ended.
    output : Path
        File to which what they say is appended.
    env : mapping of str to str
        Their environment.
    remove : str
        Folder to remove at the end, if any; if a command ends by itself, it is there until the block ends.

    Yields
    ------
    subprocess.Popen
        The keeper, which leads the group; it has ended once a command has ended by itself.
    """
    output.touch()
    arguments = [json.dumps([list(command) for command in commands]), str(output.resolve()), remove]
    with group_of("sglr_flower.federation.processes:keep", arguments, env) as process:
        yield process


@contextlib.contextmanager
def group_of(
    leader: str, arguments: Sequence[str], env: Mapping[str, str], errors: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a function in a process that leads a group of its own, and end them with the block.

    Parameters
    ----------
    leader : str
        ``module:function`` of this package, which calls `end_group` once its stdin is closed.
    arguments : sequence of str
        What it is called with.
    env : mapping of str to str
        Its environment.
    errors : Path or None
        File to which its stderr is appended.
    """
    module, _, function = leader.partition(":")
    root = str(Path(__file__).resolve().parents[2])
    program = f"import sys; sys.path.insert(0, {root!r}); from {module} import {function}; {function}(*sys.argv[1:])"
    # -P: what lies in the user's folder, a random.py say, must not come before Python's own modules.
    command = [sys.executable, "-P", "-c", program, *arguments]
    with open(os.devnull, "ab") if errors is None else errors.open("ab") as said:
        process = held(command, env, subprocess.DEVNULL, said.fileno())
    try:
        yield process
    finally:
        let_go([process], END_SECONDS + 5)


def held(
    command: Sequence[str], env: Mapping[str, str], stdout: int, stderr: int, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that leads a group of its own and ends it once its stdin closes, as it does when we end.

    Parameters
    ----------
    command : sequence of str
        Its command line.
    env : mapping of str to str
        Its environment.
    stdout, stderr : int
        As of `subprocess.Popen`.
    inherited : sequence of int
        Further files that it has under the same numbers.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=env,
        process_group=0,  # Ctrl-C in a terminal reaches the caller alone, who then ends this group in good order
        pass_fds=inherited,
    )


def let_go(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """End processes that are `held`, and their groups: in good order, or by force after so many seconds."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def ended_with_block(
    process: subprocess.Popen[bytes], seconds: float = END_SECONDS
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends in good order when it is asked to, or by force after so many seconds."""
    with process:
        try:
            yield process
        finally:
            process.terminate()  # of no effect where it has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()


def keep(commands: str, output: str, remove: str) -> None:
    """Run the commands in this process's group until stdin closes or one ends, then end the whole group.

    Parameters
    ----------
    commands : str
        JSON list of command lines.
    output, remove : str
        As in `keeper`, absolute or empty.
    """
    with Path(output).open("ab") as sink:
        children = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
            for command in json.loads(commands)
        ]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # after the start: a child would inherit it
    while all(child.poll() is None for child in children):
        if select.select([sys.stdin], [], [], 0.5)[0]:
            break
    end_group([child.pid for child in children], remove)


def end_group(children: Iterable[int], remove: str) -> NoReturn:
    """End the group that this process leads, itself included: in good order, or by force after `END_SECONDS`.

    Parameters
    ----------
    children : iterable of int
        The process ids of this process's children that are given their time.
    remove : str
        Folder to remove, if any, unless stdin is still open: its other end may want to read there why a command ended.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    for child in children:
        with contextlib.suppress(ChildProcessError):
            while not os.waitpid(child, os.WNOHANG)[0] and time.monotonic() < deadline:
                time.sleep(0.02)
    if remove and select.select([sys.stdin], [], [], 0)[0]:
        shutil.rmtree(remove, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
    os._exit(1)  # never reached, as the group is this process's own


def environment(home: str, code_dir: Path | None = None) -> dict[str, str]:
    """What Flower's processes inherit.

    Parameters
    ----------
    home : str
        Their FLWR_HOME.
    code_dir : Path or None
        Folder with the user's own modules.
    """
    # The user's FLWR_ variables speak of their own SuperLink: its home, fixed ports, database.
    env = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    local = ",".join(filter(None, [os.environ.get("NO_PROXY"), os.environ.get("no_proxy"), "127.0.0.1,localhost"]))
    env |= {
        # SuperLink and SuperExec look their helpers up by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "NO_PROXY": local,
        "no_proxy": local,
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": home,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        # ray.init() joins the cluster named in Ray's temporary directory; in a private one it finds none.
        "RAY_TMPDIR": home,
    }
    if code_dir is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code_dir), env.get("PYTHONPATH")]))
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    return quiet | env


def free_port() -> int:
    """A TCP port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def script(name: str) -> str:
    """The path of a command that comes with flwr.

    Raises
    ------
    UserError
        If it is nowhere.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UserError(f"The command {name} is neither beside {sys.executable} nor on the PATH: install flwr.")
    return found


def complaint(log_file: Path, before: int) -> str:
    """The last line of the log, or the first paragraph in the last of the boxes that `flwr` draws there."""
    said = said_since(log_file, before)
    box = internals.box(said)
    lines = (box or said).strip().splitlines()
    text = " ".join(itertools.takewhile(bool, lines)) if box else (lines or ["it said nothing"])[-1].strip("│ ")
    return f"{text.rstrip('.')} (see {log_file})."


def said_since(log_file: Path, before: int) -> str:
    """What was appended to a log after its first `before` bytes."""
    with log_file.open("rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace")


def rotate(log: Path) -> None:
    """Put a log that has grown beyond `LOG_BYTES` aside, over the one that was put aside before."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".1.log"))
