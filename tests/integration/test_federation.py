"""A federation as its users make it: `sglr federation init`, `server`, `node`, and `sglr run --federation`.

One SuperLink and three SuperNodes on loopback, with TLS and authentication.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from integration.runs import largest_difference
from reference import Weights
from safetensors.torch import load_file

from sglr_flower.federation import pki
from sglr_flower.federation.processes import free_port
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory, read_json

NODES = 3
SETTINGS = {
    "num-clients": 4,
    "samples-per-client": 40,
    "num-server-rounds": 3,
    "local-epochs": 2,
    "evaluate": "client",
    "evaluate-every": 0,
    "evaluate-samples": 50,
    "exchange": "stream",
    "start-timeout": 600,  # on a machine that does other things too
    "step-timeout": 600,
    "dtype": "float64",
    "seed": 5,
}
UP_SECONDS = 900.0

pytestmark = [pytest.mark.flower, pytest.mark.timeout(3600)]


class Lab:
    """A federation's folder and the processes of `sglr` that are started for it."""

    def __init__(self, home: Path) -> None:
        self.home, self.directory = home, home / "lab"
        self.port, self.stream_port = free_port(), free_port()
        self.env = {**os.environ, "FLWR_HOME": str(home / "flower"), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        self.said: dict[str, Path] = {}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        self.said[name] = self.home / f"{name}.out"
        with self.said[name].open("wb") as out:
            command = [sys.executable, "-m", "sglr_flower.cli", *arguments]
            process = subprocess.Popen(command, cwd=self.home, env=self.env, stdout=out, stderr=out, process_group=0)
        self.started.append(process)
        return process

    def up(self, name: str, wanted: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = self.start(name, *arguments)
        wait_until(lambda: wanted in self.output(name) or process.poll() is not None)
        assert process.poll() is None, self.output(name)
        return process

    def output(self, name: str) -> str:
        return self.said[name].read_text()

    def server(self) -> subprocess.Popen[bytes]:
        return self.up("server", "SuperLink is up", "federation", "server", str(self.directory))

    def node(self, number: int) -> subprocess.Popen[bytes]:
        folder = self.directory / "nodes" / f"node-{number}"
        return self.up(f"node-{number}", "is connected", "federation", "node", str(folder))

    def fails(self, name: str, *arguments: str) -> str:
        process = self.start(name, *arguments)
        assert process.wait(UP_SECONDS) == 1, self.output(name)
        return self.output(name)

    def processes(self) -> list[str]:
        """All that name a file of this federation in their command line, this test's own left out."""
        lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        return [line for line in lines if str(self.home) in line]


def wait_until(reached: Callable[[], bool], seconds: float = UP_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    return process.wait(60)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("federation"))
    ports = ["--port", str(lab.port), "--stream-port", str(lab.stream_port)]
    made = lab.start("init", "federation", "init", "lab", "--host", "127.0.0.1", "--nodes", str(NODES), *ports)
    assert made.wait(UP_SECONDS) == 0, lab.output("init")
    return lab


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The SuperLink and the nodes; at the end they are told to end, and nothing of them must be left."""
    processes = {"server": lab.server()}
    try:
        for number in range(NODES):
            processes[f"node-{number}"] = lab.node(number)
        yield processes
        statuses = [end(process) for process in processes.values()]
        assert statuses == [128 + signal.SIGTERM] * len(processes)
        assert lab.processes() == []
    finally:
        for process in lab.started:
            end(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def finished(lab: Lab, running: dict[str, subprocess.Popen[bytes]]) -> Path:
    """A run that was interrupted, then lost its SuperLink, and was resumed each time."""
    run_dir = lab.home / "run"
    config = lab.home / "run.toml"
    config.write_text(tomli_w.dumps(SETTINGS))

    def rounds_done() -> int:
        return int(read_json(run_dir / "status.json").get("rounds_done", 0))

    run = lab.start("interrupted", "run", str(config), "--federation", "lab", "--run-dir", str(run_dir))
    wait_until(lambda: rounds_done() >= 1 or run.poll() is not None)
    assert run.poll() is None, lab.output("interrupted")
    lab.said["tls"] = tls_names(lab)
    assert end(run, signal.SIGINT) == 130, lab.output("interrupted")
    assert f"sglr resume {run_dir}" in lab.output("interrupted")

    run = lab.start("killed", "resume", str(run_dir))
    wait_until(lambda: rounds_done() >= 2 or run.poll() is not None)
    assert run.poll() is None, lab.output("killed")
    end(running["server"], signal.SIGKILL)
    assert run.wait(UP_SECONDS) == 1, lab.output("killed")
    running["server"] = lab.server()

    run = lab.start("resumed", "resume", str(run_dir))
    assert run.wait(UP_SECONDS) == 0, lab.output("resumed")
    return run_dir


def tls_names(lab: Lab) -> Path:
    """Shake hands with the port of the streams, as a node does, and keep what it showed."""
    context = ssl.create_default_context(cafile=str(lab.directory / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", lab.stream_port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        path = lab.home / "tls"
        path.write_text(f"{secured.version()} {secured.getpeercert()}")
        return path


def deployed_weights(lab: Lab, run_dir: Path) -> Weights:
    """The server's segment from the run's last checkpoint, the clients' from the nodes' own disks."""
    last = sorted((run_dir / "checkpoints").glob("round-*"))[-1]
    files = {"server": last / "server.safetensors"}
    for path in lab.directory.glob(f"nodes/*/state/{RunDirectory(run_dir).run_id}/client-*/{last.name}.safetensors"):
        files[f"client-{int(path.parent.name.split('-')[1])}"] = path
    return {part: segment(path) for part, path in files.items()}


def segment(path: Path) -> dict:
    tensors = load_file(path).items()
    return {name.removeprefix("segment."): tensor for name, tensor in tensors if name.startswith("segment.")}


def test_a_run_that_lost_its_superlink_has_the_weights_of_an_in_process_one(
    lab: Lab, finished: Path, tmp_path: Path
) -> None:
    inprocess.run(RunConfig.parse({**SETTINGS, "run-dir": str(tmp_path / "local")}), NODES)
    last = sorted((tmp_path / "local" / "checkpoints").glob("round-*"))[-1]
    files = {"server": last / "server.safetensors"}
    files |= {f"client-{int(path.stem.split('-')[1])}": path for path in last.glob("clients/*")}
    expected = {part: segment(path) for part, path in files.items()}
    assert len(expected) == 5
    assert largest_difference(deployed_weights(lab, finished), expected) < 1e-9


def test_no_clients_weights_left_its_node(finished: Path) -> None:
    assert list(finished.glob("checkpoints/*/clients/*")) == []


def test_the_result_is_shown_and_written(lab: Lab, finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    assert (summary["nodes"], summary["exchange"], summary["rounds"]) == (NODES, "stream", 3)
    assert f"{100 * summary['test_accuracy_mean']:.2f}" in lab.output("resumed")


def test_the_streams_port_showed_the_federations_certificate(lab: Lab, finished: Path) -> None:
    shown = lab.said["tls"].read_text()
    assert shown.startswith(("TLSv1.2", "TLSv1.3"))
    assert "lab (SGLR federation CA)" in shown


def test_a_run_whose_superlink_was_killed_failed_with_one_sentence(lab: Lab, finished: Path) -> None:
    said = [line for line in lab.output("killed").splitlines() if line.startswith("sglr: ")]
    assert len(said) == 1
    assert said[0].startswith("sglr: the run failed: ")


def test_an_unregistered_key_is_refused(lab: Lab, running: object) -> None:
    strange = shutil.copytree(lab.directory / "nodes" / "node-0", lab.home / "strange", ignore=lambda *_: ["state"])
    (strange / "node.key").write_bytes(pki.new_node().private)
    process = lab.start("strange", "federation", "node", str(strange))
    wait_until(lambda: "is its .pub in the keys folder" in lab.output("strange"))
    assert end(process) == 128 + signal.SIGTERM
    assert "is connected" not in lab.output("strange")


def test_a_server_of_another_federation_is_refused(lab: Lab, running: object) -> None:
    strange = shutil.copytree(lab.directory / "nodes" / "node-0", lab.home / "elsewhere", ignore=lambda *_: ["state"])
    (strange / "ca.crt").write_bytes(pki.new_authority("lab").public)
    said = lab.fails("elsewhere", "federation", "node", str(strange))
    assert "is not the SuperLink of this node's federation" in said


def test_a_signature_by_another_key_than_the_one_claimed_is_refused(lab: Lab, running: object) -> None:
    folder = lab.directory / "nodes" / "node-0"
    own = load_ssh_private_key((folder / "node.key").read_bytes(), None)
    stranger = load_ssh_private_key(pki.new_node().private, None)
    assert isinstance(own, EllipticCurvePrivateKey)
    assert isinstance(stranger, EllipticCurvePrivateKey)

    def answer(signed_by: EllipticCurvePrivateKey) -> int:
        public = own.public_key()
        authentication = NodeAuthHttpInterceptor(signed_by, public)
        with (
            FleetHttpClient.from_server_address(
                f"127.0.0.1:{lab.port}",
                False,
                str(lab.directory / "ca.crt"),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), authentication],
            ) as client,
            pytest.raises(httpx.HTTPStatusError) as caught,
        ):
            client.ActivateNode(ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=30))
        return caught.value.response.status_code

    assert answer(stranger) == 401
    assert answer(own) == 412  # believed, but that node is connected already


def test_nobody_takes_a_run_from_the_superlink_without_its_secret(lab: Lab, running: object) -> None:
    """Who acquires a task becomes the run's ServerApp."""
    with (
        RuntimeHttpClient.from_server_address(
            f"127.0.0.1:{lab.port}",
            False,
            str(lab.directory / "ca.crt"),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
        ) as client,
        pytest.raises(httpx.HTTPStatusError) as caught,
    ):
        client.AcquireTask(AcquireTaskRequest())
    assert caught.value.response.status_code == 401


def test_a_mistake_in_a_federations_name_is_one_sentence(lab: Lab) -> None:
    assert "'nowhere' is not among the connections in" in lab.fails("nowhere", "run", "--federation", "nowhere")
    said = lab.fails("mixed", "run", "--federation", "lab", "--nodes", "2")
    assert "--nodes is for a simulation" in said


def test_no_secret_is_in_any_log(lab: Lab, finished: Path) -> None:
    keys = [path.read_text() for path in lab.directory.rglob("*.key")] + [
        (lab.directory / "superexec.secret").read_text()
    ]
    secrets = {line for key in keys for line in key.splitlines() if len(line) > 20 and not line.startswith("-----")}
    assert len(secrets) > 10
    logs = [*lab.home.rglob("*.log"), *lab.home.glob("*.out"), *finished.glob("*.json"), *finished.glob("*.csv")]
    assert {path.name for path in logs} >= {"superlink.log", "supernode.log", "flower.log", "nodes.csv", "status.json"}
    for path in logs:
        text = path.read_text()
        assert not [secret for secret in secrets if secret in text], path
        # A stream's secret has 64 hexadecimal digits, as the hashes have by which Flower calls apps and messages.
        rest = re.sub(r"(fab_hash=|object_id=|message |message \(ID: )[0-9a-f]{64}", "", text)
        assert not re.search(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", rest), path
