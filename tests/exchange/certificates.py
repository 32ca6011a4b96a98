"""Certificate authorities and server certificates for tests, made with the cryptography library."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SAN = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """A CA with one server certificate; all PEM."""

    root: bytes
    certificate: bytes
    key: bytes


def authority(address: str = SAN) -> Authority:
    """A new CA and a certificate of it for an IP address."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of a test")])
    root = _builder(name, name, ca_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server of a test")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = _builder(server, name, key.public_key()).add_extension(names, critical=False)
    return Authority(
        root.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        certificate.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), now - day, now + day)
