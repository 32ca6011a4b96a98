"""The folders of a federation: the server's own, and one per node to carry to its device.

::

    DIR/federation.toml     name, addresses, ports (`Federation`)
    DIR/ca.crt ca.key       the certificate authority; the key never has to leave this machine
    DIR/server.crt server.key
    DIR/superexec.secret    what lets the SuperLink's own helper, and nobody else, start a run's ServerApp
    DIR/keys/NAME.pub       the nodes that may connect
    DIR/nodes/NAME/         to carry to a device: node.toml (`NodeSettings`), ca.crt, node.key
    DIR/superlink/          Flower's home of the SuperLink: its database, and a connection of its own
    DIR/logs/
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglr_flower.errors import UserError
from sglr_flower.exchange.endpoint import Endpoint, join_address
from sglr_flower.federation import pki

VARIABLE = "SGLR_FEDERATION"
"""Environment variable of the SuperLink's processes that names the federation's folder."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class _Settings(BaseModel):
    """Settings in a flat TOML file whose keys are written with hyphens."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises
        ------
        UserError
            If it is missing or damaged; the sentence names file and key.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{path} is damaged: {first['loc'][0]} = {first['input']!r}: {first['msg']}") from None

    def write(self, path: Path) -> None:
        """Write a new file."""
        with path.open("x", encoding="utf-8") as file:
            file.write(tomli_w.dumps(self.model_dump(by_alias=True)))


class Federation(_Settings):
    """What the server's side of a federation is, as in ``federation.toml``."""

    name: str
    host: str  # under which nodes reach the server
    bind: str  # the server's own address to listen on, such as 0.0.0.0
    port: int = Field(ge=1, le=65535)
    stream_port: int = Field(ge=0, le=65535)  # 0: any free one
    insecure: bool = False
    operators: list[str] = []  # networks that may start and stop runs besides the server's own machine

    @property
    def address(self) -> str:
        """HOST:PORT that nodes and operators connect to."""
        return join_address(self.host, self.port)

    @property
    def local_address(self) -> str:
        """HOST:PORT under which the server's own machine reaches it."""
        return join_address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind, self.bind), self.port)


class NodeSettings(_Settings):
    """What a node is, as in its ``node.toml``; folders may be relative to that file's, empty ones have defaults."""

    name: str
    superlink: str
    partition_id: int = Field(ge=0)
    num_partitions: int = Field(ge=1)
    data_dir: str = ""
    state_dir: str = ""
    insecure: bool = False


def ready_mark(directory: Path) -> Path:
    """The file of a federation's folder that is there while its SuperLink is up and knows the keys of all nodes."""
    return directory / "superlink" / "ready"


def node_names() -> tuple[str, ...]:
    """The names of the nodes of the federation whose SuperLink started this process; empty without one."""
    if not (folder := os.environ.get(VARIABLE)):
        return ()
    # A node's folder is carried away, its public key stays; without authentication there is none.
    found = [path.stem for path in Path(folder).glob("keys/*.pub")] or [p.name for p in Path(folder).glob("nodes/*")]
    return tuple(sorted(name for name in found if _NAME.fullmatch(name)))


