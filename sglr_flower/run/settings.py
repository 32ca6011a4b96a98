"""Settings as people write them: a TOML file, Flower's own pyproject.toml, and ``-s key=value`` of the command line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

from sglr_flower.errors import UserError
from sglr_flower.run.config import RunConfig, Scalar, hyphened, unknown_key

_FLOWERS_TABLE = ("tool", "flwr", "app", "config")
_BOOLEANS = {"true": True, "false": False}


def read_config(path: Path) -> dict[str, Any]:
    """Read a run-config: a flat TOML file, or the table ``tool.flwr.app.config`` of a Flower app's pyproject.toml.

    Raises
    ------
    UserError
        As `read_toml`, and if it is of an app without that table, or has a key in two spellings.
    """
    values = read_toml(path)
    return hyphened(_flowers_table(values, path) if isinstance(values.get("tool"), dict) else values)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    UserError
        If it cannot be read or is not TOML; the sentence names it.
    """
    try:
        # -sig: an editor may have put a byte order mark before the text, which tomllib takes for a part of a key.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"config file {path} is not UTF-8 text, as TOML must be: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"config file {path} is not valid TOML: {error}") from None


def _flowers_table(values: dict[str, Any], path: Path) -> dict[str, Any]:
    table: Any = values
    for name in _FLOWERS_TABLE:
        table = table.get(name) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UserError(f"config file {path} has a table tool, but no [{'.'.join(_FLOWERS_TABLE)}] with the settings")
    return table


def parse_assignment(text: str) -> tuple[str, Scalar]:
    """Read one ``key=value`` of the command line, the value typed by the key's own type.

    Quotes around a value are taken off (Flower's ``--run-config`` wants them), numbers and truth values are read
    as TOML and as Python write them (``.5``, ``True``), and underscores in a key are hyphens.

    Raises
    ------
    UserError
        If the ``=`` is missing, or the key is unknown.
    """
    written, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"-s {text!r} must have the form key=value")
    key = written.strip().replace("_", "-")
    field = RunConfig.model_fields.get(key.replace("-", "_"))
    if field is None:
        raise UserError(unknown_key(written.strip()))
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" and value[0] not in value[1:-1]:
        value = value[1:-1]
    if field.annotation is bool:
        return key, _BOOLEANS.get(value.lower(), value)  # of what is neither the validator names key, value and type
    is_number = field.annotation in (int, float) or any(isinstance(one, int) for one in get_args(field.annotation))
    return key, _number(value) if is_number else value


def _number(text: str) -> Scalar:
    """A number as TOML or Python has it, else the text as it is, which the validator refuses by key and value."""
    try:
        number = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        try:
            number = float(text)
        except ValueError:
            return text
    return number if isinstance(number, (int, float)) else text
