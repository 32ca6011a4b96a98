"""The same app on a real SuperLink with real SuperNodes, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from integration.runs import final_weights, largest_difference

from sglr_flower.federation.processes import free_port
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig

pytestmark = pytest.mark.flower

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SETTINGS = {
    "num-clients": 4,
    "samples-per-client": 24,
    "num-server-rounds": 1,
    "evaluate-samples": 50,
    "evaluate": "client",
    "dtype": "float64",
}
PRIVATE = {
    **SETTINGS,
    "nopeek-weight": 0.2,
    "smashed-clip": 20,
    "smashed-noise": 0.05,
    "dp-noise": 0.01,
    "noise-seed": 7,
    "wire-up": "randtopk:0.5:0.2",
    "wire-down": "int8",
}
RUNS = {
    "plain": SETTINGS | {"exchange": "stream"},
    "private-stream": PRIVATE | {"exchange": "stream"},
    "private-grid": PRIVATE | {"exchange": "grid", "samples-per-client": 16, "evaluate-samples": 10},
}


@contextlib.contextmanager
def federation(home: Path) -> Iterator[dict[str, str]]:
    """A SuperLink and two SuperNodes; yields the environment for `flwr`."""
    home.mkdir()
    port = free_port()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "{address}"\ninsecure = true\n'
    )
    env = {**os.environ, "FLWR_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    link = ["--insecure", "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    commands = [["flower-superlink", *link]]
    for partition in range(2):
        node_config = f'partition-id={partition} num-partitions=2 state-dir="{home / f"node-{partition}"}"'
        node = ["--insecure", "--superlink", address, "--port", str(free_port()), "--node-config", node_config]
        commands.append(["flower-supernode", *node])
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((home / f"process-{number}.log").open("wb"))
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]], env=env, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(stop, process)
            if number == 0:
                wait_for(port)
        yield env


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 15)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run directories of `RUNS`, and what the nodes keep."""
    root = tmp_path_factory.mktemp("deployed")
    # The app as a checkout has it, so that nothing that lies about in the working tree is packed.
    app = root / "app"
    app.mkdir()
    for name in ("server_app.py", "client_app.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app / name)
    shutil.copytree(ROOT / "sglr_flower", app / "sglr_flower")
    with federation(root / "federation") as env:
        for name, settings in RUNS.items():
            run_config = root / f"{name}.toml"
            run_config.write_text(tomli_w.dumps({**settings, "run-dir": str(root / name)}))
            command = [str(BIN / "flwr"), "run", str(app), "loop", "--stream", "--run-config", str(run_config)]
            flwr = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
            # Flower's own exit status is 0 of a failed run too.
            assert (root / name / "summary.json").exists(), flwr.stdout + flwr.stderr
    return root


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(RUNS))
def test_a_deployed_run_has_the_weights_of_an_in_process_one(deployed: Path, name: str, tmp_path: Path) -> None:
    summary = json.loads((deployed / name / "summary.json").read_text())
    assert summary["exchange"] == RUNS[name]["exchange"]
    assert summary["nodes"] == 2
    local = RunConfig.parse({**RUNS[name], "run-dir": str(tmp_path / "local")})
    expected = inprocess.run(local, 2)
    assert summary["test_accuracy_mean"] == pytest.approx(expected["test_accuracy_mean"])
    # No client's weights left its node: the server has only its own, the nodes kept theirs.
    server = final_weights(deployed / name)
    assert set(server) == {"server"}
    assert largest_difference(server, {"server": final_weights(tmp_path / "local")["server"]}) < 1e-9


def test_every_node_keeps_its_own_clients(deployed: Path) -> None:
    kept = [path.parts for path in (deployed / "federation").glob("node-*/*/client-*/round-0001.safetensors")]
    assert len(kept) == 4 * len(RUNS)
    for parts in kept:
        (node,) = (part for part in parts if part.startswith("node-"))
        (client,) = (part for part in parts if part.startswith("client-"))
        assert node == ("node-0" if client <= "client-00001" else "node-1")
