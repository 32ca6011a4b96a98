"""Certificates and keys of a federation, all made by the `cryptography` library.

One certificate authority (CA) per federation signs one server certificate, which the SuperLink and the streams' port
show. Nodes prove who they are with a key pair each, as Flower wants it: elliptic curve P-384 in OpenSSH's format
(https://flower.ai/docs/framework/how-to-authenticate-supernodes.html).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sglr_flower.errors import UserError

VALID_DAYS = 3650
"""Ten years, as a device in the field is not visited to renew a certificate."""

_CLOCK_SKEW = timedelta(days=1)  # a device's clock may be behind the machine's that made the certificate


@dataclass(frozen=True)
class Identity:
    """A private key with what goes with it in public, both as they are written to files.

    Attributes
    ----------
    private : bytes
        The key: PEM (PKCS 8) of a certificate, OpenSSH's format of a node.
    public : bytes
        The certificate (PEM), or a node's public key in OpenSSH's format.
    """

    private: bytes
    public: bytes


def new_authority(name: str) -> Identity:
    """A certificate authority that signs for one federation and nothing else.

    Parameters
    ----------
    name : str
        The federation's.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} (SGLR federation CA)")])
    builder = _certificate(subject, subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return _signed(builder, key, key)


def new_server(authority: Identity, names: Sequence[str]) -> Identity:
    """A server's key and certificate, signed by the CA.

    Parameters
    ----------
    authority : Identity
        The CA.
    names : Sequence[str]
        Host names and IP addresses under which the server is reached; 127.0.0.1 and localhost are added, as the
        SuperLink's own processes reach it there.

    Raises
    ------
    UserError
        If a name can be in no certificate.
    """
    ca_key = serialization.load_pem_private_key(authority.private, password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    ca = x509.load_pem_x509_certificate(authority.public)
    key = ec.generate_private_key(ec.SECP384R1())
    wanted = dict.fromkeys([*names, "127.0.0.1", "localhost"])  # each once, in this order
    builder = _certificate(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]), ca.subject, key.public_key()
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([general_name(name) for name in wanted]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    return _signed(builder, key, ca_key)


def new_node() -> Identity:
    """A node's key pair, as `flower-supernode` and `flwr supernode register` read it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return Identity(private, public + b"\n")


def general_name(name: str) -> x509.GeneralName:
    """A host name or IP address as a certificate holds it.

    Raises
    ------
    UserError
        If it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.rstrip(".").split(".")
    if len(name) > 253 or not all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "").isalnum() for label in labels
    ):
        raise UserError(f"{name!r} is neither an IP address nor a host name of ASCII letters, digits, hyphens and dots")
    return x509.DNSName(name)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read, from its first byte on.

    Raises
    ------
    FileExistsError
        If it exists: a key is never overwritten.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def make_private_folder(path: Path) -> None:
    """Make a folder, and its missing parents, that its owner alone can enter; one that is there must be the owner's.

    Raises
    ------
    OSError
        If it cannot be made or is somebody else's.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _CLOCK_SKEW,
        not_valid_after=now + timedelta(days=VALID_DAYS),
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey
) -> Identity:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(private, builder.sign(by, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))
