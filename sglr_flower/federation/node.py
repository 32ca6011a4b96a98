"""A node's side of a federation: a SuperNode in the foreground that connects again for as long as it is wanted."""

from __future__ import annotations

import contextlib
import http.client
import re
import secrets
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sglr_flower.errors import UserError
from sglr_flower.federation import internals as flower
from sglr_flower.federation import pki
from sglr_flower.federation.folder import NodeSettings, split_address
from sglr_flower.federation.health import ask_health
from sglr_flower.federation.processes import environment, free_port, keeper, rotate, said_since, script

RETRY_SECONDS = 3.0
REFUSED_SECONDS = 120.0
"""How long a key may be refused: a SuperLink counts a node that was killed for up to a minute, and learns new keys one
by one, in some seconds each."""
OVERLAP = 256  # bytes of the log that are read again: a line may have been half there
SECRET = "superexec.secret"
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_CLOCK = "is this device's clock right?"  # many have none that goes on while they are off
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Device:
    """A node as it is to be started: its settings with all folders absolute.

    Attributes
    ----------
    settings : NodeSettings
        As in ``node.toml``, or as the command line says.
    folder : Path
        Where ``node.toml``, ``node.key`` and ``ca.crt`` are.
    data_dir, state_dir : Path or None
        Its images (None: SGLR_DATA_DIR, or the user's data folder), and its clients' states.
    """

    settings: NodeSettings
    folder: Path
    data_dir: Path | None
    state_dir: Path

    @property
    def certificates(self) -> Path | None:
        """The CA's certificate; None without TLS."""
        return None if self.settings.insecure else self.folder / "ca.crt"


