"""What the processes of a run do not import: each has its own torch or none, and all start while a person waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "torchvision", "flwr", "ray", "grpc")
FOR_DATA_AND_PICTURES = (
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "torchvision",
    "datasets",
    "flwr_datasets",
    "PIL",
    "tensorboard",
)

COHORT = """
import torch
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.data.samples import Batch
from sglr_flower.data.source import Source
from sglr_flower.data.targets import Classes
images = Batch(torch.zeros(40, 1, 32, 32, dtype=torch.uint8), torch.arange(40) % 10)
assembly.splits = lambda config: Source(images, images, images, Classes(tuple("0123456789")))
config = RunConfig.parse({"dataset": "mnist", "num-clients": 2, "samples-per-client": 20})
assembly.cohort(config, [0, 1])
"""


def imported(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules are there after the code, in a process of its own."""
    tell = f"\nimport sys\nprint(*(name for name in {names!r} if name in sys.modules))"
    told = subprocess.run([sys.executable, "-c", code + tell], cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout.split()


def test_the_command_imports_nothing_heavy() -> None:
    assert imported("import sglr_flower.cli", HEAVY) == []


def test_a_run_config_is_read_without_torch() -> None:
    code = "from sglr_flower.run.config import RunConfig\n"
    code += "RunConfig.parse({'method': 'sfl', 'splitavg-phase': 'first:0.5'})"
    assert imported(code, HEAVY) == []


def test_a_node_imports_no_library_for_data_or_pictures() -> None:
    assert imported("import client_app", FOR_DATA_AND_PICTURES) == []


def test_a_node_whose_data_are_there_makes_its_cohort_without_them_too() -> None:
    assert imported("import client_app" + COHORT, FOR_DATA_AND_PICTURES) == []


def test_the_digits_are_read_without_them() -> None:
    code = "from sglr_flower.data import datasets; datasets.load('digits', '', 0)"
    assert imported(code, FOR_DATA_AND_PICTURES) == []


def test_the_server_imports_no_library_for_data_or_pictures() -> None:
    assert imported("import server_app", FOR_DATA_AND_PICTURES) == []


STEP = """
from sglr_flower.split.rounds import TrainSession
plan = assembly.plan(config, 1)
session = TrainSession(assembly.cohort(config, [0, 1]), plan)
downloads, loss = assembly.server(config).step(plan, {0: session.start()})
assert session.advance(downloads[0]) is not None
"""


@pytest.mark.parametrize("cohort", ["loop", "stacked"])
def test_a_step_imports_nothing_that_torch_has_for_compiling(cohort: str) -> None:
    code = COHORT.replace('"num-clients": 2', f'"num-clients": 2, "cohort": "{cohort}"') + STEP
    assert imported(code, ("sympy", "torch.fx.experimental.symbolic_shapes", "torch._dynamo")) == []
