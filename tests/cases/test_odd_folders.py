"""Corners of image folders: a range for all devices, too few images to score on, a program in an image's place."""

from __future__ import annotations

from pathlib import Path

import folders
import numpy as np
import pytest
from PIL import Image

from sglr_flower.data.classfolders import endings
from sglr_flower.data.images import read_image
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"


@pytest.mark.parametrize(("greatest", "range_said"), [(4095, "12"), (65535, "16"), (0, "auto")])
def test_devices_are_told_the_range_of_the_servers_images(tmp_path: Path, greatest: int, range_said: str) -> None:
    for label in folders.LABELS:
        (tmp_path / "train" / label).mkdir(parents=True)
        if greatest:
            values = np.full((20, 20), greatest, np.uint16)
            Image.fromarray(values).save(tmp_path / "train" / label / "0.png")
    values = {"dataset": "folder", "data-dir": str(tmp_path), "classes": "disc,stripe", "partition": "own"}
    config = RunConfig.parse(values | {"evaluate": "client", "image-size": 16})
    assert assembly.levels_of(config) == range_said
    assert assembly.levels_of(config.replace(levels="10")) == "10"


def test_a_server_with_too_few_images_to_score_on_has_no_score(tmp_path: Path) -> None:
    folders.write(tmp_path / "data", 2)
    values = {"dataset": "folder", "data-dir": str(tmp_path / "data"), "classes": "disc,stripe", "num-clients": 1}
    more = {"image-size": 16, "samples-per-client": 0, "num-server-rounds": 1, "run-dir": str(tmp_path / "run")}
    summary = inprocess.run(RunConfig.parse(values | more))
    assert not summary.totals.scored


def test_a_page_in_postscript_is_no_image_whatever_its_name(tmp_path: Path) -> None:
    assert ".eps" not in endings()
    assert ".png" in endings()
    (tmp_path / "page.png").write_bytes(EPS)
    with pytest.raises(UserError, match=r"page\.png is not an image that can be read"):
        read_image(tmp_path / "page.png", 3, 16)
