"""Certificates that TLS libraries accept, keys that Flower reads, and files that nobody else can."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from sglr_flower.errors import UserError
from sglr_flower.federation import pki


@pytest.fixture(scope="module")
def authority() -> pki.Identity:
    return pki.new_authority("lab")


@pytest.fixture(scope="module")
def server(authority: pki.Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pki.new_server(authority, ["192.168.1.10", "lab.example.org"]).public)


def verify(authority: pki.Identity, certificate: x509.Certificate, name: str) -> None:
    """By the rules of RFC 5280 and the CA/B forum, as `cryptography` implements them."""
    store = Store([x509.load_pem_x509_certificate(authority.public)])
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    PolicyBuilder().store(store).build_server_verifier(subject).verify(certificate, [])


@pytest.mark.parametrize("name", ["192.168.1.10", "lab.example.org", "127.0.0.1", "localhost"])
def test_a_server_certificate_is_valid_for_each_of_its_names(
    authority: pki.Identity, server: x509.Certificate, name: str
) -> None:
    verify(authority, server, name)


def test_it_is_not_valid_for_another_name_or_under_another_authority(
    authority: pki.Identity, server: x509.Certificate
) -> None:
    with pytest.raises(VerificationError):
        verify(authority, server, "192.168.1.11")
    with pytest.raises(VerificationError):
        verify(pki.new_authority("lab"), server, "192.168.1.10")


def test_a_node_key_is_what_flower_reads() -> None:
    node = pki.new_node()
    private = load_ssh_private_key(node.private, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == load_ssh_public_key(node.public)


@pytest.mark.parametrize("name", ["", "two words", "a_b", "ü.example", "a..b", "x" * 64, "*", "1.2.3.4/8"])
def test_what_is_no_name_of_a_machine_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="neither an IP address nor a host name"):
        pki.general_name(name)


def test_a_private_file_is_its_owners_and_never_overwritten(tmp_path: Path) -> None:
    pki.write_private(tmp_path / "key", b"one")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        pki.write_private(tmp_path / "key", b"two")
    assert (tmp_path / "key").read_bytes() == b"one"
