"""Table 5 and Figure 4 from real runs, at the smallest scale."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglr_flower.studies.paper import sweep
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.scales import SCALES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of Table 5's two cells at scale smoke."""
    path = tmp_path_factory.mktemp("table5")
    said = paper("table5", path)
    assert said.returncode == 0, said.stdout + said.stderr
    return path


def paper(name: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglr_flower.cli", "paper", name, "--scale", "smoke", "--in-process"]
    return subprocess.run([*command, "--jobs", "1", "--out", str(out)], capture_output=True, text=True, check=False)


def test_table_5_trains_attacks_and_writes_its_table_and_pictures(folder: Path) -> None:
    cells = EXPERIMENTS["table5"].cells(SCALES["smoke"], [0])
    assert all(sweep.is_finished(folder, cell) for cell in cells)
    there = [json.loads((sweep.run_dir(folder, cell) / "attack" / "attack.json").read_text()) for cell in cells]
    rows = list(csv.DictReader((folder / "results.csv").open()))
    markdown = (folder / "table.md").read_text()

    assert [float(row["phi"]) for row in rows] == [run["run"]["phi"] for run in there] == [0.0, 1.0]
    for row, run in zip(rows, there, strict=True):
        measures = {name: figure["mean"] for name, figure in run["measures"].items()}
        assert float(row["cross_entropy"]) == measures["cross_entropy"]
        assert float(row["mutual_information"]) == measures["mutual_information"]
        assert measures["entropy"] < measures["cross_entropy"] < measures["mean_image_cross_entropy"]
        assert (
            f"| {row['phi'].removesuffix('.0')} | {measures['cross_entropy']:.4f} | {measures['entropy']:.4f} |"
            in markdown
        )
    assert there[0]["attacks"][0]["client"] == there[1]["attacks"][0]["client"]
    assert "| phi | cross-entropy clients 4 | its floor | of the mean image | MSE |" in markdown
    for name in ("picture.png", "reconstructions.png", "feature_maps.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_figure_4_is_drawn_from_the_same_runs(folder: Path) -> None:
    said = paper("fig4", folder)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "2 cells, 2 of them finished" in said.stdout
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
