"""The keys that are taken now: a file of hashes, read again when it changes."""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gateway.keys.book import KeyBookError, as_time, read
from gateway.keys.form import ID_PLACE, KEY_LENGTH, digest_of, id_of
from gateway.keys.metrics import KEYS_FILE_READABLE, KEYS_USABLE
from gateway.keys.records import KeyRecord, Limits
from mesh.errors import Unauthenticated
from mesh.telemetry import fields, get_logger

_LOG = get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the file is looked at; so long a revoked key may go on, and the time that reading takes."""
_NO_DIGEST = bytes(32)
_Mark = tuple[int, int, int]


class KeyRing:
    """Finds whose a key is.

    Args:
        path: the file.
        defaults: limits of keys that state none of their own.
        clock: seconds since 1970: keys expire by the calendar.

    Raises:
        KeyBookError: the file cannot be read, or holds no key.
    """

    def __init__(self, path: Path, defaults: Limits, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._defaults = defaults
        self._clock = clock
        self.problem = ""
        """Why the file as it is now is not followed; empty where it is."""
        self._mark, records = _read(path)
        if not records:
            raise KeyBookError(f"{path} holds no key. Make one: ./scripts/keys.sh add")
        self._records: Mapping[str, KeyRecord] = {}
        self._take(records)

    def __len__(self) -> int:
        """How many keys are usable now."""
        now = self._clock()
        return sum(record.usable(now) for record in self._records.values())

    def find(self, key: str) -> KeyRecord:
        """What is known of ``key``. Takes as long for an unknown secret as for a known one.

        Raises:
            Unauthenticated: it is none, not known, revoked or expired.
        """
        record = self._records.get(key[ID_PLACE]) if len(key) == KEY_LENGTH else None
        same = hmac.compare_digest(digest_of(key[:KEY_LENGTH]), record.digest if record else _NO_DIGEST)
        if record is None or not same:
            if id_of(key) is None:
                raise _refused("This is no key of a mesh: it begins with mesh_ and is not to be cut.")
            raise _refused("This key is not known here. Ask whoever runs the gateway for one.")
        # Only who holds the whole key learns what became of it.
        if record.revoked is not None:
            raise _refused("This key was revoked. Ask whoever runs the gateway for another one.")
        if not record.usable(self._clock()):
            raise _refused(f"This key expired at {as_time(record.expires)}. Ask for another one.")
        return record

    def is_good(self, key_id: str) -> bool:
        """Whether the key with this id would still be taken."""
        record = self._records.get(key_id)
        return record is not None and record.usable(self._clock())

    async def follow(self) -> None:
        """Follow the file, for ever. What cannot be read changes nothing: those keys are kept that were read last."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                # On a thread: a file may lie on a disk that answers late.
                await asyncio.to_thread(self.look)
            except Exception as error:  # such as no thread to be had; were it the end, revoked keys would go on
                self._complain(f"{self._path}: looking at it failed, {type(error).__name__}.", error)

    def look(self) -> None:
        """Read the file again where it is another one than before."""
        try:
            if _mark_of(self._path) == self._mark and not self.problem:
                return
            self._mark, records = _read(self._path)
        except (KeyBookError, OSError) as error:
            self._complain(str(error) if isinstance(error, KeyBookError) else f"{self._path}: {error.strerror}.")
            return
        self.problem = ""
        self._take(records)
        _LOG.info("the keys were read again", extra=fields(keys=len(records), usable=len(self)))

    def _take(self, records: Sequence[KeyRecord]) -> None:
        # Limits are settled here, once for all requests.
        self._records = {each.id: replace(each, limits=each.limits.or_else(self._defaults)) for each in records}
        KEYS_FILE_READABLE.set(1)
        KEYS_USABLE.set(len(self))

    def _complain(self, problem: str, unforeseen: Exception | None = None) -> None:
        if problem != self.problem:
            said = fields(reason=problem)
            _LOG.error("the keys cannot be read again; those known go on", extra=said, exc_info=unforeseen)
        self.problem = problem
        KEYS_FILE_READABLE.set(0)


def _read(path: Path) -> tuple[_Mark, tuple[KeyRecord, ...]]:
    try:
        # Before it is read: what is written meanwhile has another mark, and is read the next time.
        mark = _mark_of(path)
    except OSError:
        mark = (0, 0, 0)
    return mark, read(path)


def _mark_of(path: Path) -> _Mark:
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, reason="INVALID_API_KEY")
