"""Whether a SuperLink is up: the one question of this program that goes to it without Flower's own commands."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
import time
from pathlib import Path

from sglr_flower.federation import internals as flower
from sglr_flower.federation.folder import split_address

NOT_READY = 503
"""The status by which a federation's SuperLink says that it is up and does not know all nodes' keys yet."""


def ask_health(address: str, certificates: Path | None) -> None:
    """Find out whether a SuperLink answers.

    Parameters
    ----------
    address : str
        HOST:PORT.
    certificates : Path or None
        PEM file of the CA that its certificate must be of; None: without TLS.

    Raises
    ------
    OSError, http.client.HTTPException
        If nobody answers, or not as a SuperLink; an `ssl.SSLCertVerificationError` if it is not the CA's; a
        `NotReadyError` if it is up and nodes have to wait.
    """
    host, port = split_address(address)
    connection: http.client.HTTPConnection
    if certificates is None:
        connection = http.client.HTTPConnection(host, port, timeout=5)  # it uses no proxy, unlike urllib
    else:
        context = ssl.create_default_context(cafile=str(certificates))
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
    with contextlib.closing(connection):
        connection.request("GET", flower.HEALTH)
        status = connection.getresponse().status
        if status == NOT_READY:
            raise NotReadyError("it is taking the keys of its nodes")
        if status != 200:
            raise OSError(f"it answered {status}, which no SuperLink does")


class NotReadyError(OSError):
    """A SuperLink is up, and nodes have to wait until it knows their keys."""


def wait_until_up(address: str, certificates: Path | None, process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a SuperLink that has been started: whether it answers before its process ends or time is up.

    One that answers that nodes have to wait is up.

    Parameters
    ----------
    address, certificates
        As of `ask_health`.
    process : subprocess.Popen
        The leader of its group.
    seconds : float
        How long it may take.
    """
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            with contextlib.suppress(NotReadyError):
                ask_health(address, certificates)
            return process.poll() is None
        time.sleep(0.05)
    return False
