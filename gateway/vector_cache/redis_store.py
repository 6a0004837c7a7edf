"""Vectors in a Redis that several gateways share. Dead, slow or talking nonsense, it costs a request one timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from gateway.guarded_redis import GuardedRedis
from gateway.vector_cache.metrics import VECTOR_CACHE_REDIS_ERRORS
from mesh.clock import Clock, monotonic
from mesh.errors import MeshError
from mesh.settings import SettingsError

T = TypeVar("T")

NAME = "redis"
PUT_NAME = "redis_put"
_PREFIX = b"mesh:vector:1:"
"""Before each key, which follows in hexadecimal: readable for whoever looks with redis-cli."""
_SLICE = 128
"""Keys of one operation: about what fits into its time whatever a request holds, and what others wait for the loop."""


def connect(url: str, *, timeout_seconds: float | None = None) -> Any:
    """A client of Redis that connects at its first need and repeats nothing.

    Args:
        url: where it is.
        timeout_seconds: of the operations, which wait half of it at most for a connection. That goes on to connect for
            those that come later, so that a Redis is reached from which an answer takes that long.

    Raises:
        SettingsError: the library is not installed, or does not understand the URL.
    """
    try:
        import redis.asyncio  # noqa: F401 - is it there? Who keeps nothing in Redis does not need it.
    except ImportError as error:
        raise SettingsError(
            "VECTOR_CACHE_TYPE=redis needs the extra redis: pip install 'torch-isolation-mesh[gateway,redis]'."
        ) from error
    from gateway.vector_cache import redis_client

    # Connecting takes longer than an answer: what connects in one half of the time gets its answer in the other.
    return redis_client.connect(url, wait_seconds=timeout_seconds and timeout_seconds / 2)


class RedisStore:
    """Keeps values in Redis. Reading and writing have a breaker each: a full Redis still answers what it has.

    Args:
        client: as `connect` makes it.
        timeout_seconds: for one operation on a slice of the keys. Connecting goes on after it.
        ttl_seconds: how long a value is kept after it was put.
        clock: source of time, for the breakers and for how late the event loop is.
    """

    def __init__(self, client: Any, *, timeout_seconds: float, ttl_seconds: int, clock: Clock = monotonic) -> None:
        self._client = client
        self._ttl_seconds = ttl_seconds
        self._guard = GuardedRedis(
            NAME,
            timeout_seconds=timeout_seconds,
            errors=VECTOR_CACHE_REDIS_ERRORS,
            meanwhile="vectors are computed",
            clock=clock,
        )
        self.breaker = self._guard.breaker(NAME)
        self.put_breaker = self._guard.breaker(PUT_NAME)

    async def get(self, keys: Sequence[bytes]) -> Sequence[object]:
        """See VectorStore. After a slice that failed the others are not waited for."""
        found: list[object] = []
        for part in _slices(keys):
            values = await self._guard.guarded("get", self.breaker, partial(self._get, part))
            if values is None:
                break
            found += values
        return found + [None] * (len(keys) - len(found))

    async def put(self, values: Mapping[bytes, bytes]) -> None:
        """See VectorStore. Nobody waits for it, so that a slice that failed does not keep the others."""
        for part in _slices(list(values.items())):
            await self._guard.guarded("put", self.put_breaker, partial(self._put, part))
            await asyncio.sleep(0)

    async def close(self) -> None:
        """See VectorStore."""
        with suppress(MeshError):
            await self._guard.within_time(self._client.aclose())

    async def _get(self, keys: Sequence[bytes]) -> list[object]:
        found = await self._client.mget([_named(key) for key in keys])
        if not isinstance(found, list) or len(found) != len(keys):
            raise TypeError("MGET was answered with something else than one value per key")
        return found

    async def _put(self, items: Sequence[tuple[bytes, bytes]]) -> bool:
        async with self._client.pipeline(transaction=False) as pipeline:
            for key, value in items:
                pipeline.set(_named(key), value, ex=self._ttl_seconds)
            await pipeline.execute()
        return True


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + _SLICE] for start in range(0, len(items), _SLICE))


def _named(key: bytes) -> bytes:
    return _PREFIX + key.hex().encode()
