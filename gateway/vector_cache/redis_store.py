"""Vectors in a Redis that several gateways share. Dead, slow or talking nonsense, it costs a request one timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from gateway.vector_cache.metrics import VECTOR_CACHE_REDIS_ERRORS
from mesh.clock import Clock, monotonic
from mesh.errors import AttemptTimedOut, MeshError, Unavailable
from mesh.resilience import BreakerState, CircuitBreaker, Transition
from mesh.settings import SettingsError
from mesh.telemetry import BREAKER_STATE, BREAKER_TRANSITIONS, fields, get_logger

log = get_logger(__name__)

T = TypeVar("T")

NAME = "redis"
_PREFIX = b"mesh:vector:1:"
"""Before each key, which follows in hexadecimal: readable for whoever looks with redis-cli."""
_CONNECTIONS = 32
_FAILURES_IN_A_ROW = 3
_LONGEST_PAUSE_SECONDS = 30.0
_STATE_NUMBER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def connect(url: str) -> Any:
    """A client of Redis that connects at its first need and repeats nothing.

    Raises:
        SettingsError: the library is not installed, or it does not understand the URL.
    """
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise SettingsError(
            "VECTOR_CACHE_TYPE=redis needs the extra redis: pip install 'torch-isolation-mesh[gateway,redis]'."
        ) from error
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            # One clock bounds an operation as a whole: the store's.
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        # Its words may hold the password.
        raise SettingsError("REDIS_URL cannot be read; write redis://[user:password@]host:port/number.") from error
    return Redis.from_pool(pool)


class RedisStore:
    """Keeps values in Redis.

    Args:
        client: as `connect` makes it.
        timeout_seconds: for one operation, connecting included.
        ttl_seconds: how long a value is kept after it was put.
        clock: source of time, for the breaker.
    """

    def __init__(self, client: Any, *, timeout_seconds: float, ttl_seconds: int, clock: Clock = monotonic) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._ttl_seconds = ttl_seconds
        self.breaker = CircuitBreaker(_FAILURES_IN_A_ROW, _LONGEST_PAUSE_SECONDS, name=NAME, clock=clock)
        self.breaker.listener = _breaker_moved
        BREAKER_STATE.labels(NAME).set(0)

    async def get(self, keys: Sequence[bytes]) -> Sequence[object]:
        """See VectorStore."""
        found = await self._guarded("get", lambda: self._get(keys)) if keys else []
        return [None] * len(keys) if found is None else found

    async def put(self, values: Mapping[bytes, bytes]) -> None:
        """See VectorStore."""
        if values:
            await self._guarded("put", lambda: self._put(values))

    async def close(self) -> None:
        """See VectorStore."""
        with suppress(MeshError):
            await self._within_time(self._client.aclose())

    async def _get(self, keys: Sequence[bytes]) -> list[object]:
        found = await self._client.mget([_named(key) for key in keys])
        if not isinstance(found, list) or len(found) != len(keys):
            raise TypeError("MGET was answered with something else than one value per key")
        return found

    async def _put(self, values: Mapping[bytes, bytes]) -> bool:
        async with self._client.pipeline(transaction=False) as pipeline:
            for key, value in values.items():
                pipeline.set(_named(key), value, ex=self._ttl_seconds)
            await pipeline.execute()
        return True

    async def _guarded(self, operation: str, work: Callable[[], Awaitable[T]]) -> T | None:
        """The outcome of ``work``, or None where it failed, took too long, or is not worth trying now."""
        try:
            with self.breaker.guard():
                return await self._within_time(work())
        except MeshError as error:
            VECTOR_CACHE_REDIS_ERRORS.labels(operation, error.code).inc()
            return None

    async def _within_time(self, work: Awaitable[T]) -> T:
        """``work``, its failures in the breaker's words."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await work
        except TimeoutError as error:
            raise AttemptTimedOut("Redis took too long.", hop=NAME) from error
        except Exception as error:  # whatever Redis, its library or a stranger on its port does, the texts are computed
            log.debug("redis failed", exc_info=True)
            raise Unavailable("Redis failed.", hop=NAME, reason=type(error).__name__.upper()) from error


def _named(key: bytes) -> bytes:
    return _PREFIX + key.hex().encode()


def _breaker_moved(moved: Transition) -> None:
    BREAKER_STATE.labels(NAME).set(_STATE_NUMBER[moved.after])
    BREAKER_TRANSITIONS.labels(NAME, moved.after.value, moved.cause.value).inc()
    if moved.after is BreakerState.OPEN:
        log.warning("Redis is left alone for a moment; vectors are computed.", extra=fields(reason=moved.reason))
    elif moved.after is BreakerState.CLOSED:
        log.info("Redis answers again.")
