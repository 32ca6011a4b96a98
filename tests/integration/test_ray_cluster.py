"""A simulation on the user's own Ray cluster: two Ray nodes on this machine, with GPUs in Ray's books only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from flwr.app import Context, RecordDict
from integration.runs import final_weights, largest_difference
from integration.simulation import in_time
from ray.cluster_utils import Cluster

from sglr_flower.cli.launch import Launch
from sglr_flower.errors import UserError
from sglr_flower.federation import simulation
from sglr_flower.flower import node
from sglr_flower.flower.protocol import HelloOrder
from sglr_flower.run import assembly, inprocess, machine
from sglr_flower.run.config import RunConfig

SETTINGS = {
    "num-clients": 6,
    "samples-per-client": 16,
    "num-server-rounds": 2,
    "evaluate-every": 0,
    "evaluate-samples": 10,
    "dtype": "float64",
}
NODES = 4
PER_NODE = 0.5


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two Ray nodes with two CPUs and a GPU each."""
    up = in_time(_two_nodes)
    yield up.address
    up.shutdown()


def _two_nodes() -> Cluster:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    made.add_node(num_cpus=2, num_gpus=1)
    return made


@pytest.fixture(scope="module")
def run_dir(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "run"
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    placement = ["--nodes", str(NODES), "--cpus-per-node", "1", "--gpus-per-node", str(PER_NODE)]
    done = subprocess.run(
        [sys.executable, "-m", "sglr_flower.cli", "run", *settings, *placement, "--run-dir", str(folder)],
        env={**os.environ, "RAY_ADDRESS": cluster},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.flower
def test_has_the_weights_of_one_process(run_dir: Path, tmp_path: Path) -> None:
    alone = RunConfig.parse({**SETTINGS, "run-dir": str(tmp_path / "alone")})
    inprocess.run(alone, 1)
    assert largest_difference(final_weights(run_dir), final_weights(tmp_path / "alone")) < 1e-9


@pytest.mark.flower
def test_uses_the_gpus_of_both_and_says_once_that_torch_cannot(run_dir: Path) -> None:
    log = (run_dir / "flower.log").read_text()
    (line,) = re.findall(r"GPUs set aside: (.*)", log)
    found = {gpu: int(count) for gpu, count in re.findall(r"(\w+/0) for (\d) node\(s\)", line)}
    assert len(found) == 2
    assert sum(found.values()) == NODES
    assert log.count("the nodes compute on the CPU") == (0 if torch.cuda.is_available() else 1)


class Node:
    """As Flower's: an actor of Ray. Its torch sees a GPU, as on a machine that has one."""

    def device(self) -> str:
        torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
        return assembly.device().type


def test_a_node_computes_on_a_gpu_only_if_ray_sets_one_aside_for_it(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ray.init(cluster, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        kind = ray.remote(Node)
        nodes = [kind.options(num_cpus=1, num_gpus=share).remote() for share in (0, 0.5)]
        assert ray.get([node.device.remote() for node in nodes], timeout=120) == ["cpu", "cuda"]
        assert assembly.device().type == "cuda"  # the ServerApp's process has no share of Ray's GPUs
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("gpus", "nodes", "share"),
    [(0, 2, 0.0), (1, 2, 0.5), (2, 2, 1.0), (8, 2, 1.0), (1, 3, 0.3333), (2, 8, 0.25), (2, 3, 0.5), (4, 5, 0.5)],
)
def test_a_nodes_share_of_the_gpus(gpus: int, nodes: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Launch(nodes=nodes).resources(gpus).gpus_per_node == share
    assert not share or machine.gpu_places(gpus, share) >= nodes or share == 1


def test_a_share_that_leaves_a_rest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs hold two nodes of 0.6 each, and Flower would start three."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for share in (0.6, 0.6666, 1.5):
        with pytest.raises(UserError, match=rf"asks for {share:g} GPUs, which does not go into 2 GPU\(s\)"):
            simulation.check_fits(simulation.Resources(2, 1, share), 2)
    for share in (0.5, 0.25, 1 / 3, 1, 2):
        simulation.check_fits(simulation.Resources(2, 1, share), 2)


def test_nodes_on_several_machines_take_no_streams_to_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "machines", lambda: 2)
    order = HelloOrder(threads=0, address="127.0.0.1:9", secret="", tls=False, memory=b"")
    context = Context(1, 1, {}, RecordDict(), {})
    assert "on 2 machines" in node._blocked(order, context)
