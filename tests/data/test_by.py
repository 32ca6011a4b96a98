"""A client for each folder below the class folders, or for each value of a column."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from uneven import write

from sglr_flower.data import by, partition
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import read_json

SITES = {"north": {"disc": 12, "stripe": 8}, "south": {"stripe": 10}, "west": {"disc": 6, "stripe": 6}}


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """``train/CLASS/SITE/IMAGE``, and a test folder so that all of train but a sixth is the clients'."""
    root = tmp_path / "hospitals"
    for site, counts in SITES.items():
        made = write(tmp_path / site, counts)
        for name in counts:
            shutil.copytree(made / "train" / name, root / "train" / name / site)
    write(tmp_path / "tested", {}, {"disc": 4, "stripe": 4})
    shutil.copytree(tmp_path / "tested" / "test", root / "test")
    return root


def config(root: object, spec: str = "by:1", clients: int = 3, **more: object) -> RunConfig:
    values = {"dataset": "folder", "data-dir": str(root), "image-size": 16, "partition": spec, "num-clients": clients}
    return RunConfig.parse({**values, "samples-per-client": 0, **more})


def test_each_site_is_a_client_in_the_order_of_their_names(hospitals: Path) -> None:
    names, counts = assembly.class_counts(config(hospitals))
    assert names == ("disc", "stripe")
    assert sum(map(sum, counts)) == 42 - 42 // 6
    for row, site in zip(counts, SITES.values(), strict=True):
        assert all(count <= site.get(name, 0) for count, name in zip(row, names, strict=True))
    assert counts[1][0] == 0
    shares = assembly.client_data(config(hospitals), [0, 1, 2])
    assert len({index for share in shares.values() for index in share.indices.tolist()}) == 35


def test_samples_per_client_is_a_limit(hospitals: Path) -> None:
    _, counts = assembly.class_counts(config(hospitals, **{"samples-per-client": 6}))
    assert [sum(row) for row in counts] == [6, 6, 6]


def test_a_run_over_sites(hospitals: Path, tmp_path: Path) -> None:
    done = config(hospitals, **{"num-server-rounds": 1, "run-dir": str(tmp_path / "run"), "model": "resnet16"})
    checks.check(done)
    inprocess.run(done, 2)
    assert len(read_json(tmp_path / "run" / "partition.json")["counts"]) == 3


@pytest.mark.parametrize(
    ("spec", "clients", "sentence"),
    [
        ("by:1", 4, r"num-clients = 4: it must be 3 with partition 'by:1'.*north, south, west\)"),
        ("by:2", 3, r"lies in 1 folder\(s\) below its class folder, not in 2"),
        ("by:site", 3, "with dataset folder it must be by:1 for the folder below the class folder"),
    ],
)
def test_what_does_not_fit_is_one_sentence(hospitals: Path, spec: str, clients: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        checks.check(config(hospitals, spec, clients))


def test_other_data_sets_have_neither_levels_nor_columns() -> None:
    with pytest.raises(UserError, match="for dataset folder and for those of Hugging Face"):
        checks.check(RunConfig.parse({"partition": "by:1", "num-clients": 3}))


def test_a_level_or_column_has_to_be_named() -> None:
    with pytest.raises(UserError, match="partition = 'by:': by:LEVEL-OR-COLUMN"):
        partition.parse("by:")
    with pytest.raises(UserError, match="by:LEVEL-OR-COLUMN"):
        partition.parse("nothing")


def test_a_client_for_each_value_of_a_column(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature

    draw = np.random.default_rng(0)
    features = Features(
        {
            "picture": ImageFeature(),
            "animal": ClassLabel(names=["ant", "bee"]),
            "writer": Value("int64"),
            "where": ClassLabel(names=["town", "field"]),
            "boxes": [Value("int64")],
        }
    )

    def rows(count: int) -> Dataset:
        pictures = [Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
        columns = {"picture": pictures, "animal": [k % 2 for k in range(count)], "boxes": [[1]] * count}
        own = {"writer": [(2, 10, 1)[k % 3] for k in range(count)], "where": [k % 2 for k in range(count)]}
        return Dataset.from_dict({**columns, **own}, features=features)

    DatasetDict({"train": rows(36)}).save_to_disk(str(tmp_path / "hub"))
    values = {"dataset": f"hf:{tmp_path / 'hub'},label=animal", "image-size": 8, "samples-per-client": 0}

    def of(spec: str, clients: int) -> RunConfig:
        return RunConfig.parse({**values, "partition": spec, "num-clients": clients})

    found = by.of_train("by:writer", *assembly.data_of(of("by:writer", 3)))
    shares = assembly.client_data(of("by:writer", 3), [0, 1, 2])
    for client, writer in enumerate((1, 2, 10)):
        assert {found[index] for index in shares[client].indices.tolist()} == {writer}
    source = assembly.splits(of("by:writer", 3))
    assert sum(len(share) for share in shares.values()) == len(source.train)
    assert set(by.of_train("by:where", *assembly.data_of(of("by:where", 2)))) == {"town", "field"}
    with pytest.raises(UserError, match="the data set's columns are picture, animal, boxes, writer, where"):
        assembly.client_data(of("by:hand", 2), [0])
    with pytest.raises(UserError, match="other values than texts and numbers"):
        assembly.client_data(of("by:boxes", 2), [0])


def test_a_column_is_had_of_images_that_are_made_grey_too(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"]), "writer": Value("string")})
    images = [Image.new("RGB", (16, 16), (number, 0, 0)) for number in range(36)]
    rows = {"image": images, "label": [0, 1] * 18, "writer": ["x"] * 12 + ["y"] * 24}
    Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "saved"))
    values = {
        "dataset": f"hf:{tmp_path / 'saved'}",
        "partition": "by:writer",
        "num-clients": 2,
        "model": "case_models:grey",
    }
    both = [
        RunConfig.parse({**values, "num-clients": 2, "samples-per-client": 0, "channels": number}) for number in (1, 3)
    ]
    assert assembly.class_counts(both[0]) == assembly.class_counts(both[1])
