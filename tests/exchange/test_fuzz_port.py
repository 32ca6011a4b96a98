"""Malformed frames, handshakes and headers over a real port, beside honest nodes; see `test_fuzz`."""

from __future__ import annotations

import contextlib
import socket
import string
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import grpc
import mutations
import pytest
from certificates import Authority, authority
from fuzzing import LIMIT, Tally, fuzz, mutated, refusable
from rounds import answer_to, train_check, train_session, uploads
from streaming import Drops, Echo, Node, Proxy, answer, anything, round_of

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import link as link_module
from sglr_flower.exchange.endpoint import Endpoint
from sglr_flower.exchange.frames import encode_upload
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.exchange.wire import SECRET_KEY
from sglr_flower.split.messages import Download, Upload

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture(scope="module")
def steps() -> list[Upload]:
    return uploads(train_session())


@pytest.fixture(scope="module")
def frames(steps: list[Upload]) -> list[bytes]:
    return [encode_upload(upload).SerializeToString() for upload in steps]


# ---- the same over a port


@pytest.fixture(scope="module")
def ours() -> Authority:
    return authority()


@pytest.fixture(scope="module")
def servers(ours: Authority) -> Iterator[tuple[StreamServer, StreamServer]]:
    """One without and one with TLS, that take frames up to 64 KiB."""
    pair = StreamServer(max_frame=1 << 16), StreamServer(Endpoint(certificate=ours.certificate, key=ours.key))
    yield pair
    for server in pair:
        server.stop()


@pytest.fixture(scope="module")
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


HONEST = 1000


