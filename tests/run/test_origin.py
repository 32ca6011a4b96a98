"""What a run records of the code and the machine that made it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sglr_flower.run import inprocess, machine, origin
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory

PACKAGE = Path(origin.__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of one commit with a copy of the package in it."""
    shutil.copytree(PACKAGE, tmp_path / "sglr_flower", ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "all")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_says_when_files_are_not_its_own(checkout: Path) -> None:
    package = checkout / "sglr_flower"
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "results.csv").write_text("")
    assert origin.commit(package) == head
    (package / "split" / "added.py").write_text("")
    assert origin.commit(package) == f"{head}-changed"
    (package / "split" / "added.py").unlink()
    (package / "split" / "splitlr.py").write_text("")
    assert origin.commit(package) == f"{head}-changed"


def test_a_package_that_is_installed_inside_of_a_checkout_is_of_no_commit_but_what_is_said(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGLR_COMMIT", raising=False)
    installed = checkout / ".venv" / "sglr_flower"
    shutil.copytree(checkout / "sglr_flower", installed)
    assert origin.commit(installed) == ""
    monkeypatch.setenv("SGLR_COMMIT", "0123abc")
    assert origin.commit(installed) == "0123abc"
    assert origin.commit(checkout / "sglr_flower") == git(checkout, "rev-parse", "HEAD")


def test_the_engine_is_what_numbers_follow_from(checkout: Path) -> None:
    package = checkout / "sglr_flower"
    before = origin.engine(package)
    assert before == origin.engine(PACKAGE)
    (package / "studies" / "report" / "page.py").write_text("")
    assert origin.engine(package) == before
    (package / "split" / "averaging.py").write_text("")
    assert origin.engine(package) != before


def test_a_run_records_its_origin_and_a_resumed_one_each_that_differs(tmp_path: Path) -> None:
    config = RunConfig.parse(
        {"num-clients": 2, "samples-per-client": 16, "num-server-rounds": 1, "run-dir": str(tmp_path / "run")}
    )
    inprocess.run(config)
    directory = RunDirectory(tmp_path / "run")
    (made,) = directory.origins()
    assert made["engine"] == origin.engine(PACKAGE)
    assert made["torch"] == torch.__version__
    assert machine.processor() in made["machine"] or torch.cuda.is_available()
    directory.record_origin(made)
    assert directory.origins() == [made]
    directory.record_origin({**made, "engine": "another"})
    assert [there["engine"] for there in directory.origins()] == [made["engine"], "another"]
