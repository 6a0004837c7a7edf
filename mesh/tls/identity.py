"""A process's own certificate, as it is now: its files are looked at again and again, and taken when they fit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mesh.telemetry import fields, get_logger
from mesh.tls.certificates import DAY_SECONDS, Material, TlsFiles, day, out_of_time, read
from mesh.tls.metrics import CERTIFICATE_NOT_AFTER, FILES_REFUSED, RELOADS
from mesh.tls.problems import CertificateProblem, Finding

log = get_logger(__name__)

HALF_WRITTEN_SECONDS = 3.0
"""Files that do not fit for less than this are being written, one after the other."""
_REMIND_SECONDS = DAY_SECONDS

_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Watching:
    """How the files are watched.

    Attributes:
        warning_days: a certificate that ends within this many days is warned about.
        check_seconds: how often the files are looked at, at most.
        wall: the time in Unix seconds.
        clock: a monotonic one.
    """

    warning_days: float = 14.0
    check_seconds: float = 1.0
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic


class Identity:
    """A certificate with its key, and the authorities that are trusted. Safe to use from several threads.

    Args:
        files: where they are.
        watching: how they are watched.

    Attributes:
        material: what is used now.
        version: counts up whenever that changes.

    Raises:
        CertificateProblem: they cannot be used at all.
    """

    def __init__(self, files: TlsFiles, watching: Watching | None = None) -> None:
        self.files = files
        self._watching = watching or Watching()
        self._lock = threading.Lock()
        self._seen = self._signature()
        self.material: Material = read(files, now=self._watching.wall())
        self.version = 1
        self._next_check = self._watching.clock() + self._watching.check_seconds
        self._next_reminder = 0.0
        self._refused: Finding | None = None
        self._unfit_since: float | None = None
        self._is_told = False
        FILES_REFUSED.set(0)
        CERTIFICATE_NOT_AFTER.labels("certificate").set_function(lambda: self.material.not_after)
        CERTIFICATE_NOT_AFTER.labels("ca").set_function(lambda: self.material.ca_not_after)
        self._remind()

    def refresh(self) -> int:
        """Take new files where there are some that fit. Cheap, and safe to call often. Returns the version."""
        if self._watching.clock() >= self._next_check and self._lock.acquire(blocking=False):
            try:
                self._next_check = self._watching.clock() + self._watching.check_seconds
                self._check()
                self._remind()
            finally:
                self._lock.release()
        return self.version

    def finding(self) -> Finding | None:
        """What is wrong now: the certificate's time, or else new files that cannot be used."""
        return out_of_time(self.material, self._watching.wall()) or self._refused

    def status(self) -> dict[str, Any]:
        """For ``/status``: whose certificate, until when, and what is wrong."""
        material, finding = self.material, self.finding()
        return {
            "names": list(material.names),
            "not_after": day(material.not_after),
            "days_left": round(self._days_until(material.not_after), 1),
            "ca_days_left": round(self._days_until(material.ca_not_after), 1),
            "problem": finding.problem.value if finding else None,
            "reason": finding.message if finding else "",
        }

    def _check(self) -> None:
        signature = self._signature()
        if signature == self._seen and self._unfit_since is None:
            return
        try:
            fresh = read(self.files, now=self._watching.wall())
        except CertificateProblem as problem:
            self._unfit(signature, problem)
            return
        if self._signature() != signature:
            return  # written while they were read; the next look takes them
        self._seen, self._unfit_since, self._refused = signature, None, None
        FILES_REFUSED.set(0)
        if (fresh.ca, fresh.certificate, fresh.key) == (self.material.ca, self.material.certificate, self.material.key):
            return  # what was refused is as it was before
        self.material = fresh
        self.version += 1
        self._next_reminder = 0.0
        RELOADS.labels("taken").inc()
        log.info(
            "new certificate taken",
            extra=fields(certificate=self.files.certificate, until=day(fresh.not_after), names=", ".join(fresh.names)),
        )

    def _unfit(self, signature: _Signature, problem: CertificateProblem) -> None:
        """Go on with what was good, and say so once the files have been left like that."""
        now = self._watching.clock()
        if self._unfit_since is None or signature != self._seen:
            self._unfit_since, self._seen, self._is_told = now, signature, False
        elif not self._is_told and now - self._unfit_since >= HALF_WRITTEN_SECONDS:
            self._is_told = True
            self._refused = Finding(
                problem.problem,
                f"{problem} The certificate before it, valid until {day(self.material.not_after)}, is still used.",
            )
            FILES_REFUSED.set(1)
            RELOADS.labels("refused").inc()
            log.error(
                "new certificate files cannot be used",
                extra=fields(problem=problem.problem.value, reason=self._refused.message),
            )

    def _remind(self) -> None:
        """Say that an end is near, once a day."""
        now = self._watching.clock()
        if now < self._next_reminder:
            return
        material = self.material
        for what, end in (("certificate", material.not_after), ("ca", material.ca_not_after)):
            days = self._days_until(end)
            if days > self._watching.warning_days:
                continue
            self._next_reminder = now + _REMIND_SECONDS
            say, words = (log.warning, "expires soon") if days > 0 else (log.error, "has expired")
            path = self.files.certificate if what == "certificate" else self.files.ca
            say(f"a {what} {words}", extra=fields(file=path, until=day(end), days_left=round(days, 1)))

    def _days_until(self, end: float) -> float:
        return (end - self._watching.wall()) / DAY_SECONDS

    def _signature(self) -> _Signature:
        return tuple(_stamp(path) for path in (self.files.ca, self.files.certificate, self.files.key))


def _stamp(path: Any) -> tuple[int, int, int]:
    """Changes when the file does, also where a link in its path is turned to another file."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