def test_no_malformed_frame_is_accepted_over_the_port(
    servers: tuple[StreamServer, StreamServer],
    callers: ThreadPoolExecutor,
    steps: list[Upload],
    frames: list[bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "REASON_SECONDS", 0.05)
    server = servers[0]

    def send(contents: list[bytes], secret: str, channel: grpc.Channel) -> None:
        call = channel.stream_stream("/sglr_flower.exchange.Exchange/Steps")(
            iter(contents), metadata=((SECRET_KEY, secret),), timeout=20
        )
        with contextlib.suppress(grpc.RpcError):
            list(call)

    def batch(draw: Random, tally: Tally) -> None:
        # Twenty nodes that send rubbish, half of them after a right first frame, and one that sends what it should.
        sent: dict[int, tuple[str, int, bytes]] = {}
        while len(sent) < 20:
            step = len(sent) % 2
            kind, content = mutated(draw, step, frames, pb.Upload)
            if not refusable(content, steps[step]):
                continue
            sent[len(sent)] = kind, step, content
        drops = Drops()
        used: Counter[int] = Counter()
        began = time.monotonic()
        with (
            round_of(server, {**{node: train_check() for node in sent}, HONEST: anything}, drops) as link,
            grpc.insecure_channel(server.address) as channel,
        ):
            honest = Node(Echo(2), server.address, link.secrets[HONEST])
            calls = [
                callers.submit(send, [*frames[:step], content], link.secrets[node], channel)
                for node, (_, step, content) in sent.items()
            ]
            while received := link.receive():
                used.update(list(received))
                link.send(
                    {
                        node: Download(1, upload.step, own=upload.smashed) if node == HONEST else answer_to(upload)
                        for node, upload in received.items()
                    }
                )
            assert honest.ended() is None
            for call in calls:
                call.result(20)
        tally.slowest = max(tally.slowest, (time.monotonic() - began) / len(sent))
        assert used.pop(HONEST) == 2
        for node, (kind, step, content) in sent.items():
            assert node in drops, f"not dropped ({kind}): {content.hex()}"
            assert used[node] == step, f"accepted ({kind}): {content.hex()}"
            tally.refused[kind] += 1

    fuzz("port", batch, 20, capsys)


# ---- handshakes


@pytest.fixture(scope="module")
def recorded(servers: tuple[StreamServer, StreamServer], ours: Authority) -> tuple[bytes, bytes]:
    """What a real node sends to the port, without and with TLS; its secret is used up."""
    found = []
    for server, roots in zip(servers, (None, ours.root), strict=True):
        with Proxy(server.address) as proxy, round_of(server, [11]) as link:
            node = Node(Echo(2), proxy.address, link.secrets[11], roots=roots)
            while answer(link):
                pass
            assert node.ended() is None
        found.append(bytes(proxy.seen))
    return found[0], found[1]


def test_no_broken_handshake_is_accepted_or_blocks_anybody(
    servers: tuple[StreamServer, StreamServer],
    ours: Authority,
    recorded: tuple[bytes, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def garbage(draw: Random) -> tuple[str, bytes]:
        kind = draw.choice(["random bytes", "HTTP/1", "HTTP/2 frames", "TLS records", "replayed", "replayed, mutated"])
        if kind == "random bytes":
            return kind, draw.randbytes(draw.randint(1, 3000))
        if kind == "HTTP/1":
            return kind, draw.choice([b"GET / HTTP/1.1\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n", b"POST " + b"x" * 50_000])
        if kind == "HTTP/2 frames":
            made = b"".join(
                (size := draw.choice([0, 8, 100, 2**24 - 1])).to_bytes(3, "big")
                + bytes([draw.randrange(256), draw.randrange(256)])
                + draw.choice([b"\0\0\0\0", b"\0\0\0\1", draw.randbytes(4)])
                + draw.randbytes(min(size, 200))
                for _ in range(draw.randint(1, 30))
            )
            return kind, preface + draw.choice([b"", b"\0\0\0\4\0\0\0\0\0"]) + made
        if kind == "TLS records":
            body = draw.randbytes(draw.randint(0, 600))
            return kind, b"\x16\x03" + bytes([draw.randrange(5)]) + len(body).to_bytes(2, "big") + body
        content = draw.choice(recorded)
        if kind == "replayed":
            return kind, content
        name = draw.choice(sorted(mutations.BYTES))
        return kind, mutations.BYTES[name](draw, content[:20_000])[:100_000]

    def batch(draw: Random, tally: Tally) -> None:
        kinds = Counter[str]()
        with contextlib.ExitStack() as stack:
            links = [stack.enter_context(round_of(server, [11, 22])) for server in servers]
            began = time.monotonic()
            for k in range(40):  # all open at the same time
                host, _, port = servers[k % 2].address.rpartition(":")
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
                kind, content = garbage(draw)
                with contextlib.suppress(OSError):
                    connection.settimeout(1)
                    connection.sendall(content)
                kinds[kind] += 1
            # Nobody has come in, and those who may still can.
            for link in links:
                assert link.traffic[22].frames == link.sent.up == 0
            for server, roots in zip(servers, (None, ours.root), strict=True):
                with round_of(server, [33]) as own:
                    node = Node(Echo(1), server.address, own.secrets[33], roots=roots)
                    answer(own)
                    assert node.ended() is None
            tally.slowest = max(tally.slowest, (time.monotonic() - began) / 40)
            assert [len(link._unclaimed) for link in links] == [2, 2]
        tally.refused.update(kinds)

    fuzz("handshake", batch, 40, capsys)


def test_no_wrong_header_is_accepted(
    servers: tuple[StreamServer, StreamServer],
    callers: ThreadPoolExecutor,
    frames: list[bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = servers[0]

    def headers(draw: Random, secret: str) -> tuple[str, list[tuple[str, str | bytes]]]:
        kind = draw.choice(["none", "near", "random", "long", "twice", "other key", "binary", "reach"])
        place = draw.randrange(64)
        digit = draw.choice([each for each in "0123456789abcdef" if each != secret[place]])
        found: dict[str, list[tuple[str, str | bytes]]] = {
            "none": [],
            "near": [
                (SECRET_KEY, draw.choice([secret[:place] + digit + secret[place + 1 :], secret[1:], secret + "0"]))
            ],
            "random": [(SECRET_KEY, "".join(draw.choices(string.printable[:94], k=draw.randint(1, 200))))],
            "long": [(SECRET_KEY, secret * draw.choice([2, 50, 100]))],
            "twice": [(SECRET_KEY, secret), (SECRET_KEY, draw.choice([secret, "0" * 64]))],
            "other key": [(draw.choice(["authorization", "secret", "sglr_secret", "sglr-secret2"]), secret)],
            "binary": [(f"{SECRET_KEY}-bin", draw.choice([secret.encode(), draw.randbytes(64)]))],
            "reach": [(SECRET_KEY, server.reach_secret)],
        }
        return kind, found[kind]

    def call(channel: grpc.Channel, metadata: list[tuple[str, str | bytes]]) -> grpc.StatusCode:
        stream = channel.stream_stream("/sglr_flower.exchange.Exchange/Steps")(
            iter(frames), metadata=metadata, timeout=20
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        code = caught.value.code()
        assert isinstance(code, grpc.StatusCode)
        return code

    def batch(draw: Random, tally: Tally) -> None:
        began = time.monotonic()
        with (
            round_of(server, [11], start_timeout=60) as link,
            grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        ):
            tried = [headers(draw, link.secrets[11]) for _ in range(40)]
            codes = list(callers.map(lambda each: call(channel, each[1]), tried))
            assert link.sent.up == 0
            assert list(link._unclaimed) == [11]
        # Headers over gRPC's own limit end in RESOURCE_EXHAUSTED, before anybody looks for a secret.
        assert set(codes) <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        tally.slowest = max(tally.slowest, (time.monotonic() - began) / 40)
        tally.refused.update(kind for kind, _ in tried)

    fuzz("headers", batch, 40, capsys)
