"""A warm interpreter: it has imported what a simulation's processes need, and forks them.

Each of Flower's commands, and each process that computes, would import the same modules again, one to three seconds of
a processor every time; a fork has them at once, and shares the memory they take. What is asked of it comes over a
socket in the private folder of its simulation: the name of one of Flower's own commands, as its distribution declares
them, or ``module:function`` of this package, with arguments and open files. It leads the group of all that it forks
(`processes.group_of`), and has no thread of its own, as a fork has only the one that forks.

Where a fork is not safe, which is everywhere but on Linux, Flower's commands are started as the scripts that they are.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import NoReturn

from sglr_flower.federation.processes import END_SECONDS, end_group, group_of, script

Command = Callable[[], int | str | None]
"""What runs a command whose arguments are in ``sys.argv``, to its exit status."""
FORKS = sys.platform == "linux"
"""Whether processes are forked here."""
VARIABLE = "SGLR_WARM_SOCKET"
"""Where the processes of a simulation find the socket."""
_SOCKET = "warm.sock"
_BIN = "bin"
_SHIM = "flwr-simulation"
_LASTING, _PASSING = ("flower-superlink", "flower-superexec"), ("flwr", _SHIM)
"""Flower's commands: those that are up for as long as the simulation is, and those that a run needs."""
_SHIM_PROGRAM = f"""
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.environ[{VARIABLE!r}])
    request = json.dumps([["sglr_flower.federation.forked:simulation", *sys.argv[1:]], False]).encode() + b"\\n"
    socket.send_fds(connection, [request], [0, 1, 2])
"""
_MODULES = (
    "torch",
    "sglr_flower.federation.preflight",
    "sglr_flower.flower.server",
    "sglr_flower.flower.node",
    "sglr_flower.federation.forked",
)
_KILLED = -int(signal.SIGKILL)


@dataclass(frozen=True)
class Interpreter:
    """A warm interpreter as the process sees it that has started it.

    Attributes
    ----------
    process : subprocess.Popen
        It, which leads the group; it has ended once one of the commands has that it was started with.
    home : Path
        Its private folder.
    """

    process: Popen[bytes]
    home: Path

    def start(self, command: Sequence[str], stdin: int, stdout: int, stderr: int) -> Forked:
        """Fork a process for a command.

        Parameters
        ----------
        command : sequence of str
            The name of one of Flower's commands, or ``module:function``, and its arguments.
        stdin, stdout, stderr : int
            Its files, as the numbers that they are open under here; `subprocess.DEVNULL`: none.
        """
        with contextlib.ExitStack() as opened:
            files = []
            for number in (stdin, stdout, stderr):
                if number == DEVNULL:
                    number = os.open(os.devnull, os.O_RDWR)
                    opened.callback(os.close, number)
                files.append(number)
            return Forked(_ask(self.home / _SOCKET, command, files))


class Forked:
    """A process that a warm interpreter has forked, or will as soon as it is warm; it ends with `close` at the latest.

    Parameters
    ----------
    connection : socket.socket
        To the interpreter, which writes the exit code there.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended, as `subprocess.Popen.wait`: minus its number for a signal.

        Raises
        ------
        subprocess.TimeoutExpired
            If it has not ended within so many seconds.
        """
        if self._code is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise TimeoutExpired("a forked process", timeout or 0.0)
            with contextlib.suppress(OSError):
                self._code = int(self._connection.recv(16) or _KILLED)  # nothing: the interpreter itself is gone
        return _KILLED if self._code is None else self._code

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        try:
            return self.wait(0)
        except TimeoutExpired:
            return None

    def close(self) -> None:
        """End it if it still runs, in good order if it does so within `END_SECONDS`."""
        if self.poll() is None:
            with contextlib.suppress(OSError, TimeoutExpired):
                self._connection.shutdown(socket.SHUT_WR)
                self.wait(END_SECONDS)
        self._connection.close()


@contextlib.contextmanager
def interpreter(
    home: Path, commands: Sequence[Sequence[str]], log: Path, env: Mapping[str, str]
) -> Iterator[Interpreter]:
    """Start a warm interpreter, which at once forks processes for some of Flower's commands.

    Parameters
    ----------
    home : Path
        Its private folder; where the caller is killed, it is removed.
    commands : sequence of sequence of str
        The commands; when one of them ends, all is ended.
    log : Path
        File to which they append what they say.
    env : mapping of str to str
        The environment of all processes.
    """
    log.touch()
    env = {**env, VARIABLE: str(home / _SOCKET)}
    if FORKS:
        # A SuperExec starts this command by its name; this one asks for a fork that is it.
        (home / _BIN).mkdir()
        shim = home / _BIN / _SHIM
        line = ["exec", sys.executable, "-ISE", "-c", _SHIM_PROGRAM]
        shim.write_text(f'#!/bin/sh\n{shlex.join(line)} "$@"\n', encoding="utf-8")
        shim.chmod(0o700)
        env["PATH"] = os.pathsep.join([str(home / _BIN), env["PATH"]])
    arguments = [str(home), json.dumps([list(command) for command in commands]), str(log), "forks" if FORKS else ""]
    with group_of("sglr_flower.federation.warm:lead", arguments, env, errors=log) as process:
        yield Interpreter(process, home)


