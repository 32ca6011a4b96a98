"""A whole federation on loopback, from its keys to a result, in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sglr_flower.errors import UserError
from sglr_flower.federation.processes import ended_with_block, free_port

UP_SECONDS = 120.0  # of SuperLink and SuperNodes on a busy machine
END_SECONDS = 30.0  # a command of `sglr` ends all that it started when it is asked to end, and also when it is killed


def run(config: Path, nodes: int, say: Callable[[str], None]) -> None:
    """Make a federation, start it, train, and end it.

    Parameters
    ----------
    config : Path
        TOML run-config.
    nodes : int
        SuperNodes.
    say : Callable[[str], None]
        Tells the user a line.

    Raises
    ------
    UserError
        If any part of it fails.
    """
    if not config.is_file():
        raise UserError(f"config file {config} does not exist")
    with tempfile.TemporaryDirectory(prefix="sglr-demo-") as folder:
        home = Path(folder)
        # A SuperLink of the user's own, and its list of others, are left alone.
        env = {**os.environ, "FLWR_HOME": str(home / "flower"), "PYTHONUNBUFFERED": "1"}
        made = home / "demo"
        ports = ["--port", str(free_port()), "--stream-port", "0"]
        _sglr("init", ["federation", "init", str(made), "--host", "127.0.0.1", "--nodes", str(nodes), *ports], env)
        say(f"federation of {nodes} nodes on loopback, with TLS and a key for each node")
        with contextlib.ExitStack() as stack:
            stack.enter_context(_background(["server", str(made)], "SuperLink is up", env))
            for number in range(nodes):
                folder_of_node = str(made / "nodes" / f"node-{number}")
                stack.enter_context(_background(["node", folder_of_node], "is connected", env))
            say("SuperLink and all nodes are up")
            command = [sys.executable, "-m", "sglr_flower.cli", "run", str(config), "--federation", "demo"]
            with ended_with_block(subprocess.Popen(command, env=env), END_SECONDS) as process:
                status = process.wait()
        if status:
            raise UserError("the demo's run failed")
        say("SuperLink and nodes are shut down")


def _sglr(what: str, arguments: Sequence[str], env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sglr_flower.cli", *arguments], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{what} failed: {(done.stderr or done.stdout).strip()}")


@contextlib.contextmanager
def _background(arguments: Sequence[str], wanted: str, env: dict[str, str]) -> Iterator[None]:
    """A command of `sglr federation`, from when it has said that it is up until the block ends."""
    command = [sys.executable, "-m", "sglr_flower.cli", "federation", *arguments]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, process_group=0
        )
        with ended_with_block(process, END_SECONDS):
            deadline = time.monotonic() + UP_SECONDS
            while wanted not in (text := os.pread(said.fileno(), 65_536, 0).decode(errors="replace")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UserError(f"sglr federation {' '.join(arguments)} did not start: {text.strip()}")
                time.sleep(0.1)
            yield
