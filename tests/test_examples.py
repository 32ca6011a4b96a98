"""The examples run as their first lines say, and those in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
FINAL = {
    "own_data": r"round 10: loss .*, accuracy 0\.9\d\d",
    "own_method": r"accuracy 0\.[789]\d\d",
    "own_codec": r"none: 1,320,000 bytes up, accuracy .*\nsigns: 100,000 bytes up, accuracy 0\.[789]\d\d",
    "sensors": r"round 6: loss .*, accuracy 0\.[89]\d\d",
}


def call(*command: str, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_looked_at() -> None:
    assert set(FINAL) == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert re.search(FINAL[name], call(str(ROOT / "examples" / f"{name}.py"), cwd=tmp_path))


def test_the_way_from_a_notebook_leads_through_a_run(tmp_path: Path) -> None:
    keys = ("task=sensors:task", "num-clients=4", "partition=own", "num-server-rounds=2", f"run-dir={tmp_path / 'run'}")
    settings = [part for key in keys for part in ("-s", key)]
    said = call("-m", "sglr_flower.cli", "run", "--in-process", *settings, cwd=ROOT / "examples")
    assert "test accuracy" in said


@pytest.mark.parametrize("name", ["run.splitlearning", "run.task", "split.methods"])
def test_examples_in_docstrings_give_what_they_show(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"sglr_flower.{name}"))
    assert tried
    assert not failed
