"""The development certificates of a mesh: what is in their folder, and when it is made anew."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ops.tls.issuing import Life, Pair, make_authority, make_certificate, read_authority, write_pair
from ops.tls.names import PROCESSES, CertificateFiles

AUTHORITY = "Torch Isolation Mesh, development authority"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 365.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What certificates are wanted.

    Attributes:
        days: how long each is valid.
        hosts: further names and addresses, in all of them.
        clients: further clients, each with a certificate of its name.
        fresh_authority: make a new authority, too: every older certificate then counts for nothing.
        keep_days: leave those alone that are valid for longer than this and carry the names; None renews all.
    """

    days: float = 30.0
    hosts: Sequence[str] = ()
    clients: Sequence[str] = ()
    fresh_authority: bool = False
    keep_days: float | None = None


def make_all(folder: Path, wanted: Wanted) -> list[str]:
    """Make what is wanted in ``folder``. Processes that use it take the new files by themselves.

    Returns the names of the certificates that were made; none where all could be kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    files = CertificateFiles(folder)
    authority = None if wanted.fresh_authority else read_authority(files.ca, files.ca_key)
    if authority is None or _days_left(authority.certificate) < wanted.days:
        authority = make_authority(AUTHORITY, Life.of_days(max(AUTHORITY_DAYS, wanted.days)))
        write_pair(authority, files.ca, files.ca_key)
    made = []
    for name in (*PROCESSES, *wanted.clients):
        names = (name, *LOCAL_NAMES, *wanted.hosts)
        if wanted.keep_days is not None and _is_good(files, name, names, authority, wanted.keep_days):
            continue
        pair = make_certificate(names, authority, Life.of_days(wanted.days))
        write_pair(pair, files.certificate(name), files.key(name))
        made.append(name)
    return made


def _is_good(files: CertificateFiles, name: str, names: Sequence[str], authority: Pair, days: float) -> bool:
    try:
        found = x509.load_pem_x509_certificate(files.certificate(name).read_bytes())
        found.verify_directly_issued_by(authority.certificate)
        carried = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # whatever is wrong with it, it is made anew
        return False
    return files.key(name).exists() and _days_left(found) > days and {str(each.value) for each in carried} >= set(names)


def _days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)) / datetime.timedelta(days=1)
