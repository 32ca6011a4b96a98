"""A run's data stay what they were when its folder does not; data that have changed are said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sglr_flower.cli.app import app
from sglr_flower.data import datasets, folder, pinned
from sglr_flower.data.source import Source
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.studies.trained import network, targets


def config(tmp_path: Path, **keys: object) -> RunConfig:
    values = {
        **{"dataset": "folder", "data-dir": str(tmp_path / "data"), "run-dir": str(tmp_path / "run"), "method": "psl"},
        **{"num-clients": 2, "image-size": 16, "samples-per-client": 0, "num-server-rounds": 1, "evaluate-samples": 0},
    }
    return RunConfig.parse(values | {key.replace("_", "-"): value for key, value in keys.items()})


def forget() -> None:
    """Be as a new process is: nothing is remembered of a folder."""
    datasets.forget_folders()
    assembly._shares.cache_clear()


def images(source: Source) -> list[torch.Tensor]:
    return [part.images for part in (source.train, source.validation, source.test)]  # type: ignore[attr-defined]


def add(tmp_path: Path, label: str, count: int) -> None:
    (tmp_path / "data" / "train" / label).mkdir(exist_ok=True)
    for number in range(count):  # names that come first, so that every position moves
        shade = (number, 1, 2)
        Image.new("RGB", (40, 40), shade).save(tmp_path / "data" / "train" / label / f"!{number:03}.png")


@pytest.fixture
def trained(tmp_path: Path) -> RunConfig:
    """A run that is finished."""
    folders.write(tmp_path / "data")
    settings = config(tmp_path)
    inprocess.run(settings)
    return settings


def resumed(settings: RunConfig) -> RunConfig:
    forget()
    return settings.replace(resume=True)


def test_an_image_that_is_added_moves_no_other_to_another_part(trained: RunConfig, tmp_path: Path) -> None:
    before = images(assembly.splits(trained))
    add(tmp_path, "disc", 1)
    forget()
    assert all(map(torch.equal, images(assembly.splits(trained)), before))
    model = network.load(tmp_path / "run")
    target = targets.run_target(model)
    assert torch.equal(target.images.images, before[2])
    forget()
    moved = images(assembly.splits(trained.replace(run_dir=str(tmp_path / "other"))))[2]
    assert not torch.equal(moved[: len(before[2])], before[2])  # the case: a new run holds others out


def test_a_finished_run_is_evaluated_where_a_class_was_added(trained: RunConfig, tmp_path: Path) -> None:
    add(tmp_path, "ant", 6)
    forget()
    assert network.load(tmp_path / "run").classes == ("disc", "stripe")
    assert assembly.targets(trained).names == ("disc", "stripe")


def test_a_run_directory_that_was_moved_has_the_same_data(trained: RunConfig, tmp_path: Path) -> None:
    before = images(assembly.splits(trained))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    add(tmp_path, "stripe", 3)
    forget()
    assert all(map(torch.equal, images(assembly.splits(RunDirectory(tmp_path / "moved").read_config())), before))


def test_what_was_kept_counts_the_classes_of_each_part(trained: RunConfig, tmp_path: Path) -> None:
    kept = pinned.read(str(tmp_path / "run"))
    assert kept is not None
    assert kept.classes == ("disc", "stripe")
    assert {name: sum(part.counts.values()) for name, part in kept.parts.items()} == {
        "train": 32,
        "validation": 6,
        "test": 10,
    }
    assert len(kept.files) == 48


@pytest.mark.parametrize(
    ("label", "count", "sentence"),
    [
        ("ring", 24, r"class 'ring' was added \(24 images\)\."),
        ("disc", 32, r"32 images were added \(disc 32\)\."),
        ("disc", 1, r"1 image was added \(disc 1\)\."),
    ],
)
def test_a_resume_over_what_was_added_is_refused(
    trained: RunConfig, tmp_path: Path, label: str, count: int, sentence: str
) -> None:
    add(tmp_path, label, count)
    for go_on in (checks.check, inprocess.run):
        with pytest.raises(UserError, match=rf"the data in .*/data are not those .*: {sentence} Put them back"):
            go_on(resumed(trained))


def test_a_resume_over_what_was_removed_or_replaced_is_refused(trained: RunConfig, tmp_path: Path) -> None:
    disc = tmp_path / "data" / "train" / "disc"
    shutil.copyfile(disc / "000.png", disc / "001.png")
    (tmp_path / "data" / "train" / "stripe" / "002.png").unlink()
    with pytest.raises(
        UserError, match=r"1 image was removed \(stripe 1\); 1 image was replaced by others \(disc 1\)\. Put"
    ):
        checks.check(resumed(trained))
    gone = r"2 of the images that the run began with are not there .*disc/001\.png, .*stripe/002\.png\. Put them back"
    with pytest.raises(UserError, match=gone):
        assembly.splits(resumed(trained))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the files that are read to be told from others."""
    paths: list[str] = []
    marked = pinned.marked

    def counted(root: Path, path: str, number: int) -> pinned.File:
        paths.append(path)
        return marked(root, path, number)

    monkeypatch.setattr(pinned, "marked", counted)
    return paths


