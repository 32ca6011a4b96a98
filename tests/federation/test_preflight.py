"""A run is checked in another process, which has torch in place of this one; what it finds comes back as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sglr_flower.federation import preflight
from sglr_flower.run.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]

APART = """
import json, sys
from sglr_flower.run.config import RunConfig
from sglr_flower.errors import UserError
from sglr_flower.federation.preflight import look_apart
try:
    print(look_apart(RunConfig.parse(json.loads(sys.argv[1])), own_data=False).model_dump_json())
except UserError as error:
    print("mistake:", error)
print("torch is here:", "torch" in sys.modules)
"""


def apart(config: str, folder: Path) -> tuple[str, str]:
    """What `look_apart` finds, called in a process without torch whose modules are in the folder too; and stderr."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    asked = subprocess.run([sys.executable, "-c", APART, config], env=env, capture_output=True, text=True, check=True)
    said, _, torch_is_here = asked.stdout.rstrip().rpartition("\n")
    assert torch_is_here == "torch is here: False"
    return said, asked.stderr


def test_it_finds_what_is_found_here(tmp_path: Path) -> None:
    said, _ = apart('{"num-clients": 3}', tmp_path)
    found = preflight.look(RunConfig.parse({"num-clients": 3}), own_data=False)

    assert preflight.Findings.model_validate_json(said) == found
    assert [sum(row) for row in found.counts] == [120] * 3
    assert len(found.classes) == 10


def test_a_mistake_comes_back_as_its_sentence(tmp_path: Path) -> None:
    said, err = apart('{"model": "vgg"}', tmp_path)

    assert said.startswith("mistake: run-config key model = 'vgg': it must be one of resnet16")
    assert "Traceback" not in err


def test_what_ones_own_module_prints_is_not_taken_for_the_answer(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("print('hello from the module')\nfrom own_models import *\n")
    said, err = apart('{"model": "loud:nothing"}', tmp_path)

    assert said.startswith("mistake: run-config key model = 'loud:nothing'")
    assert "hello from the module" in err


def test_a_check_that_is_killed_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    said, _ = apart('{"model": "deadly:net"}', tmp_path)

    assert said == "mistake: the run could not be checked: the process that makes its model was ended by SIGKILL"


@pytest.mark.flower
def test_interrupted_while_it_checks_it_ends_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sglr_flower.cli", "run", "-s", "model=slow:net", "--run-dir", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 130
    assert b"Traceback" not in said
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
    assert not (tmp_path / "run").exists()


def test_what_may_not_be_meant_is_known_before_anything_starts() -> None:
    config = RunConfig.parse({"model": "case_models:probabilities", "cut": "first", "num-clients": 2})
    (remark,) = preflight.look(config, own_data=False).remarks
    assert "its outputs are probabilities" in remark
    vanishing = {"model": "case_models:norm_first", "cut": "1", "splitavg-phi": 1.0}
    config = RunConfig.parse(vanishing | {"splitavg-over": "clients-and-samples", "num-clients": 2})
    (remark,) = preflight.look(config, own_data=False).remarks
    assert "the mean cut gradient is zero" in remark
