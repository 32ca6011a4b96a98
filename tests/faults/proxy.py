"""The network between the nodes and the server, in the harness's hands: a TCP proxy that fails for one node.

The server is bound to 127.0.0.1 and the nodes are told 127.0.0.2, which is this machine too; there the proxy listens on
the same ports. A connection belongs to the node whose process holds its near end.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

import psutil

SERVER = "127.0.0.1"
"""Where the server listens."""
PUBLIC = "127.0.0.2"
"""Where the nodes find it."""


class _Connection:
    """One connection through the proxy.

    Attributes
    ----------
    state : str
        ``up``; ``silent``: open, and carries nothing; ``reset`` or ``ended``: broken at both ends at once, or closed.
    """

    def __init__(self, key: str, near: socket.socket, far: socket.socket, state: str) -> None:
        self.key, self.state = key, state
        self._ends = near, far

    def carry(self) -> None:
        """Both directions, until the connection ends."""
        near, far = self._ends
        up = threading.Thread(target=self._pump, args=(near, far), name="proxy", daemon=True)
        up.start()
        self._pump(far, near)
        up.join()

    def fail(self, state: str) -> None:
        """Bring it into a state."""
        self.state = state
        if state == "reset":
            self.reset()
        elif state == "ended":
            self.end()

    def end(self) -> None:
        """In good order."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """As by a router that knows nothing of the connection: no end, a reset."""
        self.state = "reset"
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD)  # wakes the pumps up and sends nothing; the reset comes with the close

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if self.state == "up":
                    sink.sendall(content)
        if self.state == "up":
            self.end()


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
        self._down: dict[str, str] = {}  # key -> state of its connections
        self._listeners = [socket.create_server((PUBLIC, port)) for port in ports]
        for port, listener in zip(ports, self._listeners, strict=True):
            threading.Thread(target=self._accept, args=(listener, port), name="proxy", daemon=True).start()

    def cut(self, key: str) -> int:
        """Reset the key's connections, at both ends at once, and all new ones until `heal`; how many there were."""
        return self._fail(key, "reset")

    def close_off(self, key: str) -> int:
        """As `cut`, but connections are closed in good order: a TLS handshake ends before it is done."""
        return self._fail(key, "ended")

    def silence(self, key: str) -> int:
        """Swallow all that the key's connections carry, new ones too, until `heal`; how many there were."""
        return self._fail(key, "silent")

    def heal(self, key: str) -> None:
        """The network works again; what was silent is broken, as nobody knows any more what got lost in it."""
        self._down.pop(key, None)
        for connection in list(self._connections):
            if connection.key == key and connection.state == "silent":
                connection.reset()

    def close(self) -> None:
        """Break everything and close the ports."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in list(self._connections):
            connection.reset()

    def _fail(self, key: str, state: str) -> int:
        self._down[key] = state
        mine = [connection for connection in list(self._connections) if connection.key == key]
        for connection in mine:
            connection.fail(state)
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
                connection = _Connection(key, near, far, self._down.get(key, "up"))
                self._connections.append(connection)
                connection.fail(connection.state)
                connection.carry()
                self._connections.remove(connection)


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
