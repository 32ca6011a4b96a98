"""The ledger: rows of finished cells that add up over calls, machines and branches, and are never edited."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from studies.paper.finished import finish

import sglr_flower
from sglr_flower.errors import UserError
from sglr_flower.run import origin
from sglr_flower.run.config import keys
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.studies.paper import ledger, sweep
from sglr_flower.studies.paper.cells import NOT_LEARNED, Cell, select
from sglr_flower.studies.paper.command import Book
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.results import read as finished
from sglr_flower.studies.paper.scales import SCALES
from sglr_flower.studies.paper.sweep import run_dir

ROOT = Path(__file__).resolve().parents[3]
SMOKE = SCALES["smoke"]


def cells(experiment: str, only: str, seeds: int = 1) -> list[Cell]:
    return select(EXPERIMENTS[experiment].cells(SMOKE, range(seeds)), only)


def record(path: Path, folder: Path, cell: Cell, percent: float, seconds: int = 0) -> None:
    """A finished cell becomes a row; ``seconds``: when it was finished."""
    finish(folder, cell, percent, (percent - 1, percent))
    os.utime(run_dir(folder, cell) / "summary.json", (seconds, seconds))
    ledger.add(path, finished(folder, [cell]))


def paper(*arguments: str) -> str:
    command = [sys.executable, "-m", "sglr_flower.cli", "paper", *arguments, "--scale", "smoke", "--in-process"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def table(folder: Path) -> list[str]:
    return [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]


def test_a_real_cell_is_recorded_with_what_made_it_and_not_run_again(tmp_path: Path) -> None:
    """Nor by another experiment that has the same cell, in another folder."""
    books = tmp_path / "books"
    wanted = ("--only", "clients=2,alpha=0", "--ledger", str(books))
    paper("table1", *wanted, "--out", str(tmp_path / "first"))

    (row,) = ledger.read(books / "smoke.csv")
    (cell,) = cells("table1", "clients=2,alpha=0")
    directory = run_dir(tmp_path / "first", cell)
    assert row.config == cell.config
    assert row.fields["run"] == (directory / "run-id").read_text()
    assert row.fields["engine"] == origin.engine(Path(sglr_flower.__file__).parent)
    (result,) = finished(tmp_path / "first", [cell])
    assert {**row.figures} == {name: result.figures.get(name) for name in row.figures}
    assert [point.round for point in row.curve] == [2]

    said = paper("table1", *wanted, "--out", str(tmp_path / "second"))
    assert f"1 cells, 1 of them finished (1 in the ledger {books / 'smoke.csv'})" in said
    said = paper(
        "table2", "--only", "clients=2,alpha=0,phi=0", "--ledger", str(books), "--out", str(tmp_path / "third")
    )
    assert "1 of them finished" in said
    assert not list((tmp_path / "second" / "cells").iterdir()) + list((tmp_path / "third" / "cells").iterdir())
    assert table(tmp_path / "second") == table(tmp_path / "first")
    assert table(tmp_path / "third")[-1].startswith(table(tmp_path / "first")[-1][:20])


def test_jobs_0_runs_nothing_and_does_not_wait_for_a_sweep(tmp_path: Path) -> None:
    with sweep.locked(tmp_path):
        said = paper("table1", "--only", "clients=2,alpha=0", "--out", str(tmp_path), "--jobs", "0")
    assert "1 cells, 0 of them finished, none is run" in said
    assert table(tmp_path)[-1].startswith("| 2 | - |")
    assert not list((tmp_path / "cells").iterdir())


def test_a_sweeps_folder_can_be_its_ledger(tmp_path: Path) -> None:
    """Rows are written while the sweep holds its folder."""
    (cell,) = cells("table1", "clients=2,alpha=0")
    finish(tmp_path, cell, 80.0)
    with sweep.locked(tmp_path):
        written = threading.Thread(target=ledger.add, args=(tmp_path / "smoke.csv", finished(tmp_path, [cell])))
        written.daemon = True  # or a test that fails would not end
        written.start()
        written.join(30)
        assert not written.is_alive()
    assert len(ledger.read(tmp_path / "smoke.csv")) == 1


def test_recording_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "smoke.csv"
    (cell,) = cells("table1", "clients=2,alpha=0")
    record(path, tmp_path, cell, 80.0)
    before = path.read_bytes()
    ledger.add(path, finished(tmp_path, [cell]))
    assert path.read_bytes() == before


def test_rows_of_two_branches_are_merged_without_conflict(tmp_path: Path) -> None:
    """Both have begun the file, and both have added to it; by the repository's own attributes."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)

    repository, runs = tmp_path / "repository", tmp_path / "runs"
    repository.mkdir()
    git("init", "--quiet", "-b", "one")
    shutil.copy(ROOT / ".gitattributes", repository)
    git("add", ".")
    git("commit", "-m", "attributes")
    path = ledger.file_of(repository / "results", "smoke")
    all_cells = cells("table1", "", seeds=2)
    for branch, mine in (("two", all_cells[::2]), ("one", all_cells[1::2])):
        git("checkout", *(["-b"] if branch == "two" else []), branch)
        for number, cell in enumerate(mine):
            record(path, runs, cell, 70.0 + number)
            git("add", "results/smoke.csv")
            git("commit", "-m", cell.name)
    git("merge", "two")

    assert {row.config for row in ledger.read(path)} == {cell.config for cell in all_cells}
    (last,) = cells("table2", "clients=4,alpha=1,phi=0.5")
    record(path, runs, last, 75.0)
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == len(all_cells) + 2
    assert [line.split(",")[:3] for line in lines[1:]] == sorted(line.split(",")[:3] for line in lines[1:])


