"""Where vectors are kept. A store never fails a request: what it cannot give is missing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.vector_cache.metrics import VECTOR_CACHE_BYTES, VECTOR_CACHE_ENTRIES, VECTOR_CACHE_EVICTIONS
from mesh.clock import Clock, monotonic

OVERHEAD_BYTES = 400
"""What Python takes for one entry beside its value: the key, a pair, a time, a place in the order. Mostly less than
340; the rest is for the moments in which the dictionary grows and is there twice."""


class VectorStore(Protocol):
    """Keeps bytes by key for a while."""

    async def get(self, keys: Sequence[bytes]) -> Sequence[object]:
        """One value per key, None where there is none. Not trusted: see `entries.unpack`. Raises nothing."""

    async def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep them, if possible. Raises nothing."""

    async def close(self) -> None:
        """Let go of connections."""


class MemoryStore:
    """Keeps values in this process, the latest used ones up to a number of bytes.

    Args:
        max_bytes: for all entries, Python's own overhead included.
        ttl_seconds: how long a value is kept after it was put.
        clock: source of time.
    """

    def __init__(self, *, max_bytes: int, ttl_seconds: float, clock: Clock = monotonic) -> None:
        self._max_bytes = max_bytes
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """What the entries take."""
        return self._bytes

    async def get(self, keys: Sequence[bytes]) -> Sequence[object]:
        """See VectorStore."""
        now, before = self._clock(), len(self._entries)
        found = [self._one(key, now) for key in keys]
        if len(self._entries) != before:
            self._show()
        return found

    def _one(self, key: bytes, now: float) -> bytes | None:
        found = self._entries.get(key)
        if found is None:
            return None
        ends, value = found
        if ends <= now:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, values: Mapping[bytes, bytes]) -> None:
        """See VectorStore. A value that is larger than everything may be is not kept."""
        ends = self._clock() + self._ttl_seconds
        for key, value in values.items():
            self._drop(key)
            if _cost(value) > self._max_bytes:
                continue
            while self._bytes + _cost(value) > self._max_bytes:
                self._drop(next(iter(self._entries)))
                VECTOR_CACHE_EVICTIONS.inc()
            self._entries[key] = (ends, value)
            self._bytes += _cost(value)
        self._show()

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._bytes -= _cost(found[1])

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0
        self._show()

    def _show(self) -> None:
        VECTOR_CACHE_BYTES.set(self._bytes)
        VECTOR_CACHE_ENTRIES.set(len(self._entries))


def _cost(value: bytes) -> int:
    return len(value) + OVERHEAD_BYTES
