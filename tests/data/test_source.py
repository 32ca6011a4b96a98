"""Sources made of whatever holds samples, and images of the Hugging Face hub from a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from sglr_flower.data import datasets
from sglr_flower.data.inputs import Inputs, describe, to_inputs
from sglr_flower.data.samples import Batch, Indexed, Share, in_memory
from sglr_flower.data.source import make, subset
from sglr_flower.data.targets import Classes, MultiLabel, Several, Values
from sglr_flower.errors import UserError

X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3


@pytest.mark.parametrize(
    "part",
    [(X, Y), (X.numpy(), Y.numpy()), TensorDataset(X, Y), list(zip(X, Y.tolist(), strict=True)), Batch(X, Y)],
    ids=["tensors", "arrays", "torch data set", "list", "batch"],
)
def test_anything_that_holds_samples_is_the_same_source(part: object) -> None:
    expected = make((X, Y), (X, Y), seed=3)
    found = make(part, part, seed=3)
    assert found.targets == expected.targets == Classes(("0", "1", "2"))
    assert found.inputs == Inputs((("", (2,), None),))
    for name in ("train", "validation", "test"):
        ours, theirs = in_memory(getattr(found, name)), in_memory(getattr(expected, name))
        torch.testing.assert_close((ours.inputs, ours.targets), (theirs.inputs, theirs.targets))
    assert (len(found.train), len(found.validation), len(found.test)) == (10, 2, 12)
    seen = torch.cat([in_memory(found.train).images, in_memory(found.validation).images])
    assert {tuple(row) for row in seen.tolist()} == {tuple(row) for row in X.tolist()}


@pytest.mark.parametrize(
    ("targets", "kind", "shape"),
    [
        (torch.randn(12), Values((1,)), (12, 1)),
        (torch.randn(12, 3), Values((3,)), (12, 3)),
        (np.arange(12) > 4, Classes(("0", "1")), (12,)),
        (torch.zeros(12, 4, dtype=torch.bool), MultiLabel(tuple("0123")), (12, 4)),
    ],
)
def test_what_targets_are_is_told_by_their_numbers(targets: Tensor, kind: object, shape: tuple[int, ...]) -> None:
    source = make((X, targets), (X, targets))
    assert source.targets == kind
    assert in_memory(source.test).labels.shape == shape
    assert in_memory(source.test).labels.is_floating_point() == (not isinstance(kind, Classes))


def test_several_targets_by_name() -> None:
    targets = {"kind": Y, "size": torch.randn(12)}
    source = make((X, targets), (X, targets))
    assert source.targets == Several((("kind", Classes(("0", "1", "2"))), ("size", Values((1,)))))
    assert source.targets.outputs == 4


WRONG = {
    "other lengths": (((X, Y[:5]),) * 2, {}, "its train part has tensors of 5 and 12 samples"),
    "empty": (((X, Y), (X[:0], Y[:0])), {}, "its test part is empty"),
    "no data": ((3, 4), {}, "its train part must be a pair .* not a int"),
    "unclear": (((X, torch.zeros(12, 2, dtype=torch.int64)),) * 2, {}, "whole numbers of shape"),
    "a class too many": (((X, Y),) * 2, {"targets": Classes(("a", "b"))}, "has labels from 0 to 2, not from 0 to 1"),
    "labels of 2": (((X, 2 * X),) * 2, {"targets": MultiLabel(("a", "b"))}, "has labels that are not all 0 or 1"),
    "other shapes": (((X, X),) * 2, {"targets": Values((3,))}, r"has labels of shape \(12, 2\), not \(12, 3\)"),
    "not finite": (((X, X * torch.inf),) * 2, {}, "has values that are not finite"),
    "no pairs": (([1, 2, 3],) * 2, {}, r"must be a pair \(inputs, target\)"),
    "too few": (((X[:3], Y[:3]),) * 2, {}, "has 3 samples, but at least 6 are needed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_data_is_said(name: str) -> None:
    parts, changes, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence):
        make(*parts, **changes)


def test_numbers_are_cast_and_whole_ones_stay() -> None:
    stored = {"tokens": torch.arange(6).reshape(2, 3), "level": torch.ones(2, 1, dtype=torch.float64)}
    read = to_inputs(stored, torch.float32)
    assert not isinstance(read, Tensor)
    assert (read["tokens"].dtype, read["level"].dtype) == (torch.int64, torch.float32)
    assert describe(stored) == Inputs((("tokens", (3,), torch.int64), ("level", (1,), None)))
    assert describe(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).image_size == 8


def test_a_sample_of_a_regression_is_drawn_without_classes() -> None:
    batch = Batch(X, torch.randn(12, 1))
    drawn = in_memory(subset(batch, 5, seed=1))
    rows = drawn.images[:, 0].tolist()
    assert len(set(rows)) == 5
    assert rows == sorted(rows)
    assert isinstance(subset(Indexed(TensorDataset(X, Y)), 6, seed=1), Share)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature

    draw = np.random.default_rng(0)
    features = Features(
        {"picture": ImageFeature(), "animal": ClassLabel(names=["ant", "bee"]), "note": Value("string")}
    )

    def rows(count: int) -> Dataset:
        pictures = [Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
        columns = {"picture": pictures, "animal": [k % 2 for k in range(count)], "note": ["x"] * count}
        return Dataset.from_dict(columns, features=features)

    root = tmp_path_factory.mktemp("hub")
    DatasetDict({"train": rows(30), "test": rows(10)}).save_to_disk(str(root / "two"))
    rows(30).save_to_disk(str(root / "one"))
    twice = rows(12).add_column("again", [0] * 12).cast_column("again", ClassLabel(names=["x", "y"]))
    DatasetDict({"train": twice}).save_to_disk(str(root / "twice"))
    return root


def test_images_of_a_saved_data_set(saved: Path) -> None:
    from datasets import load_from_disk

    source = datasets.load(f"hf:{saved}/two", "", 0, 8)
    assert source.classes == ("ant", "bee")
    assert (len(source.train), len(source.validation), len(source.test)) == (25, 5, 10)
    rows = load_from_disk(str(saved / "two"))["test"]
    test = in_memory(source.test)
    assert test.labels.tolist() == rows["animal"][:]
    assert np.array_equal(test.images[3].permute(1, 2, 0), np.asarray(rows[3]["picture"]))
    assert datasets.load(f"hf:{saved}/two", "", 0).test.take(torch.tensor([0])).images.shape == (1, 3, 32, 32)
    alone = datasets.load(f"hf:{saved}/one", "", 0, 8)
    assert (len(alone.train), len(alone.validation), len(alone.test)) == (20, 4, 6)
    assert in_memory(alone.test).labels.bincount().tolist() == [3, 3]


def test_a_run_on_a_saved_data_set(saved: Path, tmp_path: Path) -> None:
    from sglr_flower.run import checks, inprocess
    from sglr_flower.run.config import RunConfig

    values = {"dataset": f"hf:{saved}/two", "image-size": 16, "partition": "dirichlet:0.5", "samples-per-client": 0}
    config = RunConfig.parse({**values, "num-clients": 2, "num-server-rounds": 1, "run-dir": str(tmp_path)})
    checks.check(config)
    assert 0 <= inprocess.run(config, 2)["test_accuracy_mean"] <= 1


def test_columns_are_named_where_there_are_several(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"one column of type ClassLabel, or name it by ,label=COLUMN: its columns are p"
    ):
        datasets.load(f"hf:{saved}/twice", "", 0)
    assert datasets.load(f"hf:{saved}/twice,label=again", "", 0).classes == ("x", "y")
    with pytest.raises(UserError, match="must have one column of type ClassLabel"):
        datasets.load(f"hf:{saved}/twice,label=note", "", 0)
    with pytest.raises(UserError, match="must be hf:NAME or hf:/folder"):
        datasets.load(f"hf:{saved}/twice,colour=red", "", 0)
    with pytest.raises(UserError, match="is no folder that save_to_disk"):
        datasets.load(f"hf:{saved}/nothing", "", 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be had from the Hugging Face hub .*: save it where there is"):
        datasets.load("hf:nobody/nothing-of-this-name", "", 0)


def test_parts_read_otherwise_are_one_sentence() -> None:
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    with pytest.raises(UserError, match=r"its clients\[1\] part has inputs of shape \(3,\), and its clients\[0\] part"):
        make(clients=[(x, y), (x[:, :3], y)], test=(x, y))