def test_a_row_that_was_edited_is_named(tmp_path: Path) -> None:
    path = tmp_path / "smoke.csv"
    (cell,) = cells("table1", "clients=2,alpha=0")
    record(path, tmp_path, cell, 80.0)
    path.write_text(path.read_text().replace(",0.8,", ",0.9,", 1))
    with pytest.raises(UserError, match=re.escape(f"ledger {path}, line 2: it is not as sglr paper wrote it")):
        ledger.read(path)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "<<<<<<< HEAD\n"])
def test_a_file_that_is_no_ledger_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "smoke.csv").write_text(text)
    with pytest.raises(UserError, match="has a first line that is not this version's"):
        ledger.read(tmp_path / "smoke.csv")


def test_rows_outlive_a_column_that_is_added_later(tmp_path: Path) -> None:
    """A file of an earlier version, here without the column ``epsilon``, which is empty in its rows."""
    path = tmp_path / "smoke.csv"
    (cell,) = cells("table1", "clients=2,alpha=0")
    record(path, tmp_path, cell, 80.0)
    rows = list(csv.DictReader(path.open()))
    with path.open("w") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "epsilon"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (row,) = ledger.read(path)
    assert row.figures["epsilon"] is None
    assert row.config == cell.config


def test_of_two_runs_of_a_cell_the_one_finished_first_counts(tmp_path: Path) -> None:
    """Whatever came out: nobody can run a cell until they like its result."""
    path = tmp_path / "smoke.csv"
    (cell,) = cells("table1", "clients=2,alpha=0")
    for name, percent, seconds in (("a", 80.0, 2000), ("b", 70.0, 1000), ("c", 90.0, 3000)):
        record(path, tmp_path / name, cell, percent, seconds)
    (result,) = ledger.results(ledger.read(path), [cell])
    assert result.figures["test_accuracy_mean"] == 0.7


def test_what_is_not_learned_is_no_part_of_what_was_run(tmp_path: Path) -> None:
    (cell,) = cells("table1", "clients=2,alpha=0")
    same = cell.config.replace(exchange="grid", checkpoint_every=7, data_dir="/data", recompute=True)
    assert ledger.settings(same) == ledger.settings(cell.config)
    assert ledger.settings(cell.config.replace(seed=1)) != ledger.settings(cell.config)
    named = {word.split("=")[0] for word in ledger.settings(cell.config).split(" ")}
    assert named | set(NOT_LEARNED) == set(keys())


