"""A user's own object by its import path, ``package.module:name``: a model, a method, a loss, an optimizer, a codec."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
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
        raise UserError(f"{wrong}: module {module_name!r} cannot be imported: {told(error)}") from error
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
            f"run-config key {key} = {path!r}: it must be made without arguments, and that fails with {told(error)}"
        ) from error


def told(error: BaseException, *owners: Any) -> str:
    """An exception from code of the user's own in words: its type, the first line of its text, and FILE:LINE.

    Parameters
    ----------
    error : BaseException
        With its traceback; the line is the innermost one outside torch and this package.
    owners : Any
        Where there is no such line, functions and modules of which the first that is the user's is named (`defined`).
    """
    words = str(error).strip().partition("\n")[0]
    named = f"{type(error).__name__}: {words}" if words else type(error).__name__
    place = _raised(error) or next(filter(None, map(defined, owners)), "")
    return f"{named} ({place})" if place else named


def defined(owner: Any) -> str:
    """FILE:LINE where a function is defined, or a module's ``forward``; empty if that is not the user's code."""
    function = owner if inspect.isroutine(owner) else getattr(type(owner), "forward", None)
    code = getattr(function, "__code__", None)
    paths = sysconfig.get_paths()
    if code is None or _within(code.co_filename, [*_ours(), paths["purelib"], paths["platlib"], paths["stdlib"]]):
        return ""
    return _place(code.co_filename, code.co_firstlineno)


def _raised(error: BaseException) -> str:
    """FILE:LINE of a traceback's innermost line that is the user's; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return _place(error.filename, error.lineno)
    lines = traceback.extract_tb(error.__traceback__)
    paths = sysconfig.get_paths()
    installed = [paths["purelib"], paths["platlib"]]
    outside = [line for line in lines if not _within(line.filename, _ours())]
    for line in reversed(outside):
        if not _within(line.filename, [*installed, paths["stdlib"]]):
            return _place(line.filename, line.lineno)
    for line in reversed(outside):  # a library that the user calls is the second choice
        if _within(line.filename, installed):
            return _place(line.filename, line.lineno)
    return ""


def _ours() -> list[str]:
    """The folders of this package and torch."""
    return [str(Path(__file__).parent), *getattr(sys.modules.get("torch"), "__path__", ())]


def _within(filename: str, folders: Sequence[str]) -> bool:
    return filename.startswith("<") or any(filename.startswith(folder + os.sep) for folder in folders)


def _place(filename: str, line: int | None) -> str:
    path = Path(filename)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"
