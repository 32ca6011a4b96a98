"""Flower's own list of SuperLinks: the connections in ``config.toml`` of FLWR_HOME, by default ``~/.flwr``."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglr_flower.errors import UserError
from sglr_flower.federation import internals as flower
from sglr_flower.federation.folder import split_address

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


@dataclass(frozen=True)
class Connection:
    """How to reach a SuperLink.

    Attributes
    ----------
    name : str
        By which ``flwr run`` knows it.
    address : str
        HOST:PORT.
    root_certificates : str
        Absolute path of the CA's certificate; empty without TLS.
    """

    name: str
    address: str
    root_certificates: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the SuperLink's address is one of this machine's."""
        host, _ = split_address(self.address)
        try:
            found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return any(_is_own(family, place) for family, _, _, _, place in found)

    def entry(self) -> dict[str, str | bool]:
        """As in Flower's file."""
        if self.root_certificates:
            return {"address": self.address, "root-certificates": self.root_certificates}
        return {"address": self.address, "insecure": True}


def config_path() -> Path:
    """Flower's file of connections."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr").expanduser().absolute() / "config.toml"


def check_can_add(connection: Connection) -> None:
    """Find out whether `add` would work, before anything is made.

    Raises
    ------
    UserError
        If not.
    """
    _extended(connection)


def add(connection: Connection) -> Path:
    """Add a connection to Flower's file; everything in it stays as it is, comments too.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UserError
        If it has another connection of that name, or cannot be read or written.
    """
    path, text = config_path(), _extended(connection)
    if text:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path.resolve(), text)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path


def read(name: str) -> Connection:
    """A connection of Flower's file.

    Raises
    ------
    UserError
        If there is none of that name, or it is no SuperLink's address.
    """
    path = config_path()
    known = _connections(_parsed(path, _text(path)))
    entry = known.get(name)
    if entry is None:
        names = ", ".join(known) or "none"
        raise UserError(
            f"federation {name!r} is not among the connections in {path} ({names}): `sglr federation init` adds one"
        )
    address = str(entry.get("address", ""))
    split_address(address)
    return Connection(name, address, str(entry.get("root-certificates", "")))


def _extended(connection: Connection) -> str:
    """The file's whole text with the connection, empty where it is there already."""
    path, entry = config_path(), connection.entry()
    values = _parsed(path, _text(path) or flower.default_connections())
    if (present := _connections(values).get(connection.name)) is not None:
        if present == entry:
            return ""
        raise UserError(
            f"{path} has another SuperLink named {connection.name!r} ({present.get('address', 'no address')}): give "
            "another --name, or remove it there"
        )
    links = values.setdefault("superlink", {})
    if not isinstance(links, dict):
        raise UserError(f"{path} has superlink = {links!r}: it must be a table with a table for each SuperLink")
    links[connection.name] = entry
    return values.as_string()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _parsed(path: Path, text: str) -> TOMLDocument:
    import tomlkit  # a twelfth of a second, for runs on a federation alone

    try:
        return tomlkit.parse(text)
    except tomlkit.exceptions.TOMLKitError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _connections(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    links = values.get("superlink", {})
    return {name: entry for name, entry in links.items() if isinstance(entry, dict)} if isinstance(links, dict) else {}


def _is_own(family: int, place: Any) -> bool:
    """Whether an address can be bound, which those of other machines cannot."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((place[0], 0))
    except OSError:
        return False
    return True


def _replace(path: Path, text: str) -> None:
    """Write a file that is at any moment the old one or the new one."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.touch(mode=0o600)
    partial.write_text(text, encoding="utf-8")
    if path.exists():
        partial.chmod(path.stat().st_mode & 0o777)
    partial.replace(path)
