"""A federation's folder: whole, private, never overwritten; and what a run's process reads of it."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from sglr_flower.errors import UserError
from sglr_flower.exchange.endpoint import Endpoint
from sglr_flower.federation import folder
from sglr_flower.federation.folder import Federation, NodeSettings


def lab(**changes: object) -> Federation:
    values = {"name": "lab", "host": "192.168.1.10", "bind": "0.0.0.0", "port": 9092, "stream_port": 9093}
    return Federation.model_validate({**values, **changes})


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder.create(lab(), tmp_path / "lab", ["alpha", "beta"], ["lab.example.org"])
    return tmp_path / "lab"


def test_private_files_and_all_folders_are_their_owners(made: Path) -> None:
    modes = {path.relative_to(made).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*")}
    assert {mode for name, mode in modes.items() if (made / name).is_dir()} == {0o700}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    private = {name for name in modes if name.endswith((".key", ".secret"))}
    assert private == {"ca.key", "server.key", "superexec.secret", "nodes/alpha/node.key", "nodes/beta/node.key"}
    assert {modes[name] for name in private} == {0o600}


def test_a_node_folder_has_all_that_a_device_needs_and_no_more(made: Path) -> None:
    assert {path.name for path in (made / "nodes" / "beta").iterdir()} == {"node.toml", "ca.crt", "node.key"}
    settings = NodeSettings.read(made / "nodes" / "beta" / "node.toml")
    assert (settings.name, settings.superlink) == ("beta", "192.168.1.10:9092")
    assert (settings.partition_id, settings.num_partitions) == (1, 2)


def test_a_federation_is_never_overwritten(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a federation already"):
        folder.create(lab(), made, ["alpha"])
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty"):
        folder.create(lab(), tmp_path, ["alpha"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("nodes", "changes", "message"),
    [
        (["alpha", "alpha"], {}, "name of its own"),
        (["../alpha"], {}, "letters, digits"),
        (["alpha"], {"name": "my lab"}, "letters, digits"),
        (["alpha"], {"host": "not a host"}, "neither an IP address nor a host name"),
        (["alpha"], {"operators": ["192.168.1.10/16"]}, "IP address or network"),
    ],
)
def test_a_mistake_leaves_nothing_behind(tmp_path: Path, nodes: list[str], changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        folder.create(lab(**changes), tmp_path / "lab", nodes)
    assert list(tmp_path.iterdir()) == []


def test_a_further_node_gets_a_number_of_its_own_also_when_others_were_carried_away(made: Path) -> None:
    (made / "nodes" / "beta").rename(made.parent / "carried")
    added = folder.add_node(made, "gamma")
    settings = NodeSettings.read(added / "node.toml")
    assert (settings.partition_id, settings.num_partitions) == (2, 3)
    assert (made / "keys" / "gamma.pub").is_file()
    for name in ("gamma", "beta"):
        with pytest.raises(UserError, match="already"):
            folder.add_node(made, name)


def test_an_insecure_federation_has_no_keys(tmp_path: Path) -> None:
    folder.create(lab(insecure=True), tmp_path / "lab", ["alpha"])
    assert {path.name for path in (tmp_path / "lab" / "nodes" / "alpha").iterdir()} == {"node.toml"}
    assert NodeSettings.read(tmp_path / "lab" / "nodes" / "alpha" / "node.toml").insecure


def test_streams_are_bound_and_told_as_the_federation_says(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folder.VARIABLE, str(made))
    endpoint = folder.stream_endpoint()
    endpoint.check()
    assert (endpoint.host, endpoint.port, endpoint.advertise) == ("0.0.0.0", 9093, "192.168.1.10")
    assert endpoint.certificate == (made / "server.crt").read_bytes()
    assert endpoint.key == (made / "server.key").read_bytes()
    assert not endpoint.allow_plaintext


def test_streams_of_an_insecure_federation_are_plaintext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.create(lab(insecure=True), tmp_path / "lab", ["alpha"])
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "lab"))
    endpoint = folder.stream_endpoint()
    assert (endpoint.certificate, endpoint.allow_plaintext) == (None, True)


def test_without_a_federation_streams_are_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(folder.VARIABLE, raising=False)
    assert folder.stream_endpoint() == Endpoint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ("name = 3\n", "name = 3"),
        ("colour = 'red'\n", "colour"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(made: Path, text: str | None, message: str) -> None:
    path = made / "federation.toml"
    path.unlink()
    if text is not None:
        path.write_text(text + "host='h'\nbind='b'\nport=1\nstream-port=1\n" if "\n" in text else text)
    with pytest.raises(UserError, match=message) as caught:
        Federation.read(path)
    assert str(path) in str(caught.value)


def test_the_written_file_has_keys_with_hyphens(made: Path) -> None:
    assert tomllib.loads((made / "federation.toml").read_text())["stream-port"] == 9093


@pytest.mark.parametrize(
    ("host", "bind"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("192.168.1.10", "0.0.0.0"),
        ("lab.example.org", "0.0.0.0"),
        ("fd00::1", "::"),
        ("::1", "::1"),
    ],
)
def test_only_a_server_of_this_machine_alone_listens_to_it_alone(host: str, bind: str) -> None:
    assert folder.default_bind(host) == bind


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:65536", "host:x", "host:²"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        folder.split_address(address)


def test_an_address_is_split_and_joined() -> None:
    assert folder.split_address("[fd00::1]:9092") == ("fd00::1", 9092)
    assert lab(host="fd00::1", bind="::").address == "[fd00::1]:9092"
    assert lab(host="fd00::1", bind="::").local_address == "[::1]:9092"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0: nodes need an address that leads to the server"),
        ({"stream_port": 9092}, "--stream-port 9092: it must differ from --port"),
    ],
)
def test_addresses_that_no_node_could_use_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        folder.create(lab(**changes), tmp_path / "lab", ["alpha"])
    assert list(tmp_path.iterdir()) == []
