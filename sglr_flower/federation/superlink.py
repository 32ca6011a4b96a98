"""`flower-superlink` behind a gate: on its one port every caller may use what nodes need, and only operators the rest.

A SuperLink of Flower 1.41 serves three APIs on one port. The fleet API, for nodes, checks their signatures. The control
API, which submits, lists and stops runs and registers nodes, asks for no account (account authentication is a plugin
that is not part of the open-source package), so whoever can open a TLS connection could run code of their own on the
server and on all nodes. The runtime API serves the run's own processes, which are on the server's machine.

Hence the gate: control for the server's own machine and the networks of ``operators`` in ``federation.toml``, runtime
for the own machine alone, fleet for all. It also says 503 to whoever asks whether the SuperLink is up until the server
has registered the keys of all nodes: a SuperNode that comes earlier is refused.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from sglr_flower.federation import internals as flower
from sglr_flower.federation.folder import VARIABLE, ready_mark
from sglr_flower.federation.health import NOT_READY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REFUSAL = "This SuperLink takes orders from its own machine and its operators' networks only (sglr federation)."


class Gate:
    """An ASGI app in front of the SuperLink's that refuses who has no business with an API.

    Parameters
    ----------
    app : App
        The SuperLink's.
    operators : Sequence[str]
        Networks, such as 192.168.1.0/24, that may use the control API.
    ready : Path or None
        File that is there once nodes may come; None: they may from the beginning.
    """

    def __init__(self, app: App, operators: Sequence[str], ready: Path | None = None) -> None:
        self._app, self._ready = app, ready
        self._operators = [ipaddress.ip_network(network) for network in operators]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 403, or with 503 while nodes may not come yet."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        early = self._ready is not None and scope["path"] == flower.HEALTH and not self._ready.exists()
        if not early and self._allows(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # the SuperLink has none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": NOT_READY if early else 403, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if early else REFUSAL.encode()})

    def _allows(self, scope: Scope) -> bool:
        path = str(scope["path"])
        if path.startswith(flower.FLEET) or path == flower.HEALTH:
            return True
        client = _address(scope.get("client"))
        if client is None:
            return False
        # What the own machine sends to its own network address comes from that address.
        if client.is_loopback or client == _address(scope.get("server")):
            return True
        return path.startswith(flower.CONTROL) and any(client in network for network in self._operators)


def _address(end: Sequence[Any] | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address of an end of a connection; that of an IPv4 peer on an IPv6 socket is IPv4."""
    try:
        address = ipaddress.ip_address(str(end[0])) if end else None
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def main() -> None:
    """Run `flower-superlink` with the gate: the first argument is the operators' networks as JSON, the others its own.

    Flower has no hook for this but the call of `uvicorn.run`, which is uvicorn's public API.
    """
    operators, ready = json.loads(sys.argv.pop(1)), ready_mark(Path(os.environ[VARIABLE]))
    run = uvicorn.run

    def guarded(app: App, **options: Any) -> None:
        # Headers must not decide who a caller is; and a line for every poll of every node would fill the disk.
        run(Gate(app, operators, ready), **{**options, "proxy_headers": False, "access_log": False})

    uvicorn.run = guarded  # type: ignore[assignment]
    flower.superlink()()


if __name__ == "__main__":
    main()
