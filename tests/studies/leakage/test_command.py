"""`sglr attack`: what it shows and writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import trained_runs
from click.testing import Result
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

from sglr_flower.cli.studies import attack
from sglr_flower.errors import UserError

QUICK = ("--auxiliary", "32", "--samples", "12", "--decoder-steps", "4")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attack-command") / "run"
    trained_runs.run(path, splitavg_phi=0.25)
    return path


def invoke(run_dir: Path, *options: Any) -> Result:
    app = Typer()
    app.command()(attack)
    return CliRunner(env={"COLUMNS": "150"}).invoke(app, [str(run_dir), *QUICK, *map(str, options)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


WRITTEN = {"attack.json", "reconstructions.png", "feature_maps.png", "examples.safetensors"}


def test_it_shows_the_measures_and_writes_them_beside_pictures(run_dir: Path, tmp_path: Path) -> None:
    before = files(run_dir)
    result = invoke(run_dir, "--repeats", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    there = json.loads((tmp_path / "out" / "attack.json").read_text())

    assert files(tmp_path / "out").keys() == WRITTEN
    assert files(run_dir) == before
    assert (there["run"]["phi"], there["run"]["cut"], there["run"]["round"]) == (0.25, "stage2", 1)
    assert there["settings"]["repeats"] == len(there["attacks"]) == 2
    ours = [attack["cross_entropy"] for attack in there["attacks"]]
    assert there["measures"]["cross_entropy"]["mean"] == pytest.approx(sum(ours) / 2)
    # Two values: t(0.975; 1) = 12.7062, s / sqrt(2) = half their difference.
    width = 12.7062 * abs(ours[0] - ours[1]) / 2
    assert there["measures"]["cross_entropy"]["half_width"] == pytest.approx(width, rel=1e-4)
    assert sorted(attack["client"] for attack in there["attacks"]) == [0, 1]
    assert f"{there['measures']['cross_entropy']['mean']:.4f} ± " in result.output
    assert "Mean ± 95 % interval over 2 attacks on this one training." in " ".join(result.output.split())
    examples = load_file(tmp_path / "out" / "examples.safetensors")
    assert examples["original"].shape == examples["reconstructed"].shape == (8, 1, 16, 16)
    for name in ("reconstructions.png", "feature_maps.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_an_attack_with_other_settings_has_a_folder_of_its_own(run_dir: Path) -> None:
    invoke(run_dir, "--client", 0)
    first = run_dir / "attack" / "client-0_auxiliary-32_samples-12_decoder-steps-4"
    before = files(first)
    assert before.keys() == WRITTEN
    assert invoke(run_dir, "--client", 0, "--knows", "others").exit_code == 0
    assert files(first) == before
    second = run_dir / "attack" / "client-0_knows-others_auxiliary-32_samples-12_decoder-steps-4"
    assert files(second).keys() == WRITTEN
    assert json.loads(before["attack.json"])["measures"] != json.loads(files(second)["attack.json"])["measures"]


def test_a_folder_that_holds_something_else_is_left_as_it_is(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke(run_dir, "--out", out).exit_code == 0
    before = files(out)
    refused = invoke(run_dir, "--out", out, "--seed", 7)
    assert isinstance(refused.exception, UserError)
    assert "holds other files, or another attack, and is left as it is" in str(refused.exception)
    assert files(out) == before
    assert invoke(run_dir, "--out", out).exit_code == 0  # the same attack once more
    assert files(out) == before
    (tmp_path / "file").touch()
    assert "it is a file" in str(invoke(run_dir, "--out", tmp_path / "file").exception)


def test_mistakes_are_sentences(run_dir: Path, tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    shutil.rmtree(unfinished / "checkpoints")
    assert "has no checkpoint" in str(invoke(unfinished).exception)
    assert "is not a run directory" in str(invoke(tmp_path).exception)
    assert "--client 2: the run in" in str(invoke(run_dir, "--client", 2).exception)
    assert invoke(run_dir, "--knows", "everything").exit_code == 2
    assert invoke(run_dir, "--auxiliary", 3).exit_code == 2