def test_a_resume_over_the_same_data_goes_on(trained: RunConfig, tmp_path: Path, opened: list[str]) -> None:
    before = images(assembly.splits(trained))
    checks.check(resumed(trained))
    assert opened == []  # neither size nor time has moved
    for file in (tmp_path / "data").rglob("*.png"):
        file.touch()  # copied anew, say
    checks.check(resumed(trained))
    assert len(opened) == 48
    checks.check(resumed(trained))
    assert len(opened) == 48
    assert all(map(torch.equal, images(assembly.splits(trained)), before))


def test_each_file_is_marked_once_when_a_run_begins(tmp_path: Path, opened: list[str]) -> None:
    folders.write(tmp_path / "data")
    (tmp_path / "run").mkdir()
    data = assembly.data_of(config(tmp_path))
    assert datasets.pin(*data) == []
    datasets.notes(*data)
    assert len(opened) == 48


def test_what_an_older_version_kept_has_no_times(trained: RunConfig, tmp_path: Path, opened: list[str]) -> None:
    file = tmp_path / "run" / "data.json"
    kept = json.loads(file.read_text())
    for part in kept["parts"].values():
        part["files"] = [entry[:3] for entry in part["files"]]
    file.write_text(json.dumps(kept))
    before = images(assembly.splits(trained))
    checks.check(resumed(trained))
    assert all(map(torch.equal, images(assembly.splits(trained)), before))
    assert len(opened) == 48


def test_a_link_that_leads_nowhere_is_no_change(trained: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "data" / "train" / "disc" / "link.png").symlink_to(tmp_path / "nowhere.png")
    checks.check(resumed(trained))
    image = tmp_path / "data" / "train" / "disc" / "003.png"
    image.unlink()
    image.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"1 image was removed \(disc 1\)\. Put"):
        checks.check(resumed(trained))
    assembly.take_changed_data(trained)
    assert len(kept_paths(tmp_path)) == 47
    checks.check(resumed(trained))


def kept_paths(tmp_path: Path, part: str = "") -> list[str]:
    kept = pinned.read(str(tmp_path / "run"))
    assert kept is not None
    return [file.path for name, own in kept.parts.items() if part in ("", name) for file in own.files]


def test_a_folder_that_is_not_mounted_changes_nothing(trained: RunConfig, tmp_path: Path) -> None:
    before = (tmp_path / "run" / "data.json").read_bytes()
    (tmp_path / "data").rename(tmp_path / "away")
    forget()
    with pytest.raises(UserError, match="none of the 32 images that the run has for train, so it cannot go on with"):
        assembly.take_changed_data(trained)
    assert (tmp_path / "run" / "data.json").read_bytes() == before


def test_a_part_is_not_left_without_an_image(trained: RunConfig, tmp_path: Path) -> None:
    before = (tmp_path / "run" / "data.json").read_bytes()
    for path in kept_paths(tmp_path, "validation"):
        (tmp_path / "data" / path).unlink()
    with pytest.raises(UserError, match="none of the 6 images that the run has for validation"):
        assembly.take_changed_data(trained)
    assert (tmp_path / "run" / "data.json").read_bytes() == before


