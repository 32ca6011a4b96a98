"""Grey images that a model of one's own reads with one channel: ``channels = 1``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import numpy as np
import pytest
import torch
from PIL import Image

from sglr_flower.data import datasets
from sglr_flower.data.augment import augment
from sglr_flower.data.images import read_image
from sglr_flower.data.inputs import describe, grey, is_image, of_one_channel, rgb, to_input
from sglr_flower.data.options import Options
from sglr_flower.data.samples import Indexed, Read, all_targets
from sglr_flower.data.source import Source, make, one_channel
from sglr_flower.data.targets import Classes
from sglr_flower.errors import UserError
from sglr_flower.run import checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.studies.trained import evaluation, export, network, prediction, targets

ONE = Options(channels=1)


def levels(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_every_level_is_read_as_in_three_channels_but_once() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    one = of_one_channel(every)
    assert one.dtype == torch.int8
    assert is_image(one)
    assert of_one_channel(one) is one
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_input(one, dtype), to_input(every, dtype)[:, :1])
    assert describe(one) == rgb(16, 1)
    assert rgb(16, 1).image_size == 16
    assert rgb(16, 1).words() == "images of 16 x 16 pixels and one channel"


def test_colour_is_made_grey_as_pillow_does() -> None:
    colour = levels(3, 3, 8, 8)
    assert torch.equal(to_input(of_one_channel(colour), torch.float32), to_input(grey(colour), torch.float32)[:, :1])


def test_a_border_is_black() -> None:
    white = of_one_channel(torch.full((64, 1, 16, 16), 255, dtype=torch.uint8))
    shifted = augment(white, torch.Generator().manual_seed(0), flip=True)
    assert shifted.unique().tolist() == [-128, 127]
    assert to_input(shifted, torch.float32).unique().tolist() == [-1, 1]


@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_data_sets_have_one_channel(dataset: str, tmp_path: Path) -> None:
    where = str(folders.write(tmp_path).parent) if dataset == "folder" else ""
    found = datasets.load(dataset, where, 0, 16, ONE)
    assert found.inputs == datasets.inputs(dataset, where, 0, 16, ONE) == rgb(16, 1)
    assert datasets.channels(dataset, where, 0, 16, ONE) == 1
    usual = datasets.load(dataset, where, 0, 16)
    for one, three in ((found.train, usual.train), (found.validation, usual.validation), (found.test, usual.test)):
        assert torch.equal(one.labels, three.labels)  # type: ignore[attr-defined]
        first, second = (to_input(part.images, torch.float32) for part in (one, three))  # type: ignore[attr-defined]
        assert (first - second[:, :1]).abs().max() <= 2 / 127.5  # made grey before it is resized, not after


def test_images_that_are_not_in_memory_are_converted_when_they_are_taken() -> None:
    stored = [(levels(1, 8, 8) // (index + 1), index % 2) for index in range(12)]
    source = make(stored, stored[:4], seed=0)
    found = one_channel(source)
    assert isinstance(found.test, Read)
    assert torch.equal(all_targets(found.test), torch.tensor([0, 1, 0, 1]))
    taken = found.test.take(torch.tensor([2, 0]))
    assert torch.equal(taken.images, of_one_channel(torch.stack([stored[2][0], stored[0][0]])))
    assert isinstance(source.test, Indexed)


def test_what_is_no_image_has_no_channel() -> None:
    table = make((torch.zeros(12, 5), torch.arange(12) % 2), (torch.zeros(2, 5), torch.arange(2)))
    assert isinstance(table, Source)
    assert table.targets == Classes(("0", "1"))
    with pytest.raises(UserError, match="channels = 1: it is for images"):
        one_channel(table)


def test_our_own_models_have_three_channels() -> None:
    with pytest.raises(UserError, match="channels = 1: model resnet16 is made for three channels"):
        RunConfig.parse({"channels": 1})


def test_a_grey_network_is_trained_scored_applied_and_exported(tmp_path: Path) -> None:
    folders.write(tmp_path / "data")
    values = {
        **{"dataset": "folder", "data-dir": str(tmp_path / "data"), "run-dir": str(tmp_path / "run")},
        **{"num-clients": 2, "image-size": 16, "samples-per-client": 0, "num-server-rounds": 2, "channels": 1},
        **{"model": "cases.grey_model:grey", "augment": "standard", "client-lr": 0.01},
    }
    config = RunConfig.parse(values)
    checks.check(config)
    inprocess.run(config)
    model = network.load(tmp_path / "run")
    assert (model.channels, model.image_size) == (1, 16)
    target = targets.run_target(model)
    measured = evaluation.evaluate(model, target.images)
    assert np.mean(list(measured.accuracy.values())) == pytest.approx(model.history.rows[-1].test_score_mean)
    image = read_image(tmp_path / "data" / "train" / "disc" / "000.png", 1, 16)
    assert prediction.predict(model, image[None]).sum() == pytest.approx(1)
    own = targets.folder_target(model, tmp_path / "data" / "train")
    assert evaluation.evaluate(model, own.images, [0]).images == 48
    folder = export.export(model, 0, tmp_path / "exported")
    described = json.loads((folder / "model.json").read_text())
    assert described["input"]["shape"] == ["batch", 1, 16, 16]
    assert "repeated" not in described["input"]["pixels"]
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    shutil.copyfile(tmp_path / "data" / "train" / "disc" / "000.png", folder / "image.png")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == model.classes[int(prediction.predict(model, image[None], 0).argmax())], done.stderr


def test_pillow_reads_grey_as_it_is_read_here(tmp_path: Path) -> None:
    Image.fromarray(levels(16, 16).numpy()).save(tmp_path / "image.png")
    one = of_one_channel(read_image(tmp_path / "image.png", 1, 16)[None])
    assert torch.equal(one.view(torch.uint8).bitwise_xor(128)[0, 0], levels(16, 16))
