"""Large images are decoded once and kept at the size that is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import folders
import pytest
import torch
from typer.testing import CliRunner

from sglr_flower.cli.app import app
from sglr_flower.data import datasets, folder, imagecache, pictures
from sglr_flower.data.images import Picture, read_picture
from sglr_flower.data.options import Options
from sglr_flower.errors import UserError
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are decoded."""
    names: list[str] = []

    def counted(path: Path, *arguments: object) -> Picture:
        names.append(path.name)
        return read_picture(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "read_picture", counted)
    yield names
    folder.load.cache_clear()


def load(tmp_path: Path, **options: object) -> list[torch.Tensor]:
    """The images as a new process reads them."""
    folder.load.cache_clear()
    given = Options(**{"kept": str(tmp_path / "kept"), "cache": 100, **options})  # type: ignore[arg-type]
    found = datasets.load("folder", str(tmp_path), 0, 16, given)
    return [part.images for part in (found.train, found.validation, found.test)]  # type: ignore[attr-defined]


def notes(tmp_path: Path, **options: object) -> list[str]:
    return datasets.notes("folder", str(tmp_path), 0, 16, Options(**options))  # type: ignore[arg-type]


@pytest.fixture
def train(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return folders.write(tmp_path)


def test_what_was_read_is_not_decoded_again(tmp_path: Path, train: Path, decoded: list[str]) -> None:
    first = load(tmp_path)
    assert len(decoded) == 48
    assert all(map(torch.equal, load(tmp_path), first))
    assert notes(tmp_path, kept=str(tmp_path / "kept"), cache=100) == notes(tmp_path)
    assert len(decoded) == 2 * 48  # the notes without it
    (train / "disc" / "000.png").write_bytes((train / "disc" / "001.png").read_bytes())
    load(tmp_path)
    load(tmp_path, ground="black")
    assert len(decoded) == 4 * 48


def test_only_what_fits_is_kept(
    tmp_path: Path, train: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagecache, "_MEGABYTE", 20 * 3 * 16 * 16)
    first = load(tmp_path, cache=1)
    decoded.clear()
    assert all(map(torch.equal, load(tmp_path, cache=1), first))
    assert len(decoded) == 28


def test_files_that_were_left_out_stay_so(tmp_path: Path, train: Path, decoded: list[str]) -> None:
    (train / "disc" / "003.png").write_bytes(b"x")
    first = load(tmp_path, skip_unreadable=True)
    assert all(map(torch.equal, load(tmp_path, skip_unreadable=True), first))
    assert len(decoded) == 48
    assert sum(map(len, first)) == 47


def test_a_pinned_run_has_them_in_its_own_order(tmp_path: Path, train: Path, decoded: list[str]) -> None:
    first = load(tmp_path)
    assert datasets.pin("folder", str(tmp_path), 0, 16, Options(kept=str(tmp_path / "kept"), cache=100)) == []
    assert all(map(torch.equal, load(tmp_path), first))
    assert len(decoded) == 48


def test_files_that_were_left_out_are_so_once_it_is_pinned(tmp_path: Path, train: Path, decoded: list[str]) -> None:
    (train / "disc" / "003.png").write_bytes(b"x")
    first = load(tmp_path, skip_unreadable=True)
    options = Options(kept=str(tmp_path / "kept"), cache=100, skip_unreadable=True)
    assert datasets.pin("folder", str(tmp_path), 0, 16, options) == []
    assert all(map(torch.equal, load(tmp_path, skip_unreadable=True), first))
    assert len(decoded) == 48


def test_a_pinned_run_has_what_is_gone_or_replaced(tmp_path: Path, train: Path, decoded: list[str]) -> None:
    first = load(tmp_path)
    datasets.pin("folder", str(tmp_path), 0, 16, Options(kept=str(tmp_path / "kept"), cache=100))
    (train / "disc" / "000.png").write_bytes((train / "disc" / "001.png").read_bytes())
    for label in folders.LABELS:  # of every part
        for file in sorted((train / label).iterdir())[2:]:
            file.unlink()
    assert all(map(torch.equal, load(tmp_path), first))
    assert len(decoded) == 48
    sentence = "45 of the images that the run began with are not there any more, or have become others: "
    for options in ({"cache": 0}, {"ground": "black"}):
        with pytest.raises(UserError, match=sentence):
            load(tmp_path, **options)
    assert len(decoded) == 48


def test_what_did_not_fit_is_read_only_if_it_is_the_same(
    tmp_path: Path, train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagecache, "_MEGABYTE", 20 * 3 * 16 * 16)  # the first of class disc
    load(tmp_path, cache=1)
    datasets.pin("folder", str(tmp_path), 0, 16, Options(kept=str(tmp_path / "kept"), cache=1))
    (train / "disc" / "000.png").unlink()
    load(tmp_path, cache=1)
    (train / "stripe" / "000.png").write_bytes((train / "stripe" / "001.png").read_bytes())
    with pytest.raises(UserError, match=r"1 of the images that the run began with .* others: .*/stripe/000\.png\. Put"):
        load(tmp_path, cache=1)


def test_without_a_limit_or_a_folder_nothing_is_kept(tmp_path: Path, train: Path) -> None:
    load(tmp_path, cache=0)
    assert not [*(tmp_path / "kept").iterdir()]
    load(tmp_path, kept="")
    load(tmp_path, kept=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_damaged_file_is_written_anew(tmp_path: Path, train: Path, decoded: list[str]) -> None:
    first = load(tmp_path)
    kept = tmp_path / "kept" / imagecache.FILE
    kept.write_bytes(kept.read_bytes()[:500])
    assert all(map(torch.equal, load(tmp_path), first))
    load(tmp_path)
    assert len(decoded) == 2 * 48


def test_a_run_that_has_ended_leaves_none(tmp_path: Path, train: Path) -> None:
    values = {
        **{"dataset": "folder", "data-dir": str(tmp_path), "run-dir": str(tmp_path / "run"), "num-clients": 2},
        **{"image-size": 16, "samples-per-client": 0, "num-server-rounds": 1},
    }
    inprocess.run(RunConfig.parse(values))
    assert (tmp_path / "run" / "data.json").exists()
    assert not (tmp_path / "run" / imagecache.FILE).exists()


def test_the_check_and_the_run_decode_an_image_once(
    tmp_path: Path, train: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"dataset": "folder", "data-dir": str(tmp_path), "num-clients": 2, "samples-per-client": 0}
    settings = [part for key, value in (values | {"num-server-rounds": 1}).items() for part in ("-s", f"{key}={value}")]
    done = CliRunner().invoke(app, ["run", "--in-process", "--run-dir", "run", *settings])
    assert done.exit_code == 0, done.output
    assert sorted(decoded) == sorted(file.name for file in train.rglob("*.png"))
