"""Malformed frames, answers and handshakes by the thousand: refused, every one, and nothing else happens.

By default a few thousand; ``SGLR_FUZZ_INPUTS=100000`` runs that many and prints what they were. A frame counts as
malformed unless it is, field by field, the frame that the node should send, with other finite values in its tensors.
Hypothesis draws the seeds and names the one that fails; `mutations` makes the inputs from it.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import os
import random
import socket
import string
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import grpc
import mutations
import psutil
import pytest
from certificates import Authority, authority
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rounds import CLASSES, answer_to, train_check, train_session, uploads
from streaming import Drops, Echo, Node, Proxy, answer, anything, round_of

from sglr_flower.exchange import exchange_pb2 as pb
from sglr_flower.exchange import link as link_module
from sglr_flower.exchange.checks import check_answer
from sglr_flower.exchange.endpoint import Endpoint
from sglr_flower.exchange.frames import (
    FrameError,
    decode_download,
    decode_upload,
    encode_download,
    encode_upload,
    parse_download,
    parse_upload,
)
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.exchange.wire import SECRET_KEY
from sglr_flower.split.messages import Download, Upload

INPUTS = int(os.environ.get("SGLR_FUZZ_INPUTS", "3000"))
FULL = "SGLR_FUZZ_INPUTS" in os.environ
SHARES = {"frames": 0.6, "answers": 0.2, "port": 0.08, "handshake": 0.08, "headers": 0.04}
GROWTH = 48 << 20
"""Bytes that the process may be larger after all inputs than after the first tenth."""
SLOWEST = 5.0
"""Seconds that one input may take on a busy machine."""

pytestmark = pytest.mark.timeout(120 + INPUTS // 40)


class Tally:
    """What was tried, how long one input took at most, and the process's size on the way."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.valid: Counter[str] = Counter()
        self.slowest = 0.0
        self.sizes: list[int] = []
        self.threads: list[int] = []
        self.began = time.monotonic()

    @property
    def inputs(self) -> int:
        return sum(self.refused.values())

    def refuse(self, kind: str, error: FrameError) -> None:
        """Count one that was refused, in a sentence that can be shown."""
        assert 0 < len(str(error)) < 1000, error
        assert str(error).isprintable(), error
        self.refused[kind] += 1

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.slowest = max(self.slowest, time.monotonic() - began)

    def measure(self) -> None:
        gc.collect()
        self.sizes.append(psutil.Process().memory_info().rss)
        self.threads.append(threading.active_count())


