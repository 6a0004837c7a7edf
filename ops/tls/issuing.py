"""Making an authority and the certificates that it signs. For development alone: others have an authority."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BACKDATED = datetime.timedelta(minutes=5)
"""Clocks of two machines differ by a little."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """As it is written to a file."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """As it is written to a file that nobody else reads."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True)
class Life:
    """From when until when a certificate is valid."""

    begins: datetime.datetime
    ends: datetime.datetime

    @classmethod
    def of_days(cls, days: float) -> Life:
        """From now on."""
        now = datetime.datetime.now(datetime.UTC)
        return cls(now - _BACKDATED, now + datetime.timedelta(days=days))


def make_authority(name: str, life: Life) -> Pair:
    """An authority that signs certificates of processes, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _begun(name, _name(name), key, life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def make_certificate(names: Sequence[str], authority: Pair, life: Life) -> Pair:
    """A certificate with which a process serves and calls.

    Args:
        names: DNS names, IP addresses and URIs; the first is the process's own.
        authority: signs it.
        life: ends no later than the authority's.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    life = Life(life.begins, min(life.ends, authority.certificate.not_valid_after_utc))
    issuer = authority.key.public_key()
    builder = (
        _begun(names[0], authority.certificate.subject, key, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def read_authority(certificate: Path, key: Path) -> Pair | None:
    """The authority in two files; None where there is none that can go on signing."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != found.public_key():
        return None
    return Pair(found, private)


def write_pair(pair: Pair, certificate: Path, key: Path) -> None:
    """Write both, the key first and for this user alone. Each file changes in one step."""
    _write(key, pair.key_pem, mode=0o600)
    _write(certificate, pair.certificate_pem, mode=0o644)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    # Never readable by others, not even while it is written.
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(mode)  # whatever the umask took away
    fresh.replace(path)


def _begun(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: Life) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(life.begins)
        .not_valid_after(life.ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
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
