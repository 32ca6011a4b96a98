"""The tables that come with scikit-learn: no image, no download, and ready in a moment.

Features, and the values of a regression, are standardised by the training samples' mean and deviation, so that a mean
squared error of 1 is that of whoever always answers with the mean.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sglr_flower.data.draw import held_out as tested_apart
from sglr_flower.data.samples import Batch, Samples
from sglr_flower.data.source import Source, held_out
from sglr_flower.data.targets import Classes, Kind, Values
from sglr_flower.errors import UserError

_TEST_SHARE = 5

_FILES: dict[str, tuple[tuple[str, ...], Kind]] = {
    "breast-cancer": (("breast_cancer.csv",), Classes(("malignant", "benign"))),
    "wine": (("wine_data.csv",), Classes(("class_0", "class_1", "class_2"))),
    "diabetes": (("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"), Values((1,), ("disease progression",))),
}
"""Files of scikit-learn's ``datasets/data``: rows of features and target, or features and targets apart."""

NAMES = tuple(_FILES)


def targets(name: str) -> Kind:
    """A table's target type."""
    return _FILES[name][1]


def bundled(file: str, dataset: str) -> Path:
    """A file of scikit-learn's data sets; found without importing it, which would take over a second.

    Raises
    ------
    UserError
        If scikit-learn is not installed, or a version of it that has the file elsewhere.
    """
    spec = importlib.util.find_spec("sklearn")
    for place in (spec and spec.submodule_search_locations) or ():
        if (found := Path(place) / "datasets" / "data" / file).is_file():
            return found
    raise UserError(f"Data set {dataset} is not there: it comes with scikit-learn, so install that again.")


@lru_cache(maxsize=2)
def load(name: str, seed: int) -> Source:
    """Read a table.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    seed : int
        Draws the sixth of the training samples that is held out for validation.

    Returns
    -------
    Source
        Inputs float64 [n, features]; class numbers int64 [n], or values float64 [n, 1]. The test samples are a fifth,
        stratified where there are classes, the same ones in every run.
    """
    files, kind = _FILES[name]
    features, wanted = _read([bundled(file, name) for file in files])
    classes = wanted.astype(np.int64) if isinstance(kind, Classes) else np.zeros(len(wanted), np.int64)
    every = Batch(torch.from_numpy(features), kind.read(torch.from_numpy(wanted if classes.max() == 0 else classes)))
    train, test = (
        every.take(torch.from_numpy(part)) for part in tested_apart(classes, math.ceil(len(wanted) / _TEST_SHARE))
    )
    return _standardised(held_out(train, test, kind, seed))


def _read(files: list[Path]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if len(files) == 2:
        return np.loadtxt(files[0]), np.loadtxt(files[1])
    rows = np.loadtxt(files[0], delimiter=",", skiprows=1)
    return np.ascontiguousarray(rows[:, :-1]), rows[:, -1]


def _standardised(source: Source) -> Source:
    fitted = source.train
    assert isinstance(fitted, Batch)
    means = (fitted.images.mean(0), fitted.images.std(0, correction=0))
    targets = (float(fitted.labels.double().mean()), float(fitted.labels.double().std(correction=0)))

    def scaled(part: Samples) -> Batch:
        assert isinstance(part, Batch)
        inputs = (part.images - means[0]) / means[1]
        if isinstance(source.targets, Values):
            return Batch(inputs, (part.labels - targets[0]) / targets[1])
        return Batch(inputs, part.targets)

    train, validation, test = scaled(source.train), scaled(source.validation), scaled(source.test)
    return replace(source, train=train, validation=validation, test=test)
