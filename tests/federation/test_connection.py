"""Flower's list of SuperLinks gets one more and loses nothing."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path

import pytest

from sglr_flower.errors import UserError
from sglr_flower.federation import connection
from sglr_flower.federation.connection import Connection

LAB = Connection("lab", "192.168.1.10:9092", "/home/me/lab/ca.crt")
THEIRS = """# my SuperLinks
[superlink]
default = "work"

[superlink.work]
address = "work.example.org:9092" # do not touch
options.num-supernodes = 10
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    return tmp_path / "flower" / "config.toml"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def test_a_connection_is_read_as_it_was_added_and_flower_reads_it_too(path: Path) -> None:
    put(path, THEIRS)
    assert connection.add(LAB) == path
    assert connection.read("lab") == LAB
    from flwr.cli.flower_config import read_superlink_connection

    theirs = read_superlink_connection("lab")
    assert (theirs.address, theirs.root_certificates, theirs.insecure) == (LAB.address, LAB.root_certificates, False)


def test_what_was_there_stays_to_the_letter(path: Path) -> None:
    put(path, THEIRS)
    connection.add(LAB)
    assert path.read_text().startswith(THEIRS)
    assert [entry.name for entry in path.parent.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    "text",
    [
        'superlink = { work = { address = "a:1" } }\n',
        '[superlink.a]\naddress = "a:1"\n\n[other]\nx = 1\n\n[superlink.b]\naddress = "b:1"\n',
        'superlink.work.address = "a:1"',
        "x = 1\n",
    ],
)
def test_a_file_of_another_form_keeps_its_values(path: Path, text: str) -> None:
    put(path, text)
    connection.add(LAB)
    values = tomllib.loads(path.read_text())
    assert values["superlink"].pop("lab") == LAB.entry()
    assert values == {"superlink": {}, **tomllib.loads(text)}


def test_the_first_file_is_flowers_own_with_one_more(path: Path) -> None:
    connection.add(Connection("lab", "127.0.0.1:9092"))
    links = tomllib.loads(path.read_text())["superlink"]
    assert links["default"] == "local"
    assert links["lab"] == {"address": "127.0.0.1:9092", "insecure": True}


def test_the_same_connection_twice_is_one(path: Path) -> None:
    connection.add(LAB)
    before = path.read_bytes()
    connection.add(LAB)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[superlink.lab]\naddress = "elsewhere:1"\n', "another SuperLink named 'lab' .elsewhere:1."),
        ("[superlink\n", "not valid TOML"),
        ("superlink = 3\n", "has superlink = 3: it must be a table"),
    ],
)
def test_a_file_that_cannot_be_extended_is_left_as_it_is(path: Path, text: str, message: str) -> None:
    put(path, text)
    for attempt in (connection.check_can_add, connection.add):
        with pytest.raises(UserError, match=message):
            attempt(LAB)
    assert path.read_text() == text


def test_an_unknown_name_is_answered_with_the_known_ones(path: Path) -> None:
    put(path, THEIRS)
    with pytest.raises(UserError, match=r"'lab' is not among .*config.toml \(work\)"):
        connection.read("lab")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("192.0.2.1:1", False),
        ("nowhere.invalid:1", False),
    ],
)
def test_local_is_what_is_bound_to_this_machine(address: str, local: bool) -> None:
    if address.startswith("[") and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    assert Connection("lab", address).is_local is local