def create(federation: Federation, directory: Path, nodes: Sequence[str], names: Sequence[str] = ()) -> None:
    """Make a federation's folder: whole, or not at all.

    Parameters
    ----------
    federation : Federation
        What it is.
    directory : Path
        Where; it must not exist, or be empty.
    nodes : Sequence[str]
        The nodes' names, in the order of their partitions; at least one.
    names : Sequence[str]
        Further host names and IP addresses under which the server is reached.

    Raises
    ------
    UserError
        If a name cannot be used, or the folder holds something.
    """
    check_name("--name", federation.name)
    for node in nodes:
        check_name("--node", node)
    if twice := [node for number, node in enumerate(nodes) if node in nodes[:number]]:
        raise UserError(f"--node {twice[0]}: every node needs a name of its own")
    for network in federation.operators:
        _check_network(network)
    pki.general_name(federation.host)
    if federation.host in ("0.0.0.0", "::"):
        raise UserError(f"--host {federation.host}: nodes need an address that leads to the server")
    if federation.port == federation.stream_port:
        raise UserError(f"--stream-port {federation.stream_port}: it must differ from --port")
    directory = directory.absolute()
    check_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        _fill(federation, partial, nodes, names)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(directory: Path) -> None:
    """Find out whether a federation can be made in a folder.

    Raises
    ------
    UserError
        If it holds something.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        what = "holds a federation already" if (directory / "federation.toml").exists() else "is not empty"
        raise UserError(f"{directory} {what}: give a new folder")


def add_node(directory: Path, name: str) -> Path:
    """Make keys and a folder for one more node.

    Returns
    -------
    Path
        The folder to carry to the device.

    Raises
    ------
    UserError
        If there is no federation, or it has a node of that name.
    """
    check_name("NAME", name)
    federation = Federation.read(directory / "federation.toml")
    folder = directory / "nodes" / name
    if folder.exists() or (directory / "keys" / f"{name}.pub").exists():
        raise UserError(f"the federation in {directory} has a node {name!r} already: give another name")
    taken = [NodeSettings.read(path).partition_id for path in directory.glob("nodes/*/node.toml")]
    # A folder that was carried away and removed here has left its public key.
    number = max([len(list((directory / "keys").glob("*.pub"))), *(partition + 1 for partition in taken)])
    _make_node(federation, directory, name, number, number + 1)
    return folder


def stream_endpoint() -> Endpoint:
    """Where a run's streams are to be opened: as the federation says whose SuperLink started this process.

    Without a federation (a simulation, or a SuperLink of the user's own) it is the loopback address.

    Raises
    ------
    UserError
        If the federation's folder cannot be read.
    """
    if not (folder := os.environ.get(VARIABLE)):
        return Endpoint()
    directory = Path(folder)
    federation = Federation.read(directory / "federation.toml")
    place = Endpoint(host=federation.bind, port=federation.stream_port, advertise=federation.host)
    if federation.insecure:
        return Endpoint(host=place.host, port=place.port, advertise=place.advertise, allow_plaintext=True)
    try:
        certificate, key = (directory / "server.crt").read_bytes(), (directory / "server.key").read_bytes()
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    return Endpoint(host=place.host, port=place.port, advertise=place.advertise, certificate=certificate, key=key)


def check_name(option: str, name: str) -> None:
    """Refuse a name that cannot be a folder's, a file's and a TOML key's.

    Raises
    ------
    UserError
        If so.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{option} {name!r}: a name has 1 to 63 letters, digits, hyphens and underscores")


def split_address(address: str) -> tuple[str, int]:
    """The host, without brackets, and the port of HOST:PORT.

    Raises
    ------
    UserError
        If it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"address {address!r} must have the form HOST:PORT, the port from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def default_bind(host: str) -> str:
    """The address to listen on for a server that is reached as `host`: this machine alone, or all its networks."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "0.0.0.0"
    if address.is_loopback:
        return host
    return "::" if address.version == 6 else "0.0.0.0"


def _check_network(network: str) -> None:
    try:
        ipaddress.ip_network(network)
    except ValueError as error:
        raise UserError(f"--operator {network!r}: it must be an IP address or network: {error}") from None


def _fill(federation: Federation, directory: Path, nodes: Sequence[str], names: Sequence[str]) -> None:
    pki.make_private_folder(directory)
    for folder in ("keys", "nodes", "superlink", "logs"):
        pki.make_private_folder(directory / folder)
    federation.write(directory / "federation.toml")
    pki.write_private(directory / "superexec.secret", secrets.token_hex(32).encode())
    if not federation.insecure:
        authority = pki.new_authority(federation.name)
        unspecified = federation.bind in ("0.0.0.0", "::")
        bound = ["::1"] if federation.bind == "::" else [] if unspecified else [federation.bind]
        server = pki.new_server(authority, [federation.host, *names, *bound])
        for stem, identity in (("ca", authority), ("server", server)):
            pki.write_private(directory / f"{stem}.key", identity.private)
            (directory / f"{stem}.crt").write_bytes(identity.public)
    for number, node in enumerate(nodes):
        _make_node(federation, directory, node, number, len(nodes))


def _make_node(federation: Federation, directory: Path, name: str, number: int, count: int) -> None:
    partial = directory / "nodes" / f".{name}.{secrets.token_hex(4)}"
    pki.make_private_folder(partial)
    settings = NodeSettings(
        name=name,
        superlink=federation.address,
        partition_id=number,
        num_partitions=count,
        insecure=federation.insecure,
    )
    settings.write(partial / "node.toml")
    if not federation.insecure:
        identity = pki.new_node()
        pki.write_private(partial / "node.key", identity.private)
        shutil.copyfile(directory / "ca.crt", partial / "ca.crt")
        # Last, as it is what lets the node in.
        partial.rename(directory / "nodes" / name)
        public = directory / "keys" / f".{name}.partial"
        public.write_bytes(identity.public)
        public.rename(directory / "keys" / f"{name}.pub")  # whole, or not there: a running SuperLink looks
    else:
        partial.rename(directory / "nodes" / name)
