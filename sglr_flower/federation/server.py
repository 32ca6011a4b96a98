"""The server's side of a federation: SuperLink and SuperExec, as one group of processes in the foreground.

Under ``--isolation process`` the SuperExec, which starts a run's ServerApp, is started here and not by the SuperLink:
so it is in the group that the keeper ends, and it has to prove with a secret that it is the one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tomli_w
from filelock import FileLock, Timeout

from sglr_flower.errors import UserError
from sglr_flower.federation.client import Client, apart
from sglr_flower.federation.connection import Connection
from sglr_flower.federation.folder import VARIABLE, Federation, ready_mark
from sglr_flower.federation.health import wait_until_up
from sglr_flower.federation.processes import complaint, environment, keeper, rotate, script

START_SECONDS = 180.0  # a SuperLink takes 2 s on an idle machine; a busy one gets its time
_LOOK_SECONDS = 2.0
_CONNECTION = "federation"  # in the SuperLink's own home


def serve(directory: Path, say: Callable[[str], None]) -> None:
    """Run the SuperLink until this process is told to end, or the SuperLink ends by itself.

    Parameters
    ----------
    directory : Path
        The federation's folder.
    say : Callable[[str], None]
        Tells the user a line.

    Raises
    ------
    UserError
        If it cannot start, is running already, or ends by itself.
    """
    directory = directory.absolute()
    federation = Federation.read(directory / "federation.toml")
    os.umask(0o077)  # its database holds what nodes and server say to each other
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"the SuperLink of {directory} is running already") from None
    with lock:
        log = directory / "logs" / "superlink.log"
        rotate(log)
        before = log.stat().st_size if log.exists() else 0
        if not (directory / "superlink" / "superlink.db").exists():
            (directory / "superlink" / "registered").unlink(missing_ok=True)  # it was true of a database that is gone
        ready_mark(directory).unlink(missing_ok=True)
        env = environment(str(directory / "superlink")) | {VARIABLE: str(directory)}
        with keeper(_commands(federation, directory), log, env) as process:
            certificates = None if federation.insecure else directory / "ca.crt"
            if not wait_until_up(federation.local_address, certificates, process, START_SECONDS):
                raise UserError(f"the SuperLink did not start: {complaint(log, before)}")
            # Its own connection, under the address that this machine reaches it at.
            own = Connection(_CONNECTION, federation.local_address, str(certificates or ""))
            connections = {"superlink": {"default": _CONNECTION, _CONNECTION: own.entry()}}
            (directory / "superlink" / "config.toml").write_text(tomli_w.dumps(connections), encoding="utf-8")
            client = Client(apart(env), START_SECONDS, _CONNECTION)
            nodes = _register(federation, directory, client, None)
            ready_mark(directory).touch()  # from now on nodes that ask may come
            count = f"{nodes} node(s) may connect" if nodes else "any node may connect, as it is --insecure"
            say(f"federation {federation.name}: SuperLink is up at {federation.address}, {count} (log: {log})")
            told = ""
            while process.poll() is None:
                time.sleep(_LOOK_SECONDS)
                try:
                    _register(federation, directory, client, say)
                except UserError as error:
                    if str(error) != told:  # one key must not end the others' runs
                        told = str(error)
                        say(told)
        raise UserError(f"the SuperLink ended by itself: {complaint(log, before)}")


def _commands(federation: Federation, directory: Path) -> list[list[str]]:
    secret = ["--superexec-auth-secret-file", str(directory / "superexec.secret")]
    link = [sys.executable, "-m", "sglr_flower.federation.superlink", json.dumps(federation.operators)]
    link += ["--isolation", "process", *secret, "--host", federation.bind, "--port", str(federation.port)]
    link += ["--database", str(directory / "superlink" / "superlink.db"), "--disable-runtime-dependency-installation"]
    executor = [script("flower-superexec"), "--runtime-api-address", federation.local_address, *secret]
    if federation.insecure:
        return [[*link, "--insecure"], [*executor, "--insecure"]]
    link += ["--enable-supernode-auth", "--ssl-ca-certfile", str(directory / "ca.crt")]
    link += ["--ssl-certfile", str(directory / "server.crt"), "--ssl-keyfile", str(directory / "server.key")]
    return [link, [*executor, "--root-certificates", str(directory / "ca.crt")]]


def _register(federation: Federation, directory: Path, client: Client, say: Callable[[str], None] | None) -> int:
    """Tell the SuperLink of the nodes' keys that it does not know yet; how many it knows now."""
    if federation.insecure:
        return 0
    known = directory / "superlink" / "registered"
    done = set(known.read_text(encoding="utf-8").split()) if known.exists() else set()
    for key in sorted((directory / "keys").glob("*.pub")):
        digest = hashlib.sha256(key.read_bytes()).hexdigest()
        if digest in done:
            continue
        client.register(key)
        if say is not None:
            say(f"node {key.stem} may connect")
        done.add(digest)
        with known.open("a", encoding="utf-8") as file:
            file.write(f"{digest}\n")
    return len(done)