def test_a_table_has_the_ledgers_rows_beside_the_folders_runs(tmp_path: Path) -> None:
    """Of another seed, recorded elsewhere; the folder's own run is recorded when the table is made."""
    path = tmp_path / "smoke.csv"
    first, second = cells("table1", "clients=2,alpha=0", seeds=2)
    record(path, tmp_path / "elsewhere", first, 80.0)
    finish(tmp_path / "here", second, 82.0)
    book = Book(EXPERIMENTS["table1"], SMOKE, tmp_path / "here", (second,), "", path)
    assert book.unfinished() == []
    assert book.write().rows == [["2", "81.00 ± 12.71", "82.04", "-1.04"]]
    assert len(ledger.read(path)) == 2


def test_figures_and_run_directory_are_of_the_same_run(tmp_path: Path) -> None:
    """The ledger has a run of the cell that was finished before the folder's."""
    path = tmp_path / "smoke.csv"
    for name, only, percent in (("table1", "clients=2,alpha=0", 0.8), ("fig4", "phi=1", 0.7)):
        (cell,) = cells(name, only)
        record(path, tmp_path / f"{name}-elsewhere", cell, 80.0, seconds=1000)
        here = tmp_path / name
        record(path, here, cell, 70.0, seconds=2000)
        (result,) = Book(EXPERIMENTS[name], SMOKE, here, (cell,), "", path).results([cell])
        assert result.figures["test_accuracy_mean"] == percent
        assert result.directory == (None if name == "table1" else run_dir(here, cell))


def test_what_made_a_run_is_all_that_trained_it_or_not_known(tmp_path: Path) -> None:
    """A run that was resumed with other code, and one of a version that did not record its origin."""
    path = tmp_path / "smoke.csv"
    resumed, old = cells("table1", "clients=2,alpha=0", seeds=2)
    finish(tmp_path, resumed, 80.0)
    finish(tmp_path, old, 70.0)
    made = {"version": "1", "commit": "c", "torch": "2.14.1+cpu", "machine": "a CPU"}
    for engine in ("a" * 16, "b" * 16):
        RunDirectory(run_dir(tmp_path, resumed)).record_origin({**made, "engine": engine})
    book = Book(EXPERIMENTS["table1"], SMOKE, tmp_path, (resumed, old), "", path)
    book.write()
    assert {row.fields["engine"] for row in ledger.read(path)} == {f"{'a' * 16}+{'b' * 16}", ""}
    made_by = (
        "Made by sglr-flower 1 (2 engines), torch 2.14.1+cpu on a CPU (1 of the runs; the others have not recorded it)."
    )
    assert made_by in (tmp_path / "table.md").read_text()


def test_experiments_that_show_runs_are_run_although_they_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "smoke.csv"
    (cell,) = cells("fig4", "phi=1")
    record(path, tmp_path / "elsewhere", cell, 80.0)
    book = Book(EXPERIMENTS["fig4"], SMOKE, tmp_path / "here", (cell,), "", path)
    assert book.unfinished() == [cell]


def test_the_checkout_has_a_ledger_and_an_installed_package_has_none(tmp_path: Path) -> None:
    assert ledger.default_folder("short", ROOT) == ROOT / "results"
    assert ledger.default_folder("smoke", ROOT) is None
    assert ledger.default_folder("short", tmp_path) is None
    assert ledger.default_folder("short", ROOT / "sglr_flower") is None


def test_a_ledger_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (cell,) = cells("table1", "clients=2,alpha=0")
    finish(tmp_path, cell, 80.0)
    with pytest.raises(UserError, match=r"smoke\.csv cannot be "):
        ledger.add(tmp_path / "file" / "smoke.csv", finished(tmp_path, [cell]))
