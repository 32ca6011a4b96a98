"""Data of one's own: ``dataset = "package.module:function"``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sglr_flower import imports
from sglr_flower.data.samples import Batch
from sglr_flower.data.source import Source, each_of, make
from sglr_flower.errors import UserError

_PARTS = ("train", "test", "validation")
_NAMES = (*_PARTS, "clients", "targets", "flips")


# Remembered as `datasets.load` remembers: a node's process asks again for every message.
@lru_cache(maxsize=2)
def load(path: str, data_dir: str, seed: int) -> Source:
    """Call a user's function and make a source of what it returns.

    Parameters
    ----------
    path : str
        ``package.module:function``. The function takes no parameter, or those of ``data_dir`` and ``seed`` that it
        names. It returns a `Source`; or (train, test) or (train, validation, test); or a dict of these names, of
        ``clients``, a list with one for each, in place of ``train``, and of ``targets`` and ``flips`` if it likes; each
        as `sglr_flower.data.source.make` takes it.
    data_dir : str
        The run-config's ``data-dir`` as it is there.
    seed : int
        The run's seed.

    Raises
    ------
    UserError
        If there is no such function, or what it returns is no source.
    """
    function = imports.load(path, "dataset")
    wrong = f"run-config key dataset = {path!r}: it"
    if not callable(function) or inspect.isbuiltin(function):
        raise UserError(f"{wrong} must be a function that returns the data, not a {type(function).__name__}")
    known = {"data_dir": data_dir, "seed": seed}
    try:
        parameters = inspect.signature(function).parameters
        given = {name: value for name, value in known.items() if name in parameters}
        inspect.signature(function).bind(**given)
    except (TypeError, ValueError) as error:  # ValueError: some functions written in C have no signature
        raise UserError(f"{wrong} may take the parameters data_dir and seed and no others ({error})") from None
    try:
        found = function(**given)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own function does
        raise UserError(f"{wrong} failed with {type(error).__name__}: {error}") from error
    try:
        return _made(found, seed)
    except UserError as error:
        raise UserError(f"{wrong} returned data that cannot be used: {error}") from error


def _made(found: Any, seed: int) -> Source:
    if isinstance(found, Source):
        return found
    if isinstance(found, tuple) and len(found) in (2, 3):
        names = ("train", "test") if len(found) == 2 else ("train", "validation", "test")
        found = dict(zip(names, found, strict=True))
    if not isinstance(found, Mapping) or not {"test"} <= found.keys() <= set(_NAMES):
        raise UserError(
            f"a {type(found).__name__} instead of a Source, (train, test), (train, validation, test), or a dict of "
            "train or clients, test and perhaps validation, targets and flips"
        )
    return make(**found, seed=seed)


def oddities(source: Source) -> list[str]:
    """What a person may not know of data of one's own, a sentence each, without a full stop."""
    parts = {"train": source.train, "validation": source.validation, "test": source.test}
    found = []
    labels = [own for part in parts.values() if len(part) and (own := source.labels(part)) is not None]
    if labels and (least := min(int(own.min()) for own in labels)) > 0:
        found.append(f"no sample is of class 0: class numbers begin at 0, and the least here is {least}")
    for name, part in parts.items():
        values = [own for own in each_of(part.inputs) if own.is_floating_point()] if isinstance(part, Batch) else []
        wrong = {index for own in values for index in (~own.isfinite()).nonzero()[:, 0].tolist()}
        if wrong:
            found.append(f"{len(wrong)} of {len(part)} {name} samples have inputs that are not finite")
    return found