def read_device(folder: Path, data_dir: Path | None, state_dir: Path | None, superlink: str) -> Device:
    """The node of a folder; arguments that are given come before what is in it.

    Raises
    ------
    UserError
        If the folder is not whole, or a folder of images does not exist.
    """
    folder = folder.absolute()
    settings = NodeSettings.read(folder / "node.toml")
    if superlink:
        settings = settings.model_copy(update={"superlink": superlink})
    split_address(settings.superlink)
    for name in () if settings.insecure else ("ca.crt", "node.key"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no node's folder: it has no {name}")
    chosen = data_dir.expanduser().absolute() if data_dir else None
    if chosen is None and settings.data_dir:
        chosen = folder / Path(settings.data_dir).expanduser()
    if chosen is not None and not chosen.is_dir():
        raise UserError(f"data-dir {chosen} is no folder: it must be the one with this node's images")
    kept = state_dir.expanduser().absolute() if state_dir else folder / Path(settings.state_dir or "state").expanduser()
    return Device(settings, folder, chosen, kept)


def run(device: Device, say: Callable[[str], None]) -> None:
    """Run a SuperNode until this process is told to end; where the SuperLink is gone, wait for it.

    Parameters
    ----------
    device : Device
        The node.
    say : Callable[[str], None]
        Tells the user a line.

    Raises
    ------
    UserError
        If the SuperLink is not this federation's, or does not take the node's key.
    """
    log = device.folder / "logs" / "supernode.log"
    for needed in (device.state_dir, log.parent, device.folder / "supernode"):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(device.state_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process keeps its clients' states in {device.state_dir}: give each node its own"
        ) from None
    with lock:
        refused_since = 0.0
        while True:
            _wait_for_superlink(device, say)
            rotate(log)
            before = log.stat().st_size if log.exists() else 0
            _run_once(device, log, before, say)
            said = _COLOUR.sub("", said_since(log, before))
            refused_since = (refused_since or time.monotonic()) if flower.UNKNOWN_KEY in said else 0.0
            if refused_since and time.monotonic() - refused_since >= REFUSED_SECONDS:
                raise UserError(
                    f"the SuperLink at {device.settings.superlink} does not take the key of node "
                    f"{device.settings.name}: is {device.settings.name}.pub in the keys folder of its federation?"
                )
            say(f"node {device.settings.name}: the SuperNode ended{_why(said)}; it starts again (log: {log})")
            time.sleep(RETRY_SECONDS)


def _why(said: str) -> str:
    """Why a SuperNode has ended, from its log, as part of a sentence."""
    if flower.UNKNOWN_KEY in said:
        return (
            " as its key is not taken yet (a node that was killed counts as connected for up to a minute, a new one is "
            "known within seconds; is its .pub in the keys folder of the federation?)"
        )
    if flower.DEAF in said:
        return " as its connection broke in a handshake"
    if flower.ENDED in said and flower.CONNECTED not in said:
        return f" before it was connected, as it does where its signature is refused: {_CLOCK}"
    return ""


def commands(device: Device) -> list[list[str]]:
    """The command lines of the SuperNode and of the SuperExec, which starts its ClientApps.

    As on the server (`server`), the SuperExec is ours to start, and it alone knows the secret by which the SuperNode
    hands out what is to be run: other users of the device can reach that port too.
    """
    settings = device.settings
    # A fixed port would be taken where several nodes share a machine.
    port, secret = str(free_port()), ["--superexec-auth-secret-file", str(device.folder / "supernode" / SECRET)]
    executor = [script("flower-superexec"), "--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *secret]
    line = [script("flower-supernode"), "--superlink", settings.superlink, "--port", port]
    line += ["--isolation", "process", *secret]
    values: dict[str, str | int | bool] = {
        "partition-id": settings.partition_id,
        "num-partitions": settings.num_partitions,
        "name": settings.name,
        "state-dir": str(device.state_dir),
    }
    if device.data_dir is not None:
        values["data-dir"] = str(device.data_dir)
    if settings.insecure:
        line.append("--insecure")
        values["allow-plaintext"] = True
    else:
        certificates = str(device.folder / "ca.crt")
        line += ["--root-certificates", certificates, "--auth-supernode-private-key", str(device.folder / "node.key")]
        values["root-certificates"] = certificates
    line += ["--node-config", " ".join(f"{key}={_quoted(value)}" for key, value in values.items())]
    return [line, executor]


def _quoted(value: str | int | bool) -> str:
    """A value as Flower reads it: TOML, a text in quotes that it does not hold itself."""
    if not isinstance(value, str):
        return str(value).lower()
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value and "\\" not in value:
        return f'"{value}"'
    raise UserError(f"the path {value!r} has more kinds of quotes and backslashes than a node's config can hold")


def _wait_for_superlink(device: Device, say: Callable[[str], None]) -> None:
    """Return once the SuperLink answers.

    Raises
    ------
    UserError
        If what answers is not the federation's.
    """
    address, told = device.settings.superlink, ""
    while True:
        try:
            ask_health(address, device.certificates)
            return
        except ssl.SSLCertVerificationError as error:
            if error.verify_code != _NOT_YET_VALID:
                raise UserError(
                    f"what answers at {address} is not the SuperLink of this node's federation "
                    f"({device.certificates}): {error.verify_message}"
                ) from None
            reason = f"{error.verify_message}: {_CLOCK}"
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if reason != told:
            told = reason
            say(f"node {device.settings.name}: waiting for the SuperLink at {address} ({reason})")
        time.sleep(RETRY_SECONDS)


def _run_once(device: Device, log: Path, before: int, say: Callable[[str], None]) -> None:
    """Run a SuperNode until it ends; what it says goes to the log, and to the user once it is connected."""
    home, connected, seen = device.folder / "supernode", False, before
    (home / SECRET).unlink(missing_ok=True)
    pki.write_private(home / SECRET, secrets.token_hex(32).encode())
    with keeper(commands(device), log, environment(str(home))) as process:
        while process.poll() is None:
            new = said_since(log, seen)
            if not connected and flower.CONNECTED in new:
                connected = True
                say(f"node {device.settings.name} is connected to {device.settings.superlink} (log: {log})")
            if flower.DEAF in new:
                return
            seen = max(seen, seen + len(new.encode()) - OVERLAP)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
