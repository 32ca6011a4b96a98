"""How a device's SuperNode is started from its folder."""

from __future__ import annotations

import http.server
import ssl
import threading
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from sglr_flower.errors import UserError
from sglr_flower.federation import folder, node
from sglr_flower.federation.folder import Federation


def node_folder(tmp_path: Path, *, insecure: bool = False) -> Path:
    federation = Federation(
        name="lab", host="192.168.1.10", bind="0.0.0.0", port=9092, stream_port=0, insecure=insecure
    )
    folder.create(federation, tmp_path / "lab", ["alpha", "beta"])
    return tmp_path / "lab" / "nodes" / "beta"


def node_config(device: node.Device) -> dict[str, object]:
    """As `flower-supernode` reads it."""
    line = node.commands(device)[0]
    return parse_config_args([line[line.index("--node-config") + 1]])


def test_the_app_on_the_device_learns_all_of_the_contract(tmp_path: Path) -> None:
    path = node_folder(tmp_path)
    (tmp_path / "my images").mkdir()
    device = node.read_device(path, tmp_path / "my images", tmp_path / "it's here", "")
    assert node_config(device) == {
        "partition-id": 1,
        "num-partitions": 2,
        "name": "beta",
        "state-dir": str(tmp_path / "it's here"),
        "data-dir": str(tmp_path / "my images"),
        "root-certificates": str(path / "ca.crt"),
    }


def test_a_secure_node_shows_its_key_and_checks_the_server(tmp_path: Path) -> None:
    path = node_folder(tmp_path)
    line = node.commands(node.read_device(path, None, None, "10.0.0.1:7"))[0]
    assert line[line.index("--superlink") + 1] == "10.0.0.1:7"
    assert line[line.index("--auth-supernode-private-key") + 1] == str(path / "node.key")
    assert line[line.index("--root-certificates") + 1] == str(path / "ca.crt")
    assert "--insecure" not in line


def test_only_the_nodes_own_helper_is_told_what_to_run(tmp_path: Path) -> None:
    supernode, executor = node.commands(node.read_device(node_folder(tmp_path), None, None, ""))
    secret = [line[line.index("--superexec-auth-secret-file") + 1] for line in (supernode, executor)]
    assert secret[0] == secret[1]
    assert supernode[supernode.index("--isolation") + 1] == "process"
    port = supernode[supernode.index("--port") + 1]
    assert executor[executor.index("--runtime-api-address") + 1] == f"127.0.0.1:{port}"


def test_an_insecure_node_accepts_plaintext_streams(tmp_path: Path) -> None:
    device = node.read_device(node_folder(tmp_path, insecure=True), None, None, "")
    assert "--insecure" in node.commands(device)[0]
    assert node_config(device)["allow-plaintext"] is True
    assert "root-certificates" not in node_config(device)


def test_two_nodes_of_a_machine_get_different_ports(tmp_path: Path) -> None:
    device = node.read_device(node_folder(tmp_path), None, None, "")
    lines = [node.commands(device)[0] for _ in range(4)]
    assert len({line[line.index("--port") + 1] for line in lines}) == 4


def test_folders_in_node_toml_may_be_relative_to_it(tmp_path: Path) -> None:
    path = node_folder(tmp_path)
    (path / "images").mkdir()
    text = (path / "node.toml").read_text()
    (path / "node.toml").write_text(text.replace('data-dir = ""', 'data-dir = "images"'))
    device = node.read_device(path, None, None, "")
    assert device.data_dir == path / "images"
    assert device.state_dir == path / "state"


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    path = node_folder(tmp_path)
    with pytest.raises(UserError, match="no folder: it must be the one with this node's images"):
        node.read_device(path, tmp_path / "nothing", None, "")
    (path / "node.key").unlink()
    with pytest.raises(UserError, match=r"it has no node\.key"):
        node.read_device(path, None, None, "")
    with pytest.raises(UserError, match=r"node\.toml cannot be read"):
        node.read_device(tmp_path, None, None, "")


