"""Where the server's port for streams is bound, what nodes are told, and which addresses may do without TLS."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from sglr_flower.errors import UserError


@dataclass(frozen=True)
class Endpoint:
    """The server's port for streams.

    Attributes
    ----------
    host : str
        To bind: an IP address, or ``localhost``.
    port : int
        To bind; 0: any free one.
    advertise : str
        ``host`` or ``host:port`` that nodes are told, an IPv6 address with a port in brackets; empty: ``host`` and the
        port bound.
    certificate, key : bytes | None
        PEM, both or none. With them the port speaks TLS.
    allow_plaintext : bool
        Without them, whether the port may be reachable from other machines.
    """

    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    allow_plaintext: bool = False

    @property
    def tls(self) -> bool:
        """Whether it has a certificate."""
        return self.certificate is not None

    def check(self) -> None:
        """Refuse what cannot work or is not safe.

        Raises
        ------
        UserError
            If only one of certificate and key is there, if plaintext would be reachable from other machines without
            ``allow_plaintext``, or if nodes would be told an address that is none.
        """
        if (self.certificate is None) != (self.key is None):
            there, missing = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise UserError(f"the stream's endpoint on {self.host} has a {there} but no {missing}: TLS needs both")
        if not self.tls and not is_loopback(self.host) and not self.allow_plaintext:
            raise UserError(
                f"the stream's address {self.host} can be reached from other machines: it needs a certificate and a "
                "key, or allow-plaintext where the network itself is trusted"
            )
        if not self.advertise and self.host in ("0.0.0.0", "::", ""):
            raise UserError(
                f"the stream's address {self.host!r} is all of this machine's: advertise must say which one"
            )

    def address(self, port: int) -> str:
        """What nodes are told, given the port bound."""
        told = self.advertise or self.host
        host, given = split_address(told)
        return told if given else join_address(host, port)


def join_address(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, str]:
    """Host without brackets and port of ``host``, ``host:port``, ``[ipv6]:port`` or ``ipv6``; no port is empty."""
    host, colon, port = address.rpartition(":")
    bare = not colon or (":" in host and not host.endswith("]")) or address.endswith("]")
    return (address.strip("[]"), "") if bare else (host.strip("[]"), port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: a loopback address, or ``localhost``; names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_plaintext(address: str, allowed: bool) -> None:
    """Refuse, on a node that has no CA certificate, to send smashed data in plaintext over a network.

    Parameters
    ----------
    address : str
        ``host:port`` of the server's port for streams.
    allowed : bool
        The node-config's ``allow-plaintext``.

    Raises
    ------
    UserError
        If the address is not loopback and plaintext is not allowed.
    """
    host, port = split_address(address)
    if not allowed and not (is_loopback(host) and port.isdecimal()):
        raise UserError(
            f"the server's stream at {address} is not on this machine and this node has no CA certificate: set "
            "root-certificates in the node-config, or allow-plaintext=true where the network itself is trusted"
        )
