"""Where the port is bound, what nodes are told, and that plaintext leaves the machine only when somebody says so."""

from __future__ import annotations

import logging

import pytest
from certificates import Authority, authority

from sglr_flower.errors import UserError
from sglr_flower.exchange.endpoint import Endpoint, is_loopback, refuse_plaintext, split_address
from sglr_flower.exchange.stream import StreamServer, can_reach


@pytest.fixture(scope="module")
def pair() -> Authority:
    return authority()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1", ("10.0.0.1", "")),
        ("10.0.0.1:80", ("10.0.0.1", "80")),
        ("lab.example:80", ("lab.example", "80")),
        ("[::1]:80", ("::1", "80")),
        ("[::1]", ("::1", "")),
        ("fe80::1", ("fe80::1", "")),
    ],
)
def test_addresses_are_taken_apart(address: str, parts: tuple[str, str]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_what_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        (Endpoint(), "127.0.0.1:5"),
        (Endpoint("::1"), "[::1]:5"),
        (Endpoint(advertise="lab.example"), "lab.example:5"),
        (Endpoint(advertise="lab.example:7"), "lab.example:7"),
        (Endpoint(advertise="fe80::1"), "[fe80::1]:5"),
        (Endpoint(advertise="[fe80::1]:7"), "[fe80::1]:7"),
    ],
)
def test_what_nodes_are_told(endpoint: Endpoint, told: str) -> None:
    endpoint.check()
    assert endpoint.address(5) == told


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        (Endpoint("192.0.2.7"), "192.0.2.7 can be reached from other machines"),
        (Endpoint("0.0.0.0", advertise="lab.example"), "0.0.0.0 can be reached from other machines"),
        (Endpoint("0.0.0.0", allow_plaintext=True), "advertise must say which one"),
        (Endpoint(certificate=b"x"), "a certificate but no key"),
        (Endpoint(key=b"x"), "a key but no certificate"),
        (Endpoint(certificate=b"x", key=b"y"), "no PEM"),
        (Endpoint("192.0.2.7", allow_plaintext=True), "192.0.2.7:0 cannot be bound"),
    ],
    ids=["address", "all addresses", "no name", "no key", "no certificate", "no PEM", "another machine's"],
)
def test_an_endpoint_that_cannot_be_is_refused(endpoint: Endpoint, says: str) -> None:
    with pytest.raises(UserError, match=says):
        StreamServer(endpoint)


def test_a_port_in_use_is_refused() -> None:
    server = StreamServer()
    try:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be bound"):
            StreamServer(Endpoint(port=port))
    finally:
        server.stop()


def test_plaintext_on_all_addresses_needs_leave_and_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr.sglr"):
        server = StreamServer(Endpoint("0.0.0.0", advertise="127.0.0.1", allow_plaintext=True))
    try:
        assert not server.tls
        assert can_reach(server.address, server.reach_secret) == ""
    finally:
        server.stop()
    assert "is plaintext" in caplog.text


def test_with_a_certificate_all_addresses_need_no_leave(pair: Authority, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint("0.0.0.0", advertise="127.0.0.1", certificate=pair.certificate, key=pair.key)
    with caplog.at_level(logging.WARNING, "flwr.sglr"):
        server = StreamServer(endpoint)
    try:
        assert server.tls
        assert can_reach(server.address, server.reach_secret, pair.root) == ""
    finally:
        server.stop()
    assert not caplog.text


@pytest.mark.parametrize(
    "address", ["10.0.0.1:80", "lab.example:80", "localhost.example:80", "unix:/tmp/x", "127.0.0.1"]
)
def test_a_node_sends_no_plaintext_over_a_network_unless_told_so(address: str) -> None:
    with pytest.raises(UserError, match="root-certificates"):
        refuse_plaintext(address, allowed=False)
    refuse_plaintext(address, allowed=True)


@pytest.mark.parametrize("address", ["127.0.0.1:80", "[::1]:80", "localhost:80"])
def test_a_node_may_send_plaintext_on_its_own_machine(address: str) -> None:
    refuse_plaintext(address, allowed=False)


def test_an_endpoint_does_not_show_its_key(pair: Authority) -> None:
    endpoint = Endpoint(certificate=pair.certificate, key=pair.key)
    assert "PRIVATE" not in repr(endpoint)
