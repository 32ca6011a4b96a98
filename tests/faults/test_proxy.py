"""The suite's own network: it carries bytes, breaks for one owner only, and goes silent without breaking."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest
from faults.proxy import PUBLIC, Network

TALK = """
import socket, sys
with socket.create_connection(("127.0.0.2", int(sys.argv[1]))) as line:
    line.settimeout(float(sys.argv[2]))
    for word in sys.stdin:
        try:
            line.sendall(word.encode())
            print(line.recv(100).decode().strip() or "broken", flush=True)
        except TimeoutError:
            print("silence", flush=True)
        except OSError:
            print("broken", flush=True)
"""


@pytest.fixture
def echo() -> Iterator[int]:
    """A port that sends back what it gets."""

    def serve(line: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := line.recv(100):
                line.sendall(content)

    def accept() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(line,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


class Talker:
    """A process of its own that talks through the proxy."""

    def __init__(self, port: int, name: str) -> None:
        command = [sys.executable, "-c", TALK, str(port), "0.5"]
        self._process = subprocess.Popen(
            command, env={"WHO": name}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, word: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def who(process: psutil.Process) -> str:
    return process.environ().get("WHO", "")


def test_a_network_fails_for_one_owner_and_not_for_another(echo: int) -> None:
    network = Network([echo], who)
    left, right = Talker(echo, "left"), Talker(echo, "right")
    try:
        assert (left.say("one"), right.say("two")) == ("one", "two")
        assert network.silence("right") == 1
        assert (left.say("three"), right.say("four")) == ("three", "silence")
        assert network.cut("left") == 1
        assert (left.say("five"), right.say("six")) == ("broken", "silence")
    finally:
        left.end()
        right.end()
        network.close()


@pytest.mark.parametrize(("failure", "heard"), [("cut", "broken"), ("close_off", "broken"), ("silence", "silence")])
def test_new_connections_fail_too_until_the_network_is_healed(echo: int, failure: str, heard: str) -> None:
    network = Network([echo], who)
    assert getattr(network, failure)("left") == 0
    during = Talker(echo, "left")
    try:
        assert during.say("one") == heard
        network.heal("left")
        after = Talker(echo, "left")
        assert (after.say("two"), during.say("three")) == ("two", "broken")
        after.end()
    finally:
        during.end()
        network.close()


def test_a_closed_proxy_lets_nobody_through(echo: int) -> None:
    network = Network([echo], who)
    network.close()

    with pytest.raises(OSError):
        socket.create_connection((PUBLIC, echo), timeout=1)
