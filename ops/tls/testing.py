"""Certificates for tests: good ones, and each way to be wrong."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.tls.certificates import TlsFiles
from ops.tls.issuing import Life, Pair, make_authority, make_certificate, write_pair

GOOD = (-1.0, 30.0)
PAST = (-3.0, -1.0)
FUTURE = (1.0, 3.0)
"""From when until when, in days from now."""


def life(days: tuple[float, float]) -> Life:
    """A life from one number of days from now to another."""
    now = datetime.datetime.now(datetime.UTC)
    return Life(*(now + datetime.timedelta(days=each) for each in days))


@dataclass(frozen=True)
class Office:
    """An authority whose certificates lie in one folder."""

    folder: Path
    authority: Pair

    @classmethod
    def open(cls, folder: Path, name: str = "test authority", days: tuple[float, float] = (-10.0, 60.0)) -> Office:
        """A new one."""
        folder.mkdir(parents=True, exist_ok=True)
        office = cls(folder, make_authority(name, life(days)))
        write_pair(office.authority, office.ca, folder / "ca.key")
        return office

    @property
    def ca(self) -> Path:
        """Its own certificate."""
        return self.folder / "ca.pem"

    def issue(
        self, name: str, *, also: Sequence[str] = ("localhost", "127.0.0.1"), days: tuple[float, float] = GOOD
    ) -> TlsFiles:
        """A certificate by that name, or a new one in its place."""
        files = TlsFiles(self.ca, self.folder / f"{name}.pem", self.folder / f"{name}.key")
        write_pair(make_certificate([name, *also], self.authority, life(days)), files.certificate, files.key)
        return files
