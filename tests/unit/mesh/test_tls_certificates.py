"""Files that cannot be used are refused at the start, each by its own name and with its path."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from mesh.tls.certificates import MOST_BYTES, TlsFiles, read
from mesh.tls.problems import CertificateProblem, TlsProblem
from ops.tls.testing import FUTURE, PAST, Office


def other_key(office: Office, files: TlsFiles) -> TlsFiles:
    """The key of another certificate."""
    return replace(files, key=office.issue("other").key)


def locked_key(office: Office, files: TlsFiles) -> TlsFiles:
    """The right key, behind a password."""
    key = load_pem_private_key(files.key.read_bytes(), password=None)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    return files


def half(which: str) -> Callable[[Office, TlsFiles], TlsFiles]:
    """A file of which only the first half has been written."""

    def spoil(office: Office, files: TlsFiles) -> TlsFiles:
        path: Path = getattr(files, which)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return files

    return spoil


def of_rare_kind(which: str) -> Callable[[Office, TlsFiles], TlsFiles]:
    """A file whose key is on a curve that OpenSSL and gRPC may know and cryptography does not: prime239v1."""
    p256, prime239v1 = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030104")

    def spoil(office: Office, files: TlsFiles) -> TlsFiles:
        path: Path = getattr(files, which)
        first, *lines, last = path.read_bytes().splitlines()
        content = base64.b64decode(b"".join(lines))
        assert p256 in content
        path.write_bytes(b"\n".join((first, base64.b64encode(content.replace(p256, prime239v1)), last)))
        return files

    return spoil


def oversized(which: str) -> Callable[[Office, TlsFiles], TlsFiles]:
    """A good file with more behind it than anybody's certificates take."""

    def spoil(office: Office, files: TlsFiles) -> TlsFiles:
        with getattr(files, which).open("ab") as file:
            file.truncate(MOST_BYTES + 1)
        return files

    return spoil


def going_round(office: Office, files: TlsFiles) -> TlsFiles:
    """A link to itself."""
    files.ca.unlink()
    files.ca.symlink_to(files.ca.name)
    return files


def missing(which: str) -> Callable[[Office, TlsFiles], TlsFiles]:
    """A file that is not there."""

    def spoil(office: Office, files: TlsFiles) -> TlsFiles:
        getattr(files, which).unlink()
        return files

    return spoil


def nameless(office: Office, files: TlsFiles) -> TlsFiles:
    """A certificate with a common name alone."""
    key = load_pem_private_key(files.key.read_bytes(), password=None)
    found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    builder = x509.CertificateBuilder(
        issuer_name=found.issuer,
        subject_name=found.subject,
        public_key=found.public_key(),
        serial_number=found.serial_number,
        not_valid_before=found.not_valid_before_utc,
        not_valid_after=found.not_valid_after_utc,
    )
    assert key.public_key() == found.public_key()
    files.certificate.write_bytes(builder.sign(office.authority.key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return files


def ended_authority(office: Office, files: TlsFiles) -> TlsFiles:
    """Authorities that have all ended."""
    return replace(files, ca=Office.open(office.folder / "ended", days=(-9.0, -1.0)).ca)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (missing("ca"), TlsProblem.FILE_MISSING),
        (missing("certificate"), TlsProblem.FILE_MISSING),
        (missing("key"), TlsProblem.FILE_MISSING),
        (lambda _, files: replace(files, key=files.key.parent), TlsProblem.FILE_UNREADABLE),
        (half("ca"), TlsProblem.FILE_DAMAGED),
        (half("certificate"), TlsProblem.FILE_DAMAGED),
        (half("key"), TlsProblem.FILE_DAMAGED),
        (lambda _, files: replace(files, key=files.certificate), TlsProblem.FILE_DAMAGED),
        (of_rare_kind("certificate"), TlsProblem.FILE_DAMAGED),
        (of_rare_kind("key"), TlsProblem.FILE_DAMAGED),
        (oversized("ca"), TlsProblem.FILE_DAMAGED),
        (oversized("key"), TlsProblem.FILE_DAMAGED),
        (going_round, TlsProblem.FILE_UNREADABLE),
        (lambda _, files: replace(files, certificate=files.key), TlsProblem.FILE_DAMAGED),
        (locked_key, TlsProblem.KEY_ENCRYPTED),
        (other_key, TlsProblem.KEY_MISMATCH),
        (nameless, TlsProblem.NO_NAME),
        (lambda office, _: office.issue("me", days=PAST), TlsProblem.OWN_EXPIRED),
        (lambda office, _: office.issue("me", days=FUTURE), TlsProblem.OWN_NOT_YET_VALID),
        (ended_authority, TlsProblem.CA_EXPIRED),
    ],
)
def test_files_that_cannot_be_used_are_named_with_the_reason(
    tmp_path: Path, spoil: Callable[[Office, TlsFiles], TlsFiles], problem: TlsProblem
) -> None:
    """Nobody has to find out by a connection that fails."""
    office = Office.open(tmp_path)
    files = spoil(office, office.issue("me"))
    with pytest.raises(CertificateProblem) as caught:
        read(files, now=time.time())
    assert caught.value.problem is problem
    assert str(tmp_path) in str(caught.value)
    assert "PRIVATE KEY" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_of_another_user_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    """What to do about it is another thing."""
    files = Office.open(tmp_path).issue("me")
    files.key.chmod(0)
    with pytest.raises(CertificateProblem, match="cannot read") as caught:
        read(files, now=time.time())
    assert caught.value.problem is TlsProblem.FILE_UNREADABLE


def test_good_files_say_whose_they_are_and_until_when(tmp_path: Path) -> None:
    """The names that peers go by, addresses among them, and the days that are left."""
    material = read(Office.open(tmp_path).issue("me"), now=time.time())
    assert material.names == ("me", "localhost", "127.0.0.1")
    assert 29 < (material.not_after - time.time()) / 86400 <= 30
    assert 59 < (material.ca_not_after - time.time()) / 86400 <= 60
    assert material.is_from_ca
    assert b"PRIVATE" not in repr(material).encode()


def test_an_authority_that_ended_beside_a_good_one_does_no_harm(tmp_path: Path) -> None:
    """While authorities are changed, the file holds both."""
    office = Office.open(tmp_path)
    ended = Office.open(tmp_path / "ended", days=(-9.0, -1.0))
    files = office.issue("me")
    office.ca.write_bytes(ended.ca.read_bytes() + office.ca.read_bytes())
    assert read(files, now=time.time()).is_from_ca


def test_an_authority_of_a_rare_kind_beside_a_good_one_does_no_harm(tmp_path: Path) -> None:
    """Whether it signed the certificate cannot be said; the process starts all the same."""
    office = Office.open(tmp_path)
    files = office.issue("me")
    good = office.ca.read_bytes()
    of_rare_kind("ca")(office, files)
    office.ca.write_bytes(office.ca.read_bytes() + b"\n" + good)
    assert read(files, now=time.time()).is_from_ca


def test_a_certificate_of_an_unknown_authority_is_good_and_known_to_be_strange(tmp_path: Path) -> None:
    """Those who trust it may be others than those whom it trusts."""
    files = replace(Office.open(tmp_path / "a").issue("me"), ca=Office.open(tmp_path / "b").ca)
    assert not read(files, now=time.time()).is_from_ca
