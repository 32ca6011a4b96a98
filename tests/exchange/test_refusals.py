"""Who may not come in, and that whoever tries costs the others nothing."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from certificates import Authority, authority
from grpc import _server as grpc_server
from streaming import Drops, Echo, Node, Proxy, answer, round_of

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import exchange_pb2_grpc as rpc
from sglr_flower.exchange import stream as stream_module
from sglr_flower.exchange.endpoint import Endpoint
from sglr_flower.exchange.frames import encode_upload
from sglr_flower.exchange.session import run_session
from sglr_flower.exchange.stream import ExchangeError, StreamServer, can_reach
from sglr_flower.exchange.wire import SECRET_KEY


@pytest.fixture
def server() -> Iterator[StreamServer]:
    running = StreamServer()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def ours() -> Authority:
    return authority()


@pytest.fixture(scope="module")
def theirs() -> Authority:
    return authority()


@pytest.fixture
def tls_server(ours: Authority) -> Iterator[StreamServer]:
    running = StreamServer(Endpoint(certificate=ours.certificate, key=ours.key))
    yield running
    running.stop()


def runs_to_the_end(server: StreamServer, roots: bytes | None = None, within: float = 10) -> None:
    with round_of(server, [11]) as link:
        node = Node(Echo(), server.address, link.secrets[11], roots=roots)
        while answer(link):
            pass
        assert node.ended(within) is None


def refused(server: StreamServer, *headers: tuple[str, str | bytes], **settings: object) -> str:
    """Send one frame under other headers; how gRPC says no."""
    frame = encode_upload(Echo().start())
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = rpc.ExchangeStub(channel).Steps(iter([frame]), metadata=headers, timeout=10, **settings)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        return str(caught.value.code().name)


# ---- secrets


def test_a_secret_has_256_bits_and_no_two_are_the_same(server: StreamServer) -> None:
    with round_of(server, [11, 22]) as one, round_of(server, [11, 22]) as other:
        found = [*one.secrets.values(), *other.secrets.values(), server.reach_secret]
    assert len(set(found)) == 5
    assert all(len(bytes.fromhex(secret)) == 32 for secret in found)


def test_a_wrong_or_missing_secret_is_refused_before_a_frame_is_taken(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    ask = grpc_server._RequestIterator._raise_or_start_receive_message
    # gRPC takes a message from the wire when its handler asks for one, and only here.
    monkeypatch.setattr(
        grpc_server._RequestIterator, "_raise_or_start_receive_message", lambda self: (taken.append(self), ask(self))
    )
    with round_of(server, [11]) as link:
        secret = link.secrets[11]
        for headers in (
            [],
            [(SECRET_KEY, "")],
            [(SECRET_KEY, "0" * 64)],
            [(SECRET_KEY, secret[:-1])],
            [(SECRET_KEY, secret.upper() + "0")],
            [(SECRET_KEY, server.reach_secret)],
            [(SECRET_KEY, secret), (SECRET_KEY, secret)],
            [(f"{SECRET_KEY}-bin", secret.encode())],
        ):
            assert refused(server, *headers) == "UNAUTHENTICATED"
        assert not taken
        node = Node(Echo(1), server.address, secret)
        answer(link)
        assert node.ended() is None
        assert taken


def test_a_large_frame_under_a_wrong_secret_stays_with_its_sender(server: StreamServer) -> None:
    size = 64 << 20
    with Proxy(server.address) as proxy, grpc.insecure_channel(proxy.address) as channel:
        frame = pb.Upload(tensors=bytes(size))
        call = rpc.ExchangeStub(channel).Steps(iter([frame]), metadata=((SECRET_KEY, "0" * 64),), timeout=20)
        with pytest.raises(grpc.RpcError):
            next(call)
    # gRPC lets a connection have up to 4 MiB on their way before anybody has read them.
    assert 0 < proxy.passed <= (4 << 20) + (1 << 20)


def test_a_used_secret_is_refused(server: StreamServer) -> None:
    with round_of(server, [11]) as link:
        secret = link.secrets[11]
        node = Node(Echo(), server.address, secret)
        answer(link)
        assert refused(server, (SECRET_KEY, secret)) == "UNAUTHENTICATED"  # while the stream is open
        while answer(link):
            pass
        assert node.ended() is None
        assert refused(server, (SECRET_KEY, secret)) == "UNAUTHENTICATED"  # and after it


def test_a_secret_of_another_round_is_refused(server: StreamServer) -> None:
    with round_of(server, [11]) as link:
        old = link.secrets[11]
    with round_of(server, [11]):
        assert refused(server, (SECRET_KEY, old)) == "UNAUTHENTICATED"


def test_of_many_calls_with_one_secret_one_has_the_stream(
    server: StreamServer,
) -> None:
    with round_of(server, [11]) as link:
        secret = link.secrets[11]
        nodes = [Node(Echo(), server.address, secret) for _ in range(8)]
        while answer(link):
            pass
        errors = [str(node.ended()) for node in nodes]
    assert errors.count("None") == 1
    assert sum("UNAUTHENTICATED" in error for error in errors) == 7


def test_all_secrets_are_compared_whichever_is_right(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(expected: bytes, given: bytes) -> bool:
        compared.append(expected)
        return expected == given

    with round_of(server, list(range(20))) as link:
        monkeypatch.setattr("sglr_flower.exchange.link.hmac.compare_digest", compare)
        counts = []
        for secret in ("0" * 64, link.secrets[3]):
            compared.clear()
            link.claim(secret.encode())
            counts.append(len(compared))
    assert counts == [20, 20]


def test_no_secret_is_shown(
    server: StreamServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    drops = Drops()
    with caplog.at_level(logging.DEBUG), round_of(server, [11, 22], drops, start_timeout=1.0) as link:
        secrets = [*link.secrets.values(), server.reach_secret]
        shown = repr(link) + str(link) + repr(server)
        node = Node(Echo(), server.address, secrets[0])
        answer(link)
        shown += str(Node(Echo(), server.address, secrets[0]).ended())
        shown += can_reach("127.0.0.1:9", secrets[2]) + can_reach(server.address, secrets[0])
        while answer(link):
            pass
        assert node.ended() is None
    shown += caplog.text + "".join(capfd.readouterr()) + str(drops)
    assert "refused" in caplog.text
    assert not any(secret in shown for secret in secrets)


# ---- what strangers can hold


def test_calls_without_a_secret_hold_no_thread_of_the_streams(server: StreamServer) -> None:
    channels = [grpc.insecure_channel(server.address, options=[("x", k)]) for k in range(4)]
    hold, before = threading.Event(), set(threading.enumerate())

    def frames() -> Iterator[pb.Upload]:
        hold.wait(20)
        yield pb.Upload()

    calls = [
        rpc.ExchangeStub(channels[k % 4]).Steps(frames(), metadata=((SECRET_KEY, f"{k:064x}"),)) for k in range(200)
    ]
    try:
        runs_to_the_end(server)
        names = [thread.name for thread in set(threading.enumerate()) - before]
        assert sum(name.startswith("sglr-aside") for name in names) <= 2
        assert sum(name.startswith("sglr-stream") for name in names) == 1
    finally:
        for call in calls:
            call.cancel()
        hold.set()
        for channel in channels:
            channel.close()
    runs_to_the_end(server)


def test_other_methods_and_a_stream_as_a_ping_are_refused(server: StreamServer) -> None:
    secret = ((SECRET_KEY, server.reach_secret),)
    with grpc.insecure_channel(server.address) as channel:
        for method in ("/sglr_flower.exchange.Exchange/Weights", "/grpc.health.v1.Health/Check", "/x", "/"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", metadata=secret, timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert can_reach(server.address, server.reach_secret) == ""


def test_connections_that_say_nothing_block_nobody_and_are_closed(
    monkeypatch: pytest.MonkeyPatch, ours: Authority
) -> None:
    monkeypatch.setattr(stream_module, "HANDSHAKE_SECONDS", 2)
    plain, tls = StreamServer(), StreamServer(Endpoint(certificate=ours.certificate, key=ours.key))
    try:
        silent = [connect(server) for server in (plain, tls) for _ in range(50)]
        silent[0].sendall(b"PRI * HTTP/2.0\r\n\r\n")  # half of the preface
        silent[50].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a TLS handshake
        began = time.monotonic()
        runs_to_the_end(plain)
        runs_to_the_end(tls, ours.root)
        for connection in silent:
            connection.settimeout(max(0.1, began + 10 - time.monotonic()))
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass  # gRPC's own greeting
            connection.close()
    finally:
        plain.stop()
        tls.stop()


def test_a_connection_without_a_call_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "IDLE_SECONDS", 1)
    server = StreamServer()
    try:
        with connect(server) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
            connection.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass
    finally:
        server.stop()


def test_connections_beyond_the_limit_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_CONNECTIONS", 5)
    server = StreamServer()
    try:
        kept = [connect(server) for _ in range(5)]
        time.sleep(0.3)
        with connect(server) as one_more:
            one_more.settimeout(5)
            with contextlib.suppress(ConnectionError):
                assert one_more.recv(4096) == b""
        for connection in kept:
            connection.close()
        time.sleep(0.3)
        runs_to_the_end(server)
    finally:
        server.stop()


# ---- frames too large


def test_a_frame_over_the_limit_is_refused_and_its_node_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglr_flower.exchange.link.REASON_SECONDS", 0.2)
    server, drops = StreamServer(max_frame=4096), Drops()

    class Large(Echo):
        def upload(self, step: int, value: float):
            upload = super().upload(step, value)
            object.__setattr__(upload, "smashed", upload.smashed.repeat(1, 1000))
            return upload

    try:
        with round_of(server, [11, 22], drops) as link:
            large = Node(Large(), server.address, link.secrets[11])
            small = Node(Echo(), server.address, link.secrets[22])
            while answer(link):
                pass
            assert "RESOURCE_EXHAUSTED" in str(large.ended())
            assert small.ended() is None
        assert list(drops) == [11]
        assert link.traffic[11].sent.up == 0
    finally:
        server.stop()


def test_an_answer_over_the_limit_ends_the_node(server: StreamServer) -> None:
    errors: list[Exception] = []

    def node(secret: str) -> None:
        try:
            run_session(Echo(), server.address, secret, 20, max_frame=64)
        except ExchangeError as error:
            errors.append(error)

    with round_of(server, [11]) as link:
        thread = threading.Thread(target=node, args=(link.secrets[11],))
        thread.start()
        answer(link)
        thread.join(10)
    assert "RESOURCE_EXHAUSTED" in str(errors)


def test_a_compressed_frame_is_refused(server: StreamServer) -> None:
    with round_of(server, [11]) as link:
        header = (SECRET_KEY, link.secrets[11])
        assert refused(server, header, compression=grpc.Compression.Gzip) == "UNIMPLEMENTED"
        assert link.sent.up == 0


# ---- TLS


def test_a_stream_over_tls(tls_server: StreamServer, ours: Authority) -> None:
    assert tls_server.tls
    assert can_reach(tls_server.address, tls_server.reach_secret, ours.root) == ""
    runs_to_the_end(tls_server, ours.root)


def test_nodes_refuse_a_server_of_another_authority(tls_server: StreamServer, theirs: Authority) -> None:
    assert "SSL_ERROR_SSL" in can_reach(tls_server.address, tls_server.reach_secret, theirs.root)
    with round_of(tls_server, [11]) as link:
        node = Node(Echo(), tls_server.address, link.secrets[11], roots=theirs.root)
        assert "SSL_ERROR_SSL" in str(node.ended())
        assert link.claim(link.secrets[11].encode()) == 11  # it was never shown to anybody


def test_nodes_refuse_a_certificate_for_another_address() -> None:
    elsewhere = authority("192.0.2.7")
    server = StreamServer(Endpoint(certificate=elsewhere.certificate, key=elsewhere.key))
    try:
        assert "UNAVAILABLE" in can_reach(server.address, server.reach_secret, elsewhere.root)
    finally:
        server.stop()


def test_plaintext_does_not_come_through_a_tls_port(tls_server: StreamServer) -> None:
    assert "does not answer" in can_reach(tls_server.address, tls_server.reach_secret)
    with round_of(tls_server, [11]) as link:
        node = Node(Echo(), tls_server.address, link.secrets[11])
        assert isinstance(node.ended(), ExchangeError)
        assert link.sent.up == 0


def test_tls_does_not_come_through_a_plaintext_port(server: StreamServer, ours: Authority) -> None:
    assert "does not answer" in can_reach(server.address, server.reach_secret, ours.root)


def test_nothing_of_a_step_can_be_read_on_the_way(tls_server: StreamServer, ours: Authority) -> None:
    with Proxy(tls_server.address) as proxy, round_of(tls_server, [11]) as link:
        secret = link.secrets[11]
        node = Node(Echo(), proxy.address, secret, roots=ours.root)
        while answer(link):
            pass
        assert node.ended() is None
    assert proxy.passed > 500
    assert not any(word in bytes(proxy.seen) for word in (secret.encode(), b"smashed", b"labels", b"sglr"))


def test_without_tls_it_could_be_read(server: StreamServer) -> None:
    with Proxy(server.address) as proxy, round_of(server, [11]) as link:
        node = Node(Echo(), proxy.address, link.secrets[11])
        while answer(link):
            pass
        assert node.ended() is None
    assert b"smashed" in bytes(proxy.seen)


def connect(server: StreamServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)
