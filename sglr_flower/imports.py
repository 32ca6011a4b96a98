"""A user's own object by its import path, ``package.module:name``: a model, a method, a loss, an optimizer, a codec."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from sglr_flower.errors import UserError


def is_path(name: str) -> bool:
    """Whether a name in the run-config is an import path rather than one of ours."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def unknown(key: str, name: str, known: Iterable[str]) -> UserError:
    """The sentence for a name that is neither one of ours nor an import path."""
    return UserError(f"run-config key {key} = {name!r}: it must be one of {', '.join(known)}, or package.module:name")


def known(key: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of ours or has the form of an import path; nothing is imported.

    Raises
    ------
    UserError
        If it is neither.
    """
    if name not in names and not is_path(name):
        raise unknown(key, name, names)
    return name


def load(path: str, key: str) -> Any:
    """Import what ``path`` names.

    Parameters
    ----------
    path : str
        ``package.module:name``; the folder in which `sglr` is started is on the import path, of the nodes too.
    key : str
        The run-config key it is the value of, for the sentence.

    Raises
    ------
    UserError
        If the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    wrong = f"run-config key {key} = {path!r}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own module does while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{wrong}: module {module_name!r} cannot be imported ({reason})") from error
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        raise UserError(f"{wrong}: module {module_name!r} has no {name!r}") from None


def instance(path: str, key: str) -> Any:
    """The object that ``path`` names, or if it is a class one that is made of it without arguments.

    Raises
    ------
    UserError
        As `load`, and if it cannot be made so.
    """
    own = load(path, key)
    if not inspect.isclass(own):
        return own
    try:
        return own()
    except Exception as error:  # whatever the user's own class does
        raise UserError(
            f"run-config key {key} = {path!r}: it must be made without arguments, and that fails with: {error}"
        ) from error