def test_a_data_dir_that_begins_with_a_tilde_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders.write(tmp_path / "data")
    settings = config(tmp_path, data_dir="~/data")
    inprocess.run(settings)
    assert assembly.has_data(settings.replace(evaluate="client"))
    before = kept_paths(tmp_path)
    add(tmp_path, "disc", 1)
    assembly.take_changed_data(settings)
    assert sorted(kept_paths(tmp_path)) == sorted([*before, "train/disc/!000.png"])


def test_new_images_below_test_are_for_test(tmp_path: Path) -> None:
    folders.write(tmp_path / "data")
    test = folders.write(tmp_path / "data", 4, part="test")
    settings = config(tmp_path)
    inprocess.run(settings)
    before = {part: kept_paths(tmp_path, part) for part in pinned.PARTS}
    Image.new("RGB", (40, 40), (9, 9, 9)).save(test / "disc" / "new.png")
    add(tmp_path, "disc", 1)
    assembly.take_changed_data(settings)
    assert kept_paths(tmp_path, "train") == [*before["train"], "train/disc/!000.png"]
    assert kept_paths(tmp_path, "validation") == before["validation"]
    assert kept_paths(tmp_path, "test") == [*before["test"], "test/disc/new.png"]
    checks.check(resumed(settings))


def test_new_files_that_cannot_be_read(tmp_path: Path) -> None:
    train = folders.write(tmp_path / "data")
    settings = config(tmp_path, unreadable="skip")
    inprocess.run(settings)
    before = (tmp_path / "run" / "data.json").read_bytes()
    (train / "disc" / "bad.png").write_bytes(b"x")
    (train / "disc" / "000.png").write_bytes(b"y")  # one that was good
    with pytest.raises(UserError, match=r"2 image files cannot be read: .*disc/000\.png, .*disc/bad\.png"):
        assembly.take_changed_data(settings.replace(unreadable="refuse"))
    assert (tmp_path / "run" / "data.json").read_bytes() == before
    assembly.take_changed_data(settings)
    checks.check(resumed(settings))
    kept = pinned.read(str(tmp_path / "run"))
    assert kept is not None
    assert kept.left_out == ("train/disc/000.png", "train/disc/bad.png")
    assert sum(map(len, images(assembly.splits(settings)))) == 47


def test_a_resume_that_is_told_to_goes_on_with_other_images(tmp_path: Path) -> None:
    folders.write(tmp_path / "data")
    settings = config(tmp_path)
    inprocess.run(settings)
    test = images(assembly.splits(settings))[2]
    add(tmp_path, "disc", 2)
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been stopped
    (tmp_path / "data" / "train" / "stripe" / "002.png").unlink()
    assembly.take_changed_data(settings)
    checks.check(resumed(settings))
    inprocess.run(resumed(settings))
    found = images(assembly.splits(settings))
    held = sum(map(len, found[1:]))
    assert len(found[0]) + held == 49
    assert [tuple(image[:, 0, 0].tolist()) for image in found[0][-2:]] == [(0, 1, 2), (1, 1, 2)]  # for training
    assert all(any(torch.equal(image, old) for old in test) for image in found[2])


def test_it_is_not_told_to_go_on_with_other_classes(trained: RunConfig, tmp_path: Path) -> None:
    add(tmp_path, "ring", 2)
    with pytest.raises(UserError, match="the class 'ring', which is none of the run's: disc, stripe"):
        assembly.take_changed_data(trained)


def test_the_command_line_refuses_and_goes_on(tmp_path: Path) -> None:
    folders.write(tmp_path / "data", 8)
    default = RunConfig.parse({}).values()
    values = {key: value for key, value in config(tmp_path).values().items() if value != default[key]}
    del values["run-dir"]
    keys = [f"{key}={value}" for key, value in values.items()]
    arguments = ["--in-process", "--run-dir", str(tmp_path / "run"), *(part for key in keys for part in ("-s", key))]
    forget()
    assert CliRunner().invoke(app, ["run", *arguments]).exit_code == 0
    assert folder.load.cache_info().currsize == 1  # the check's images are let go
    (tmp_path / "run" / "summary.json").unlink()
    add(tmp_path, "disc", 4)
    forget()
    refused = CliRunner().invoke(app, ["resume", str(tmp_path / "run")])
    assert isinstance(refused.exception, UserError)
    assert "4 images were added (disc 4)" in str(refused.exception)
    assert f"sglr resume --changed-data {tmp_path / 'run'}" in str(refused.exception)
    assert CliRunner().invoke(app, ["resume", "--changed-data", str(tmp_path / "run")]).exit_code == 0


