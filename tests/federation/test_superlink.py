"""The gate in front of the SuperLink: who gets through to which API."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from sglr_flower.federation.superlink import REFUSAL, App, Gate

FLEET, CONTROL, RUNTIME = "/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/runtime/acquire-task"
DEVICE, OPERATOR, ITSELF, LOOPBACK = "192.168.1.77", "10.1.2.3", "192.168.1.10", "127.0.0.1"


def status(path: str, caller: str, **headers: str) -> int:
    behind = Starlette(routes=[Route("/{rest:path}", lambda request: PlainTextResponse("through"), methods=["POST"])])
    status, text = post(Gate(behind, ["10.1.2.0/24"]), path, caller, headers)
    assert text == ("through" if status == 200 else REFUSAL)
    return status


def post(app: App, path: str, caller: str, headers: dict[str, str]) -> tuple[int, str]:
    """What an HTTP server would hand the app of a request to 192.168.1.10:9092, its path as it came; status, body."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": (caller, 50_000),
        "server": (ITSELF, 9092),
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], body.decode()


@pytest.mark.parametrize("caller", [DEVICE, OPERATOR, ITSELF, LOOPBACK, "::1", "::ffff:192.168.1.77"])
def test_whoever_calls_reaches_what_nodes_need(caller: str) -> None:
    assert status(FLEET, caller) == 200
    assert status("/health", caller) == 200


def test_it_is_not_up_for_nodes_before_their_keys_are_known(tmp_path: Path) -> None:
    """Also not for those on its own machine; what the server itself needs until then goes through."""
    behind = Starlette(routes=[Route("/{rest:path}", lambda request: PlainTextResponse("up"), methods=["POST"])])
    gate = Gate(behind, [], tmp_path / "ready")
    assert post(gate, "/health", DEVICE, {}) == post(gate, "/health", LOOPBACK, {}) == (503, "")
    assert post(gate, CONTROL, LOOPBACK, {}) == post(gate, FLEET, DEVICE, {}) == (200, "up")
    (tmp_path / "ready").touch()
    assert post(gate, "/health", DEVICE, {}) == (200, "up")


@pytest.mark.parametrize("path", [CONTROL, RUNTIME])
@pytest.mark.parametrize("caller", [ITSELF, LOOPBACK, "127.0.0.5", "::1", "::ffff:127.0.0.1"])
def test_the_servers_own_machine_reaches_all(caller: str, path: str) -> None:
    assert status(path, caller) == 200


@pytest.mark.parametrize(
    "path", [CONTROL, RUNTIME, "/docs", "/openapi.json", "/", "/v1/responses", "/healthy", "/v1/fleet"]
)
@pytest.mark.parametrize("caller", [DEVICE, "8.8.8.8", "fd00::7", "testclient"])
def test_a_device_or_a_stranger_gives_no_orders(caller: str, path: str) -> None:
    assert status(path, caller) == 403


def test_an_operators_network_gives_orders_and_no_more() -> None:
    assert status(CONTROL, OPERATOR) == 200
    assert status(CONTROL, f"::ffff:{OPERATOR}") == 200
    assert status(RUNTIME, OPERATOR) == 403


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "host"])
def test_no_header_makes_a_stranger_local(header: str) -> None:
    assert status(CONTROL, DEVICE, **{header: LOOPBACK}) == 403


@pytest.mark.parametrize("path", ["/v1/fleet/../control/start-run", "//v1/control/start-run", "/V1/CONTROL/start-run"])
def test_no_spelling_of_a_path_leads_to_the_control_api(path: str) -> None:
    """What the gate takes for the fleet API is passed on as it is, and the SuperLink's router does not normalise it."""
    control = Starlette(routes=[Route(CONTROL, lambda request: PlainTextResponse("through"), methods=["POST"])])
    assert post(control, CONTROL, DEVICE, {}) == (200, "through")
    assert post(Gate(control, []), path, DEVICE, {})[0] in (403, 404)
