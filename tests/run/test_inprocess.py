"""The in-process driver against the plain loop where clients differ in size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from integration.runs import final_weights, largest_difference
from reference import plain_loop

from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig


@pytest.mark.parametrize(("nodes", "phi"), [(1, 1.0), (3, 0.5)])
def test_clients_of_different_sizes_train_as_in_a_plain_loop(tmp_path: Path, nodes: int, phi: float) -> None:
    """Clients leave the steps when their images are used up, and their last batches are ragged."""
    config = RunConfig.parse(
        {
            "num-clients": 5,
            "image-size": 8,
            "partition": "linear",
            "samples-per-client": 150,  # 83, and then the cap for the others
            "batch-size": 40,
            "num-server-rounds": 1,
            "splitavg-phi": phi,
            "splitlr-alpha": 1.0,
            "evaluate-every": 0,
            "evaluate-samples": 10,
            "dtype": "float64",
            "run-dir": str(tmp_path / "run"),
        }
    )
    summary = inprocess.run(config, nodes)

    assert largest_difference(final_weights(tmp_path / "run"), plain_loop(config)) < 1e-9
    assert summary["steps"] == 4  # of 40, 40, 40 and 30 images; the smallest client has 40, 40 and 3
    assert summary["evaluated_images"] == 10


def test_it_needs_nothing_of_flower(tmp_path: Path) -> None:
    """On a bare GPU machine there may be neither Flower nor Ray nor gRPC."""
    program = """
import sys
for name in ("flwr", "flwr_datasets", "ray", "grpc"):
    sys.modules[name] = None  # importing it is an ImportError
from sglr_flower.cli import main
main()
"""
    settings = ("num-clients=2", "samples-per-client=16", "num-server-rounds=1", "evaluate-samples=10")
    arguments = ["run", "--in-process", "--run-dir", "run", *(part for text in settings for part in ("-s", text))]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