def fuzz(share: str, batch: Callable[[Random, Tally], None], size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Run batches of ``size`` inputs until there are enough of them."""
    batches = max(2, math.ceil(INPUTS * SHARES[share] / size))
    tally = Tally()

    def some(count: int) -> None:
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=not FULL,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.integers(0, 2**63))
        def drive(seed: int) -> None:
            batch(Random(seed), tally)

        drive()

    state = random.getstate()
    for count in (max(1, batches // 10), batches - max(1, batches // 10)):
        some(count)
        tally.measure()
    random.setstate(state)
    if FULL:
        with capsys.disabled():
            kinds = ", ".join(f"{kind} {number}" for kind, number in tally.refused.most_common())
            print(
                f"\n{share}: {tally.inputs} malformed inputs, 0 accepted ({kinds}); "
                f"{sum(tally.valid.values())} mutations left a right frame; "
                f"{time.monotonic() - tally.began:.0f} s, slowest {1000 * tally.slowest:.0f} ms; resident memory "
                f"{tally.sizes[0] / 2**20:.0f} MiB after a tenth, {tally.sizes[1] / 2**20:.0f} MiB at the end; "
                f"threads {tally.threads[0]}, {tally.threads[1]}"
            )
    assert tally.inputs >= batches * size
    assert tally.slowest < SLOWEST
    assert tally.sizes[1] - tally.sizes[0] < GROWTH
    assert tally.threads[1] <= tally.threads[0] + 10


# ---- frames, decoded and checked


@pytest.fixture(scope="module")
def steps() -> list[Upload]:
    return uploads(train_session())


@pytest.fixture(scope="module")
def frames(steps: list[Upload]) -> list[bytes]:
    return [encode_upload(upload).SerializeToString() for upload in steps]


@pytest.fixture(scope="module")
def checks(steps: list[Upload]) -> list[Callable[[Upload], None]]:
    """The server's check as it stands before each step."""
    check, found = train_check(), []
    for upload in steps:
        found.append(copy.copy(check))
        check(upload)
    return found


def mutated(draw: Random, step: int, frames: list[bytes], kind: type[mutations.Frame]) -> tuple[str, bytes]:
    """A malformed input for a step, and its name; now and then it is a right one after all."""
    content, others = frames[step], [frame for k, frame in enumerate(frames) if k != step]
    name = draw.choice([*mutations.BYTES, "splices", "wrong order", "fields", "tensors", "lying headers", "twice"])
    if name in mutations.BYTES:
        return name, mutations.BYTES[name](draw, content)
    if name == "splices":
        return name, mutations.splice(draw, content, others)
    if name == "wrong order":
        return name, draw.choice(others)
    if name == "fields":
        return name, mutations.swap_fields(draw, content, others, kind)
    if name == "tensors":
        return name, mutations.other_tensors(draw, content, kind)
    if name == "lying headers":
        return name, mutations.lying_header(draw, content, kind)
    several = mutations.BYTES["bits of the header"](draw, mutations.swap_fields(draw, content, others, kind))
    return "several", several


def same_but_values(got: Upload, sent: Upload) -> bool:
    """Whether a frame differs from the right one in its tensors' values only, all of them possible ones.

    The definition of a right frame, apart from the code under test.
    """
    numbers = ("server_round", "step", "split", "clients", "sizes", "last")
    return (
        all(getattr(got, name) == getattr(sent, name) for name in numbers)
        and (got.smashed.dtype, got.smashed.shape) == (sent.smashed.dtype, sent.smashed.shape)
        and (got.labels.dtype, got.labels.shape) == (sent.labels.dtype, sent.labels.shape)
        and all(0 <= label < CLASSES for label in got.labels.tolist())
        and all(map(math.isfinite, got.smashed.flatten().tolist()))
    )


def test_no_malformed_frame_is_accepted(
    steps: list[Upload],
    frames: list[bytes],
    checks: list[Callable[[Upload], None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def batch(draw: Random, tally: Tally) -> None:
        wanted = tally.inputs + 50
        while tally.inputs < wanted:
            step = draw.randrange(len(frames))
            kind, content = mutated(draw, step, frames, pb.Upload)
            check = copy.copy(checks[step])
            try:
                with tally.timed():
                    upload = decode_upload(parse_upload(content))
                    check(upload)
            except FrameError as error:
                tally.refuse(kind, error)
            else:
                assert same_but_values(upload, steps[step]), f"accepted ({kind}): {content.hex()}"
                tally.valid[kind] += 1

    fuzz("frames", batch, 50, capsys)


def test_no_malformed_answer_is_accepted(steps: list[Upload], capsys: pytest.CaptureFixture[str]) -> None:
    right = [answer_to(upload, upload.clients[: k % 3]) for k, upload in enumerate(steps)]
    frames = [encode_download(download).SerializeToString() for download in right]

    def like(got: Download, sent: Download) -> bool:
        """Shapes that a node can use: an average of one row, or of more rows than its own batches, is one too."""
        pairs = ((got.average, sent.average), (got.own, sent.own))
        return (
            (got.server_round, got.step, got.active) == (sent.server_round, sent.step, sent.active)
            and all(
                (one is None) == (other is None)
                and (
                    one is None
                    or other is None
                    or (one.dtype == other.dtype and one.shape[1:] == other.shape[1:] and bool(one.isfinite().all()))
                )
                for one, other in pairs
            )
            and (got.own is None or sent.own is None or len(got.own) == len(sent.own))
        )

    def batch(draw: Random, tally: Tally) -> None:
        wanted = tally.inputs + 50
        while tally.inputs < wanted:
            step = draw.randrange(len(frames))
            kind, content = mutated(draw, step, frames, pb.Download)
            try:
                with tally.timed():
                    download = decode_download(parse_download(content))
                    check_answer(steps[step], download)
            except FrameError as error:
                tally.refuse(kind, error)
            else:
                # Who is active is the server's to draw: another split of the same clients is an answer too.
                assert download.active != right[step].active or like(download, right[step]), content.hex()
                tally.valid[kind] += 1

    fuzz("answers", batch, 50, capsys)


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


def refusable(content: bytes, sent: Upload) -> bool:
    """Whether an input is malformed, by the definition above."""
    try:
        return not same_but_values(decode_upload(parse_upload(content)), sent)
    except FrameError:
        return True


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
                assert link.traffic[22].frames == link.bytes_up == 0
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
            assert link.bytes_up == 0
            assert list(link._unclaimed) == [11]
        # Headers over gRPC's own limit end in RESOURCE_EXHAUSTED, before anybody looks for a secret.
        assert set(codes) <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        tally.slowest = max(tally.slowest, (time.monotonic() - began) / 40)
        tally.refused.update(kind for kind, _ in tried)

    fuzz("headers", batch, 40, capsys)
