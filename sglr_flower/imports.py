"""A user's own object by its import path, ``package.module:name``: a model, a method."""

from __future__ import annotations

import importlib
from typing import Any

from sglr_flower.errors import UserError


def is_path(name: str) -> bool:
    """Whether a name in the run-config is an import path rather than one of ours."""
    return ":" in name


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
        return getattr(module, name)
    except AttributeError:
        raise UserError(f"{wrong}: module {module_name!r} has no {name!r}") from None
