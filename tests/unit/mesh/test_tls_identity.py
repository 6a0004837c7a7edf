"""New files are taken when they fit together, and never before; what ends soon is told of."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mesh.tls.certificates import DAY_SECONDS, TlsFiles
from mesh.tls.identity import HALF_WRITTEN_SECONDS, Identity, Watching
from mesh.tls.problems import CertificateProblem, TlsProblem
from ops.tls.testing import PAST, Office


@dataclass
class Watched:
    """An identity whose time is the test's."""

    files: TlsFiles
    now: float = 1000.0
    identity: Identity = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = time.time() - self.now
        self.identity = Identity(self.files, Watching(wall=lambda: self.began + self.now, clock=lambda: self.now))

    def days_left(self, file: str) -> float:
        """By the time series, as an alert computes it."""
        ends = series("mesh_tls_certificate_not_after_timestamp_seconds", file=file)
        return (ends - self.began - self.now) / DAY_SECONDS

    def after(self, seconds: float) -> int:
        """The version some time later."""
        self.now += seconds
        return self.identity.refresh()


def series(name: str, **labels: str) -> float:
    """A time series' value."""
    value = REGISTRY.get_sample_value(name, labels)
    assert value is not None
    return value


def test_a_new_certificate_is_taken(tmp_path: Path) -> None:
    """Also where only the link to its folder was turned, as orchestrators do."""
    office = Office.open(tmp_path / "one")
    office.issue("me")
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "one")
    watched = Watched(TlsFiles(link / "ca.pem", link / "me.pem", link / "me.key"))
    before = watched.identity.material
    Office.open(tmp_path / "two").issue("me")
    fresh = tmp_path / "fresh"
    fresh.symlink_to(tmp_path / "two")
    fresh.replace(link)
    assert watched.after(2) == 2
    assert watched.identity.material.certificate == (tmp_path / "two" / "me.pem").read_bytes() != before.certificate


def test_the_files_are_looked_at_rarely(tmp_path: Path) -> None:
    """However often somebody asks; a file that was only touched is none that changed."""
    office = Office.open(tmp_path)
    watched = Watched(office.issue("me"))
    office.issue("me")
    assert watched.after(0.5) == 1
    assert watched.after(0.6) == 2
    os.utime(watched.files.key)
    assert watched.after(2) == 2


def test_a_rotation_that_is_half_written_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Between the new key and the new certificate the old pair is used, and nobody is woken up."""
    office = Office.open(tmp_path)
    files = office.issue("me")
    watched = Watched(files)
    old = watched.identity.material
    old_certificate = files.certificate.read_bytes()
    office.issue("me")
    new_certificate = files.certificate.read_bytes()
    files.certificate.write_bytes(old_certificate)
    with caplog.at_level(logging.WARNING):
        assert watched.after(1.5) == 1
        assert watched.after(HALF_WRITTEN_SECONDS - 0.1) == 1  # seen once more as it was
        files.certificate.write_bytes(new_certificate[: len(new_certificate) // 2])
        assert watched.after(1.5) == 1
        assert watched.identity.material is old
        assert watched.identity.finding() is None
        files.certificate.write_bytes(new_certificate)
        assert watched.after(1.5) == 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda office, files: files.key.unlink(), TlsProblem.FILE_MISSING),
        (lambda office, files: office.issue("me", days=PAST), TlsProblem.OWN_EXPIRED),
        (lambda office, files: files.key.write_bytes(office.issue("x").key.read_bytes()), TlsProblem.KEY_MISMATCH),
    ],
)
def test_files_that_stay_unusable_are_told_of_once_and_the_old_ones_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: object, problem: TlsProblem
) -> None:
    """A bad rotation costs nothing but a line in the log, until the old certificate ends."""
    assert callable(spoil)
    office = Office.open(tmp_path)
    files = office.issue("me")
    watched = Watched(files)
    old = watched.identity.material
    spoil(office, files)
    with caplog.at_level(logging.ERROR):
        for _ in range(8):
            assert watched.after(HALF_WRITTEN_SECONDS / 2) == 1
    assert watched.identity.material is old
    assert [record.message for record in caplog.records] == ["new certificate files cannot be used"]
    finding = watched.identity.finding()
    assert finding is not None
    assert finding.problem is problem
    assert watched.identity.status()["problem"] == problem
    assert "still used" in watched.identity.status()["reason"]
    assert series("mesh_tls_files_refused") == 1

    office.issue("me")
    assert watched.after(2) == 2
    assert watched.identity.finding() is None
    assert series("mesh_tls_files_refused") == 0


def test_what_was_spoilt_and_put_back_is_no_change(tmp_path: Path) -> None:
    """Connections are made anew for a new certificate only."""
    files = Office.open(tmp_path).issue("me")
    watched = Watched(files)
    key = files.key.read_bytes()
    files.key.unlink()
    assert watched.after(2) == 1
    files.key.write_bytes(key)
    assert watched.after(2) == 1


def test_an_end_that_is_near_is_warned_about_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """First as a warning, then, when it has come, as an error; the days left can be scraped."""
    watched = Watched(Office.open(tmp_path).issue("me", days=(-1.0, 15.0)))
    with caplog.at_level(logging.WARNING):
        watched.after(10)
        assert not caplog.records
        watched.after(2 * DAY_SECONDS)
        for _ in range(20):
            watched.after(600)
        assert [record.message for record in caplog.records] == ["a certificate expires soon"]
        assert 12 < watched.days_left("certificate") < 13
        assert 57 < watched.days_left("ca") < 58
        caplog.clear()
        watched.after(14 * DAY_SECONDS)
        assert [record.message for record in caplog.records] == ["a certificate has expired"]
    finding = watched.identity.finding()
    assert finding is not None
    assert finding.problem is TlsProblem.OWN_EXPIRED
    assert watched.days_left("certificate") < 0


def test_files_that_are_bad_from_the_start_stop_it(tmp_path: Path) -> None:
    """There is nothing to go on with."""
    with pytest.raises(CertificateProblem):
        Watched(Office.open(tmp_path).issue("me", days=PAST))
