"""Classified images of the Hugging Face hub: ``dataset = "hf:NAME"``, or offline ``dataset = "hf:/folder"``.

The data set is had by Flower Datasets, which keeps it in Hugging Face's own cache (``HF_HOME``), or from a folder that
``save_to_disk`` of the library `datasets` wrote. Images are decoded when they are needed, so it may be larger than
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data.draw import held_out as tested_apart
from sglr_flower.data.samples import Indexed, Samples, Share
from sglr_flower.data.source import Source, held_out
from sglr_flower.data.targets import Classes
from sglr_flower.errors import UserError

_PREFIX = "hf:"
_OPTIONS = ("image", "label", "subset")
_TEST_SHARE = 5
INPUT_SIZE = 32
"""What the small networks here are made for."""


def is_name(dataset: str) -> bool:
    """Whether a run-config's ``dataset`` names one of these."""
    return dataset.startswith(_PREFIX)


@lru_cache(maxsize=2)
def load(dataset: str, seed: int, size: int) -> Source:
    """Have a data set, downloading it first where it is not in the cache.

    Parameters
    ----------
    dataset : str
        ``hf:NAME`` or ``hf:/absolute/folder``; then, where there is more than one to choose from, ``,image=COLUMN``,
        ``,label=COLUMN`` or ``,subset=NAME``.
    seed : int
        Draws the sixth of the training images that is held out for validation, where it has no split ``validation``.
    size : int
        Height and width that images are resized to.

    Returns
    -------
    Source
        Of its splits train, test and perhaps validation. Without a split test it is a stratified fifth of train, the
        same one in every run.

    Raises
    ------
    UserError
        If it cannot be had, or has no train split, or not one column of images and one of classes.
    """
    name, options = _parsed(dataset)
    splits = _local(dataset, Path(name)) if name.startswith("/") else _downloaded(dataset, name, options.get("subset"))
    if "train" not in splits:
        raise UserError(
            f"run-config key dataset = {dataset!r}: it needs a split called train, and has {', '.join(splits)}"
        )
    columns = _columns(dataset, splits["train"].features, options)
    parts = {split: _samples(rows, columns, size) for split, rows in splits.items() if len(rows)}
    kind = Classes(tuple(splits["train"].features[columns[1]].names))
    train: Samples = parts["train"]
    test: Samples | None = parts.get("test")
    if test is None:
        labels = parts["train"].targets()
        assert isinstance(labels, Tensor)
        rest, tested = map(torch.from_numpy, tested_apart(labels.numpy(), -(-len(labels) // _TEST_SHARE)))
        train, test = Share(train, rest), Share(train, tested)
    if "validation" in parts:
        return Source(train, parts["validation"], test, kind)
    return held_out(train, test, kind, seed)


def _parsed(dataset: str) -> tuple[str, dict[str, str]]:
    name, *given = dataset.removeprefix(_PREFIX).split(",")
    pairs = [option.partition("=") for option in given]
    if not name or not all(key in _OPTIONS and value for key, _, value in pairs):
        raise UserError(
            f"run-config key dataset = {dataset!r}: it must be hf:NAME or hf:/folder, with ,image=COLUMN "
            ",label=COLUMN or ,subset=NAME where there is more than one"
        )
    return name, {key: value for key, _, value in pairs}


def _local(dataset: str, folder: Path) -> dict[str, Any]:
    from datasets import Dataset, DatasetDict, load_from_disk  # slow to import, as below

    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"run-config key dataset = {dataset!r}: {folder} is no folder that save_to_disk of the library datasets "
            f"wrote ({error})"
        ) from error
    assert isinstance(found, Dataset | DatasetDict)
    return {"train": found} if isinstance(found, Dataset) else dict(found)


def _downloaded(dataset: str, name: str, subset: str | None) -> dict[str, Any]:
    from flwr_datasets import FederatedDataset

    try:
        # Partitions are drawn as for every other data set, so its own order is kept and nothing is partitioned here.
        federated = FederatedDataset(dataset=name, subset=subset, partitioners={}, shuffle=False)
        splits = {"train": federated.load_split("train")}
    except Exception as error:  # the hub's, the network's and the libraries' many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"run-config key dataset = {dataset!r}: it could not be had from the Hugging Face hub ({reason}): "
            "save it where there is a network with save_to_disk, and name that folder as hf:/folder"
        ) from error
    for split in ("validation", "test"):
        try:
            splits[split] = federated.load_split(split)
        except ValueError:  # it has none
            continue
    return splits


def _columns(dataset: str, features: Any, options: dict[str, str]) -> tuple[str, str]:
    """The names of the columns of images and of classes: those that are named, else the only ones of their types."""
    from datasets import ClassLabel, Image

    chosen = []
    for option, kind in (("image", Image), ("label", ClassLabel)):
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        name = options.get(option, fitting[0] if len(fitting) == 1 else "")
        if name not in fitting:
            told = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
            raise UserError(
                f"run-config key dataset = {dataset!r}: it must have one column of type {kind.__name__}, or name it by "
                f",{option}=COLUMN: its columns are {told}"
            )
        chosen.append(name)
    return chosen[0], chosen[1]


def _samples(rows: Any, columns: tuple[str, str], size: int) -> Indexed:
    labels = torch.tensor(rows[columns[1]][:], dtype=torch.int64)
    grey = rows[0][columns[0]].mode in ("1", "L")
    return Indexed(_Rows(rows, columns, size, grey), _targets=[labels])


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows as pairs of a stored image, uint8 [1 or 3, size, size], and its class number."""

    rows: Any
    columns: tuple[str, str]
    size: int
    grey: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL.Image import Resampling

        row, (image, label) = self.rows[index], self.columns
        converted = row[image].convert("L" if self.grey else "RGB").resize((self.size, self.size), Resampling.BILINEAR)
        levels = np.array(converted).reshape(self.size, self.size, -1)
        return torch.from_numpy(levels).permute(2, 0, 1), row[label]
