"""The three files of a process, read and checked together: what is taken from here works in a handshake."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mesh.tls.problems import CertificateProblem, Finding, TlsProblem

DAY_SECONDS = 86_400.0
MOST_BYTES = 4 * 1024 * 1024
"""Of one file. All the authorities that browsers trust take a tenth of it; more is some other file, and reading that
would hold the process up each time."""

UNREADABLE = (
    ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What is raised for content that makes no sense, or that is of a kind which is not supported."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the authorities, the certificate and its key are, each a PEM file."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Material:
    """What the files held when they fitted together.

    Attributes:
        ca: the authorities, PEM.
        certificate: the own certificate and those behind it, PEM.
        key: its private key, PEM.
        names: subject alternative names of the own certificate.
        not_before: from when it is valid, in Unix seconds.
        not_after: until when.
        ca_not_after: until when the longest-lived authority is valid.
        is_from_ca: whether one of the authorities, or a certificate behind the own one, signed it.
    """

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    names: tuple[str, ...]
    not_before: float
    not_after: float
    ca_not_after: float
    is_from_ca: bool


def read(files: TlsFiles, *, now: float) -> Material:
    """Read and check the files.

    Args:
        files: where they are.
        now: the time, in Unix seconds.

    Raises:
        CertificateProblem: a file is missing, unreadable or damaged, the key does not fit, the certificate names nobody
            or is not valid now, or all authorities have expired.
    """
    ca = _content(files.ca, "MESH_TLS_CA")
    certificate = _content(files.certificate, "MESH_TLS_CERTIFICATE")
    key = _content(files.key, "MESH_TLS_KEY")
    authorities = _certificates(ca, files.ca, "MESH_TLS_CA")
    own, *behind = _certificates(certificate, files.certificate, "MESH_TLS_CERTIFICATE")
    _require_fit(own, key, files)
    names = names_of(own)
    if not names:
        raise CertificateProblem(
            TlsProblem.NO_NAME,
            f"The certificate {files.certificate} has no subject alternative name, by which peers know it. Make one "
            "that has.",
        )
    material = Material(
        ca=ca,
        certificate=certificate,
        key=key,
        names=names,
        not_before=own.not_valid_before_utc.timestamp(),
        not_after=own.not_valid_after_utc.timestamp(),
        ca_not_after=max(each.not_valid_after_utc.timestamp() for each in authorities),
        is_from_ca=any(_signed(own, each) for each in (*authorities, *behind)),
    )
    if (finding := out_of_time(material, now)) is not None:
        raise CertificateProblem(finding.problem, f"{files.certificate}: {finding.message}")
    if material.ca_not_after <= now:
        raise CertificateProblem(
            TlsProblem.CA_EXPIRED,
            f"Every authority in {files.ca} has expired, the last one on {day(material.ca_not_after)}: no certificate "
            "can be trusted. Renew the authority.",
        )
    return material


def out_of_time(material: Material, now: float) -> Finding | None:
    """What is wrong with the own certificate's time; None where it is valid."""
    if now > material.not_after:
        message = f"This process's own certificate expired on {day(material.not_after)}. Renew it."
        return Finding(TlsProblem.OWN_EXPIRED, message)
    if now < material.not_before:
        message = f"This process's own certificate is valid from {day(material.not_before)} only. Check the clock."
        return Finding(TlsProblem.OWN_NOT_YET_VALID, message)
    return None


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names, addresses and URIs among a certificate's subject alternative names."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):  # none, or extensions that cannot be read
        return ()
    kinds = (x509.DNSName, x509.IPAddress, x509.UniformResourceIdentifier)
    return tuple(str(name.value) for name in found if isinstance(name, kinds))


def day(unix_seconds: float) -> str:
    """A moment as people write it.

    >>> day(0)
    '1970-01-01 00:00 UTC'
    """
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_seconds))


def _content(path: Path, setting: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise CertificateProblem(TlsProblem.FILE_MISSING, f"{setting} names {path}, which does not exist.") from None
    except OSError as error:
        raise CertificateProblem(
            TlsProblem.FILE_UNREADABLE,
            f"{setting} names {path}, which this user cannot read: {error.strerror}.",
        ) from None
    if len(content) > MOST_BYTES:
        raise CertificateProblem(
            TlsProblem.FILE_DAMAGED, f"{setting} names {path}, which is too large to be a PEM file of certificates."
        )
    return content


def _certificates(content: bytes, path: Path, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except UNREADABLE:
        raise CertificateProblem(
            TlsProblem.FILE_DAMAGED, f"{setting} names {path}, which holds no whole PEM certificate."
        ) from None


def _require_fit(own: x509.Certificate, key: bytes, files: TlsFiles) -> None:
    try:
        private = load_pem_private_key(key, password=None)
    except TypeError:
        raise CertificateProblem(
            TlsProblem.KEY_ENCRYPTED,
            f"MESH_TLS_KEY names {files.key}, which is locked by a password; nobody could type it at a restart. Store "
            "the key without one, readable by this user alone.",
        ) from None
    except ValueError:
        raise CertificateProblem(
            TlsProblem.FILE_DAMAGED, f"MESH_TLS_KEY names {files.key}, which holds no whole PEM private key."
        ) from None
    except UnsupportedAlgorithm:
        raise _of_no_use(files.key, "MESH_TLS_KEY") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    try:
        fits = private.public_key().public_bytes(*form) == own.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm):
        raise _of_no_use(files.certificate, "MESH_TLS_CERTIFICATE") from None
    if not fits:
        raise CertificateProblem(
            TlsProblem.KEY_MISMATCH,
            f"The key {files.key} does not fit the certificate {files.certificate}. Name the two that were made "
            "together.",
        )


def _of_no_use(path: Path, setting: str) -> CertificateProblem:
    return CertificateProblem(
        TlsProblem.FILE_DAMAGED,
        f"{setting} names {path}, whose kind of key is not supported. Make one with P-256 or RSA.",
    )


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