def test_a_path_that_no_node_config_can_hold_is_refused(tmp_path: Path) -> None:
    path = node_folder(tmp_path)
    with pytest.raises(UserError, match="quotes"):
        node.commands(node.read_device(path, None, tmp_path / "a'b\"c", ""))


def refused_certificate(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def test_a_node_waits_for_the_superlink_and_for_its_own_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [
        ConnectionRefusedError(111, "Connection refused"),
        ConnectionRefusedError(111, "Connection refused"),
        refused_certificate(9, "certificate is not yet valid"),
        None,
    ]
    asked: list[tuple[str, Path | None]] = []

    def ask(address: str, certificates: Path | None) -> None:
        asked.append((address, certificates))
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(node, "ask_health", ask)
    monkeypatch.setattr(node, "RETRY_SECONDS", 0.0)
    path, said = node_folder(tmp_path), list[str]()
    node._wait_for_superlink(node.read_device(path, None, None, ""), said.append)
    assert asked == [("192.168.1.10:9092", path / "ca.crt")] * 4
    assert len(said) == 2  # each reason once
    assert "Connection refused" in said[0]
    assert "not yet valid: is this device's clock right?" in said[1]


def test_a_supernode_that_ends_says_why_as_far_as_its_log_tells() -> None:
    refused = "INFO:      Starting Flower SuperNode\nINFO:      SuperNode terminated gracefully.\n"
    assert "is this device's clock right?" in node._why(refused)
    assert node._why(refused.replace("SuperNode\n", "SuperNode\nINFO:      SuperNode ID: 7\n")) == ""
    assert "handshake" in node._why("ERROR:     SSL/TLS handshake error detected.\n" + refused)
    assert "key is not taken yet" in node._why("[code: 2004] Failed to activate SuperNode.\n" + refused)


def test_a_node_does_not_wait_for_somebody_elses_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(address: str, certificates: Path | None) -> None:
        raise refused_certificate(20, "unable to get local issuer certificate")

    monkeypatch.setattr(node, "ask_health", ask)
    with pytest.raises(UserError, match="not the SuperLink of this node's federation"):
        node._wait_for_superlink(node.read_device(node_folder(tmp_path), None, None, ""), lambda line: None)


class Ended(Exception):
    """The test has seen enough."""


def refuse(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Have the SuperNode's key refused so often, before the loop is left; how often it was started."""
    starts: list[int] = []

    def run_once(device: node.Device, log: Path, before: int, say: object) -> None:
        starts.append(len(starts))
        if len(starts) > times:
            raise Ended
        with log.open("a") as file:
            file.write("[code: 2004] Failed to activate SuperNode.\n")

    monkeypatch.setattr(node, "_run_once", run_once)
    monkeypatch.setattr(node, "_wait_for_superlink", lambda device, say: None)
    monkeypatch.setattr(node, "RETRY_SECONDS", 0.0)
    return starts


def test_a_node_waits_for_a_superlink_that_does_not_know_all_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a port that answers as the gate does."""
    statuses, said = [503, 503, 200], list[str]()

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(node, "RETRY_SECONDS", 0.0)
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as port:
        threading.Thread(target=port.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{port.server_port}"
        node._wait_for_superlink(
            node.read_device(node_folder(tmp_path, insecure=True), None, None, address), said.append
        )
        port.shutdown()
    assert statuses == []
    assert said == [f"node beta: waiting for the SuperLink at {address} (it is taking the keys of its nodes)"]


def test_a_key_that_is_refused_is_tried_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = node.read_device(node_folder(tmp_path), None, None, "")
    starts, said = refuse(monkeypatch, 3), list[str]()
    with pytest.raises(Ended):
        node.run(device, said.append)
    assert len(starts) == 4
    assert all("counts as connected for up to a minute" in line for line in said)
    monkeypatch.setattr(node, "REFUSED_SECONDS", 0.0)
    refuse(monkeypatch, 3)
    with pytest.raises(UserError, match="does not take the key of node beta"):
        node.run(device, said.append)
