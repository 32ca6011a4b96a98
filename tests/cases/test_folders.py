"""Folders as people have them: what is read of them, and the line that says so."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folders
import numpy as np
import pytest
import torch
from PIL import Image

from sglr_flower.data import datasets
from sglr_flower.data.options import Options
from sglr_flower.data.source import Source
from sglr_flower.errors import UserError
from sglr_flower.run import checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory


def load(root: Path, **options: object) -> Source:
    return datasets.load("folder", str(root), 0, 40, Options(**options))  # type: ignore[arg-type]


def notes(root: Path, **options: object) -> list[str]:
    return datasets.notes("folder", str(root), 0, 40, Options(**options))  # type: ignore[arg-type]


def everything(source: Source) -> torch.Tensor:
    """All images of a source, in one order whatever the files are called."""
    parts = [part.images for part in (source.train, source.validation, source.test)]  # type: ignore[attr-defined]
    return torch.stack(sorted(torch.cat(parts), key=lambda image: image.flatten().tolist()))


@pytest.fixture
def plain(tmp_path: Path) -> torch.Tensor:
    """The images as they are read of a folder without anything odd."""
    folders.write(tmp_path / "plain")
    return everything(load(tmp_path / "plain"))


def test_small_files_beside_the_pictures_are_passed_over(tmp_path: Path, plain: torch.Tensor) -> None:
    train = folders.write(tmp_path)
    for file in [*train.glob("*/*.png")]:
        (file.parent / f"._{file.name}").write_bytes(bytes(range(120)))
    (train / "__MACOSX" / "disc").mkdir(parents=True)
    (train / "__MACOSX" / "disc" / "000.png").write_bytes(b"x")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (train / "disc" / name).write_bytes(b"x")
    (train / "disc" / "notes.txt").write_text("not a picture")
    assert torch.equal(everything(load(tmp_path)), plain)
    assert notes(tmp_path) == [
        f"{tmp_path}: 48 images of 2 classes (disc 24, stripe 24), 40 x 40 pixels, PNG 48; left out: "
        ".txt 1 file(s), 51 hidden"
    ]


def test_copies_in_hidden_folders_are_passed_over(tmp_path: Path, plain: torch.Tensor) -> None:
    train = folders.write(tmp_path)
    for label in folders.LABELS:
        (train / label / ".ipynb_checkpoints").mkdir()
        for file in [*(train / label).glob("*.png")]:
            (train / label / ".ipynb_checkpoints" / f"{file.stem}-checkpoint.png").write_bytes(file.read_bytes())
    assert torch.equal(everything(load(tmp_path)), plain)
    assert notes(tmp_path)[0].endswith("; left out: 2 hidden")
    assert len(notes(tmp_path)) == 1


def test_images_in_train_and_test_are_said(tmp_path: Path) -> None:
    train = folders.write(tmp_path)
    folders.write(tmp_path, 6, part="test")  # of the same draw: the first 6 of disc are the first 6 of train
    for number in range(3):
        (tmp_path / "test" / "stripe" / f"{number:03}.png").write_bytes(
            (train / "disc" / f"{number:03}.png").read_bytes()
        )
    found = datasets.load("folder", str(tmp_path), 0)
    assert (len(found.validation), len(found.test)) == (8, 12)
    said = [note for note in notes(tmp_path) if "byte for byte" in note]
    assert len(said) == 1
    count, of = re.match(r"(\d+) of the (\d+) images held out", said[0]).groups()  # type: ignore[union-attr]
    assert of == "20"
    assert 6 <= int(count) <= 9  # of the nine copies those whose original is not held out itself


def test_every_format_that_pillow_opens_is_read(tmp_path: Path) -> None:
    train, kinds = folders.write(tmp_path), ("png", "gif", "jfif", "avif", "webp", "tga")
    for label in folders.LABELS:
        for number, file in enumerate(sorted((train / label).glob("*.png"))):
            kind = kinds[number % len(kinds)]
            image = Image.open(file)
            image.load()
            file.unlink()
            image.save(file.with_suffix(f".{kind}"), format={"jfif": "jpeg"}.get(kind, kind))
        (train / label / "900.heic").write_bytes(b"\0" * 64)
    found = load(tmp_path)
    assert sum(map(len, (found.train, found.validation, found.test))) == 48
    assert notes(tmp_path) == [
        f"{tmp_path}: 48 images of 2 classes (disc 24, stripe 24), 40 x 40 pixels, PNG 8, GIF 8, JPEG 8, AVIF 8, "
        "WEBP 8, TGA 8; left out: .heic 2 file(s)"
    ]


@pytest.mark.parametrize(("factor", "bits"), [(257, 16), (16, 12), (4, 10), (1, 8)])
def test_grey_values_in_16_bits_are_the_pictures_in_8(
    tmp_path: Path, plain: torch.Tensor, factor: int, bits: int
) -> None:
    for label, images in folders.arrays().items():
        (tmp_path / "train" / label).mkdir(parents=True)
        for number, image in enumerate(images):
            values = image.astype(np.uint16) * factor
            Image.fromarray(values).save(tmp_path / "train" / label / f"{number:03}.tif")
    assert torch.equal(everything(load(tmp_path)), plain)
    assert torch.equal(everything(load(tmp_path, levels=str(bits))), plain)
    assert notes(tmp_path)[0].endswith(f"TIFF 48, 48 with more than 8 bits read as {bits} bits")


def test_the_range_is_that_of_all_train_images_and_of_no_other(tmp_path: Path) -> None:
    for part, high in (("train", 4000), ("test", 60_000)):
        for label in folders.LABELS:
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(6):
                values = np.full((8, 8), high if number == 5 else 160, np.uint16)
                Image.fromarray(values).save(tmp_path / part / label / f"{number}.tif")
    assert load(tmp_path).test.images[:6, 0, 0, 0].tolist() == [10] * 5 + [255]  # type: ignore[attr-defined]


def test_what_is_transparent_shows_the_ground(tmp_path: Path) -> None:
    for label, images in folders.arrays().items():
        (tmp_path / "train" / label).mkdir(parents=True)
        for number, image in enumerate(images):
            alpha = (image > 120).astype(np.uint8) * 255
            strokes = Image.fromarray(np.dstack([np.zeros((40, 40, 3), np.uint8), alpha]))
            strokes.save(tmp_path / "train" / label / f"{number:03}.png")
    found = everything(load(tmp_path))
    assert found.unique().tolist() == [0, 255]
    assert torch.equal(
        everything(load(tmp_path, ground="#ff0000"))[:, 1:].unique(), torch.tensor([0], dtype=torch.uint8)
    )
    assert notes(tmp_path)[0].endswith("PNG 48, 48 transparent, seen over white")
    assert "same picture" not in " ".join(notes(tmp_path))
    assert notes(tmp_path, ground="black")[-1].startswith("all 48 images are one and the same picture")


def test_a_class_whose_images_are_all_the_same_is_said(tmp_path: Path) -> None:
    train = folders.write(tmp_path)
    for number, file in enumerate(sorted((train / "disc").glob("*.png"))):
        Image.new("RGB", (40 + number, 40), (9, 9, 9)).save(file)
    first, second = notes(tmp_path)
    assert "40 x 40 to 63 x 40 pixels" in first
    assert second == "all images of class disc are one and the same picture once they are read"


def broken(root: Path) -> Path:
    train = folders.write(root)
    whole = (train / "disc" / "000.png").read_bytes()
    (train / "disc" / "003.png").write_bytes(whole[: len(whole) // 2])
    (train / "disc" / "005.png").write_bytes(b"")
    (train / "stripe" / "007.jpg").write_bytes(b"<html><body>404</body></html>")
    return train


def test_all_unreadable_files_are_named_at_once_or_left_out(tmp_path: Path) -> None:
    train = broken(tmp_path)
    files = ", ".join(str(train / name) for name in ("disc/003.png", "disc/005.png", "stripe/007.jpg"))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"3 image files cannot be read: {files}. Mend or remove them, or leave")
    found = load(tmp_path, skip_unreadable=True)
    assert sum(map(len, (found.train, found.validation, found.test))) == 46
    assert notes(tmp_path, skip_unreadable=True)[0].endswith(f"left out: 3 that cannot be read ({files})")


def test_of_many_unreadable_files_ten_are_named(tmp_path: Path) -> None:
    train = folders.write(tmp_path)
    for number in range(14):
        (train / "disc" / f"{number:03}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^14 image files .*disc/009\.png and 4 more\. Mend"):
        load(tmp_path)


def test_what_is_left_without_unreadable_files_has_to_suffice(tmp_path: Path) -> None:
    train = folders.write(tmp_path, 6)
    for number in range(2):
        (train / "disc" / f"{number:03}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/disc has 4 of the at least 5 images"):
        load(tmp_path, skip_unreadable=True)


def test_names_that_look_the_same_are_one_sentence(tmp_path: Path) -> None:
    train = folders.write(tmp_path, labels=("caf\u00e9", "bar"))
    (train / "cafe\u0301").mkdir()
    with pytest.raises(UserError, match="two folders whose names both read 'caf\u00e9'"):
        load(tmp_path)


def test_a_test_folder_whose_names_are_decomposed_is_of_the_same_classes(tmp_path: Path) -> None:
    folders.write(tmp_path, labels=("caf\u00e9", "bar"))
    folders.write(tmp_path, 3, labels=("cafe\u0301", "bar"), part="test")
    found = load(tmp_path)
    assert found.classes == ("bar", "caf\u00e9")
    assert found.test.labels.tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[attr-defined]


def config(root: Path, run: Path, **keys: object) -> RunConfig:
    values = {
        **{"dataset": "folder", "data-dir": str(root), "run-dir": str(run), "num-clients": 2, "image-size": 16},
        **{"samples-per-client": 0, "num-server-rounds": 1, "method": "psl"},
    }
    return RunConfig.parse(values | {key.replace("_", "-"): value for key, value in keys.items()})


def test_a_class_name_in_bytes_that_are_not_utf_8_is_trained_and_read_back(tmp_path: Path) -> None:
    train = folders.write(tmp_path / "data", labels=("disc", "stripe"))
    os.rename(os.fsencode(train / "disc"), os.fsencode(train) + b"/caf\xe9")
    settings = config(tmp_path / "data", tmp_path / "run")
    checks.check(settings)
    summary = inprocess.run(settings)
    assert summary["evaluated_images"] == 10
    assert RunDirectory(tmp_path / "run").read_config() == settings
    from sglr_flower.studies.trained import evaluation, network, targets

    model = network.load(tmp_path / "run")
    assert model.classes == ("caf\\xe9", "stripe")
    target = targets.run_target(model)
    folder = evaluation.save(evaluation.evaluate(model, target.images), model, target)
    assert "caf\\xe9" in (folder / "confusion.csv").read_text()
    own = targets.folder_target(model, train)
    assert torch.bincount(own.images.labels).tolist() == [24, 24]
