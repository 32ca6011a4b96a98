"""The network between the nodes and the server, in the harness's hands: a TCP proxy that fails for one node.

The server is bound to 127.0.0.1 and the nodes are told 127.0.0.2, which is this machine too; there the proxy listens on
the same ports. A connection belongs to the node whose process holds its near end.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

SERVER = "127.0.0.1"
"""Where the server listens."""
PUBLIC = "127.0.0.2"
"""Where the nodes find it."""


@dataclass
class _Connection:
    """One connection through the proxy; a silent one stays open and carries nothing."""

    key: str
    near: socket.socket
    far: socket.socket
    silent: bool = False

    def close(self) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Network:
    """Forwards connections from `PUBLIC` to `SERVER`, as long as the network holds.

    Parameters
    ----------
    ports : Sequence[int]
        The ports to forward.
    whose : Callable[[psutil.Process], str]
        The key of a connection, given the process at its near end.
    """

    def __init__(self, ports: Sequence[int], whose: Callable[[psutil.Process], str]) -> None:
        self._whose = whose
        self._connections: list[_Connection] = []
        self._down: dict[str, bool] = {}  # key -> whether it is silent, or else broken
        self._listeners = [socket.create_server((PUBLIC, port)) for port in ports]
        for port, listener in zip(ports, self._listeners, strict=True):
            threading.Thread(target=self._accept, args=(listener, port), name="proxy", daemon=True).start()

    def cut(self, key: str) -> int:
        """Break the key's connections, at both ends at once, and all new ones until `heal`; how many there were."""
        return self._fail(key, silent=False)

    def silence(self, key: str) -> int:
        """Swallow all that the key's connections carry, new ones too, until `heal`; how many there were."""
        return self._fail(key, silent=True)

    def heal(self, key: str) -> None:
        """The network works again; what was silent is broken, as nobody knows any more what got lost in it."""
        self._down.pop(key, None)
        for connection in list(self._connections):
            if connection.key == key and connection.silent:
                connection.close()

    def close(self) -> None:
        """Break everything and close the ports."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in list(self._connections):
            connection.close()

    def _fail(self, key: str, *, silent: bool) -> int:
        self._down[key] = silent
        mine = [connection for connection in list(self._connections) if connection.key == key]
        for connection in mine:
            connection.silent = silent
            if not silent:
                connection.close()
        return len(mine)

    def _accept(self, listener: socket.socket, port: int) -> None:
        while True:
            try:
                near, peer = listener.accept()
            except OSError:
                return  # closed
            # In a thread: to find out whose it is takes a look at all processes, and others must not wait for that.
            threading.Thread(target=self._serve, args=(near, peer[1], port), name="proxy", daemon=True).start()

    def _serve(self, near: socket.socket, peer: int, port: int) -> None:
        with near:
            try:
                key = self._whose(owner(peer))
                far = socket.create_connection((SERVER, port))
            except (OSError, LookupError, psutil.Error):
                return  # either end is gone
            with far:
                connection = _Connection(key, near, far, silent=self._down.get(key, False))
                self._connections.append(connection)
                if self._down.get(key) is False:
                    connection.close()
                up = threading.Thread(target=_pump, args=(connection, near, far), name="proxy", daemon=True)
                up.start()
                _pump(connection, far, near)
                up.join()
                self._connections.remove(connection)


def _pump(connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
    """Carry one direction until it ends; where the network is silent, the end is not carried either."""
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            if not connection.silent:
                sink.sendall(content)
    if not connection.silent:
        connection.close()


def owner(port: int, seconds: float = 2.0) -> psutil.Process:
    """The process of this machine that holds a connection from the given local port.

    Raises
    ------
    LookupError
        If there is none.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for end in psutil.net_connections("tcp"):
            if end.pid and end.laddr and end.laddr.port == port and end.raddr and end.raddr.ip.endswith(PUBLIC):
                return psutil.Process(end.pid)
        time.sleep(0.05)
    raise LookupError(f"no process holds port {port}")