def fork(command: Sequence[str], files: Sequence[int]) -> None:
    """Have the warm interpreter of this process fork another, which ends by itself; for the simulation's processes.

    Parameters
    ----------
    command : sequence of str
        As in `Interpreter.start`.
    files : sequence of int
        Its stdin, stdout and stderr, and further ones that it finds as number 3 and above.
    """
    _ask(Path(os.environ[VARIABLE]), command, files, ends_with_us=False).close()


def _ask(address: Path, command: Sequence[str], files: Sequence[int], *, ends_with_us: bool = True) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.connect(str(address))
            break
        except (FileNotFoundError, ConnectionRefusedError):  # it is about to listen
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    socket.send_fds(connection, [json.dumps([list(command), ends_with_us]).encode() + b"\n"], files)
    return connection


# ---- the interpreter's own process


def lead(home: str, commands: str, log: str, forks: str) -> None:
    """Be a warm interpreter until stdin closes or one of the commands ends; in a fork, what was asked for.

    Parameters
    ----------
    home, commands, log : str
        As in `interpreter`, the commands as JSON.
    forks : str
        Empty: each command is started as the script that it is, and nothing is imported for it.
    """
    gc.disable()  # imports make no garbage worth looking for; what there is by then is looked at by no fork either
    # NumPy's library of linear algebra has threads of its own, and takes care of them when it is forked.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    _end_at_once(_Leader(Path(home), bool(forks)).run(json.loads(commands), Path(log)))


def _end_at_once(call: Command) -> NoReturn:
    """Call it and end with its exit status, as an interpreter does but without torch's half a second of good order."""
    status: object = 1  # of an exception, whose traceback the interpreter prints

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))

    # Python waits for threads before it comes to this; what the command itself registers comes before it too.
    atexit.register(leave)
    try:
        status = call()
    except SystemExit as end:
        status = end.code
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.exit()


class _Leader:
    """The interpreter's loop.

    Parameters
    ----------
    home : Path
        Its private folder.
    forks : bool
        Whether forks go on as what they are asked for; else they become its script.
    """

    def __init__(self, home: Path, forks: bool) -> None:
        self._home, self._forks = home, forks
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(home / _SOCKET))
        self._listener.listen(64)
        # A child's end wakes the loop up: Python writes the signal's number to a socket only where it has a handler.
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._children: dict[int, socket.socket | None] = {}
        self._told: set[int] = set()  # to end

    def run(self, commands: Sequence[Sequence[str]], log: Path) -> Command:
        """Fork until the end; it returns in a fork alone, with what that one has to call."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno())
        for name in _LASTING if self._forks else ():
            command(name)
        with log.open("ab") as said, Path(os.devnull).open("rb") as nothing:
            for line in commands:
                if call := self._fork(line, [nothing.fileno(), said.fileno(), said.fileno()], None):
                    return call
        needed = set(self._children)
        with warnings.catch_warnings():  # a simulation has every deprecation shown, which is for no other process
            for name in _PASSING if self._forks else ():
                command(name)
        for name in _MODULES if self._forks else ():
            importlib.import_module(name)
        while needed <= self._children.keys():
            waiting = {pid: each for pid, each in self._children.items() if each is not None and pid not in self._told}
            ready = select.select([sys.stdin, self._listener, self._woken, *waiting.values()], [], [])[0]
            if sys.stdin in ready:
                break
            if self._woken in ready:
                self._woken.recv(4096)
                self._reap()
            for pid, connection in waiting.items():
                if connection in ready and pid in self._children:  # whoever wanted it wants it no more
                    self._told.add(pid)
                    os.kill(pid, signal.SIGTERM)
            if self._listener in ready and (call := self._answer()):
                return call
        end_group(self._children, str(self._home))

    def _answer(self) -> Command | None:
        """Fork as the next connection asks."""
        connection, _ = self._listener.accept()
        request, files = b"", list[int]()
        while not request.endswith(b"\n"):
            part, received, _, _ = socket.recv_fds(connection, 1 << 16, 8)
            if not part:
                break
            request += part
            files += received
        call = None
        if request:
            line, ends_with_it = json.loads(request)
            call = self._fork(line, files, connection if ends_with_it else None)
        for number in files[: 3 if call else None]:  # a fork has the first three under other numbers
            os.close(number)
        if call is None and not (request and ends_with_it):
            connection.close()
        return call

    def _fork(self, line: Sequence[str], files: Sequence[int], connection: socket.socket | None) -> Command | None:
        gc.freeze()  # a collection in a fork would write to, and so copy, the memory that it shares
        pid = os.fork()
        if pid:
            self._children[pid] = connection
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for open_here in (self._listener, self._woken, self._wake, connection, *self._children.values()):
            if open_here is not None:
                open_here.close()
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
        if not self._forks:
            os.execv(script(line[0]), [*line])
        gc.enable()
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(line[0].replace("sglr_flower.", ""))  # what `top` shows
        sys.argv = [*line, *map(str, files[3:])]
        return _load(line[0])

    def _reap(self) -> None:
        """Tell who waits for them of the children that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._told.discard(pid)
            connection = self._children.pop(pid, None)
            if connection is not None:
                with contextlib.suppress(OSError), connection:
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def command(name: str) -> Command:
    """One of Flower's own commands, as its distribution declares them."""
    (found,) = metadata.distribution("flwr").entry_points.select(group="console_scripts", name=name)
    loaded: Command = found.load()
    return loaded


def _load(name: str) -> Command:
    module, _, function = name.partition(":")
    if not function:
        return command(name)
    loaded: Command = getattr(importlib.import_module(module), function)
    return loaded
