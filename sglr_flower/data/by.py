"""Partition ``by:LEVEL-OR-COLUMN``: a client for each hospital, site or writer that the train samples are of.

Of dataset ``folder`` it is a folder below the class folders: ``by:1`` for SITE in ``train/CLASS/SITE/IMAGE``, ``by:2``
for a folder in that one. Of a Hugging Face data set it is a column, ``by:writer`` say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data import datasets, folder, hub
from sglr_flower.data.classfolders import text
from sglr_flower.data.options import Options
from sglr_flower.data.partition import refused
from sglr_flower.data.samples import Indexed, Read, Samples, Share
from sglr_flower.errors import UserError
from sglr_flower.seeds import numpy_generator as generator

PREFIX = "by:"
_NAMED = 10
Value = str | int | float | bool


def shares(values: Sequence[Value], spec: str, num_clients: int, samples_per_client: int, seed: int) -> list[Tensor]:
    """Give the train samples of each distinct value to a client; the clients are in the order of the values.

    Parameters
    ----------
    values : Sequence of str, int, float or bool
        Of every train sample, see `of_train`.
    spec, num_clients, samples_per_client, seed
        As of `partition.partition`, whose shares these are too.

    Raises
    ------
    UserError
        There are more or fewer values than clients.
    """
    distinct, client = np.unique(np.asarray(values), return_inverse=True)
    if len(distinct) != num_clients:
        listed = ", ".join(map(str, distinct[:_NAMED])) + (", ..." if len(distinct) > _NAMED else "")
        raise UserError(
            f"run-config key num-clients = {num_clients}: it must be {len(distinct)} with partition {spec!r}, as the "
            f"train samples have so many values of it, a client for each ({listed})"
        )
    draw = generator(seed, "samples-per-client")
    every = np.split(np.argsort(client, kind="stable"), np.cumsum(np.bincount(client, minlength=num_clients))[:-1])
    kept = [np.sort(draw.permutation(own)[: samples_per_client or None]) for own in every]
    return [torch.from_numpy(own) for own in kept]


def of_train(spec: str, dataset: str, data_dir: str, seed: int, image_size: int, options: Options) -> list[Value]:
    """The value of every train sample.

    Parameters
    ----------
    spec : str
        The run-config's ``partition``.
    dataset, data_dir, seed, image_size, options
        As of `datasets.load`.

    Raises
    ------
    UserError
        The data set has no such folder level or column, or no levels and columns at all.
    """
    of = spec.removeprefix(PREFIX)
    if hub.is_name(dataset):
        return _column(datasets.load(dataset, data_dir, seed, image_size, options).train, of, spec)
    if dataset != "folder":
        raise refused(
            spec,
            f"it is for dataset folder and for those of Hugging Face (hf:NAME), not for {dataset!r}",
        )
    if not of.isdecimal() or int(of) < 1:
        raise refused(
            spec,
            "with dataset folder it must be by:1 for the folder below the class folder, by:2 for the one in that, and "
            "so on",
        )
    root = folder.root(data_dir)
    return [_level(path, root, int(of), spec) for path in datasets.train_files(data_dir, seed, image_size, options)]


def _level(path: str, root: Path, level: int, spec: str) -> str:
    """The name of the folder that an image lies in, so many levels below its class folder."""
    _, _, *folders, _ = Path(path).relative_to(root).parts
    if len(folders) < level:
        raise refused(
            spec,
            f"{text(path)} lies in {len(folders)} folder(s) below its class folder, not in "
            f"{level}{' or more' if level > 1 else ''}: give every image its folder",
        )
    return text(folders[level - 1])


def _column(samples: Samples, name: str, spec: str) -> list[Value]:
    """A column of a Hugging Face data set, of whatever part of it some samples are."""
    if isinstance(samples, Share):
        whole = _column(samples.whole, name, spec)
        return [whole[index] for index in samples.indices.tolist()]
    if isinstance(samples, Read):
        return _column(samples.whole, name, spec)
    assert isinstance(samples, Indexed)
    rows: Any = samples.data.rows
    if name not in rows.column_names:
        raise refused(spec, f"the data set's columns are {', '.join(rows.column_names)}")
    values = rows[name][:]
    names = getattr(rows.features[name], "names", None)  # of a column of classes
    if not all(isinstance(value, str | int | float) for value in values):
        raise refused(spec, "that column has other values than texts and numbers")
    return [names[value] for value in values] if names else list(values)