def test_the_check_apart_takes_what_is_there_now(trained: RunConfig, tmp_path: Path) -> None:
    """`sglr resume` has no torch, which reading the new images needs."""
    add(tmp_path, "disc", 4)
    code = (
        "import json, sys\nfrom sglr_flower.federation.preflight import look_apart\n"
        "from sglr_flower.run.config import RunConfig\n"
        "found = look_apart(RunConfig.parse(json.loads(sys.argv[1])), own_data=False, changed_data=True)\n"
        "print(sum(map(sum, found.counts)), 'torch' in sys.modules)\n"
    )
    config = json.dumps(trained.replace(resume=True).values())
    asked = subprocess.run([sys.executable, "-c", code, config], capture_output=True, text=True, check=True)
    assert asked.stdout == "36 False\n"
    assert kept_paths(tmp_path, "train")[-4:] == [f"train/disc/!{number:03}.png" for number in range(4)]


def test_a_run_of_an_older_version_goes_on_as_before(trained: RunConfig, tmp_path: Path) -> None:
    before = images(assembly.splits(trained))
    (tmp_path / "run" / "data.json").unlink()
    checks.check(resumed(trained))
    assert all(map(torch.equal, images(assembly.splits(trained)), before))


def test_a_folder_of_an_older_version_is_read_as_it_was(trained: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run" / "config.toml"
    keys = ("ground", "levels", "classes", "unreadable", "cache", "channels")
    lines = [line for line in file.read_text().splitlines() if line.split(" =")[0] not in keys]
    file.write_text("\n".join(lines))
    found = RunDirectory(tmp_path / "run").read_config()
    assert (found.ground, found.levels) == ("none", "16")


def test_left_out_files_are_no_change(tmp_path: Path) -> None:
    train = folders.write(tmp_path / "data")
    (train / "disc" / "bad.png").write_bytes(b"x")
    settings = config(tmp_path, unreadable="skip")
    inprocess.run(settings)
    checks.check(resumed(settings))


def test_arrays_that_have_changed_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arrays_of_mine.py").write_text(
        "import numpy as np\nSHIFT, COUNT = 0.0, 40\n"
        "def data():\n"
        "    x = np.arange(COUNT * 8, dtype=np.float32).reshape(COUNT, 8) + SHIFT\n"
        "    return (x, np.arange(COUNT) % 2), (x[:9], np.arange(9) % 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import arrays_of_mine  # type: ignore[import-not-found]

    from sglr_flower.data import own

    keys = {"dataset": "arrays_of_mine:data", "data-dir": "", "model": "mlp", "image-size": 0}
    settings = config(tmp_path, **keys)
    inprocess.run(settings)
    checks.check(resumed(settings))
    for name, value, sentence in (
        ("SHIFT", 1.0, "train has other samples, as many as before; validation has other"),
        ("COUNT", 50, "train: 0 .* became .*, 1 .* became"),
    ):
        own.load.cache_clear()
        monkeypatch.setattr(arrays_of_mine, name, value)
        with pytest.raises(UserError, match=f"the data are not those that the run began with: {sentence}"):
            checks.check(resumed(settings))


def test_bundled_data_are_the_same_whenever_they_are_read(tmp_path: Path) -> None:
    settings = config(tmp_path, dataset="digits", data_dir="", samples_per_client=8)
    (tmp_path / "run").mkdir()
    assert datasets.pin(*assembly.data_of(settings)) == []
    datasets._load_digits.cache_clear()
    assert datasets.pin(*assembly.data_of(settings)) == []
    kept = pinned.read(str(tmp_path / "run"))
    assert kept is not None
    assert sum(kept.parts["test"].counts.values()) == 297
