"""Vectors in a Redis that several gateways share. Dead, slow or talking nonsense, it costs a request one timeout."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from gateway.vector_cache.loop_lag import LoopLag
from gateway.vector_cache.metrics import VECTOR_CACHE_REDIS_ERRORS
from mesh.clock import Clock, monotonic
from mesh.errors import AttemptTimedOut, DeadlineExceeded, MeshError, Unavailable
from mesh.resilience import BreakerState, CircuitBreaker, Transition
from mesh.settings import SettingsError
from mesh.telemetry import BREAKER_STATE, BREAKER_TRANSITIONS, fields, get_logger

log = get_logger(__name__)

T = TypeVar("T")

NAME = "redis"
PUT_NAME = "redis_put"
_PREFIX = b"mesh:vector:1:"
"""Before each key, which follows in hexadecimal: readable for whoever looks with redis-cli."""
_SLICE = 128
"""Keys of one operation: about what fits into its time whatever a request holds, and what others wait for the loop."""
_LOST_SHARE = 0.25
"""From this share of an operation's time on that the event loop was held up, a timeout is not Redis's."""
_FAILURES_IN_A_ROW = 3
_LONGEST_PAUSE_SECONDS = 30.0
_STATE_NUMBER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


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
        self._timeout_seconds = timeout_seconds
        self._ttl_seconds = ttl_seconds
        self._lag = LoopLag(clock)
        self.breaker = _breaker(NAME, clock)
        self.put_breaker = _breaker(PUT_NAME, clock)

    async def get(self, keys: Sequence[bytes]) -> Sequence[object]:
        """See VectorStore. After a slice that failed the others are not waited for."""
        found: list[object] = []
        for part in _slices(keys):
            values = await self._guarded("get", self.breaker, partial(self._get, part))
            if values is None:
                break
            found += values
        return found + [None] * (len(keys) - len(found))

    async def put(self, values: Mapping[bytes, bytes]) -> None:
        """See VectorStore. Nobody waits for it, so that a slice that failed does not keep the others."""
        for part in _slices(list(values.items())):
            await self._guarded("put", self.put_breaker, partial(self._put, part))
            await asyncio.sleep(0)

    async def close(self) -> None:
        """See VectorStore."""
        with suppress(MeshError):
            await self._within_time(self._client.aclose())

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

    async def _guarded(self, operation: str, breaker: CircuitBreaker, work: Callable[[], Awaitable[T]]) -> T | None:
        """The outcome of ``work``, or None where it failed, took too long, or is not worth trying now."""
        try:
            with breaker.guard():
                return await self._within_time(work())
        except MeshError as error:
            VECTOR_CACHE_REDIS_ERRORS.labels(operation, error.reason).inc()
            return None

    async def _within_time(self, work: Awaitable[T]) -> T:
        """``work``, its failures in the breaker's words."""
        lost = self._lag.lost
        with self._lag.watched():
            try:
                async with asyncio.timeout(self._timeout_seconds) as limit:
                    return await work
            except Exception as error:  # whatever Redis, its library or a stranger on its port does
                if not (limit.expired() or isinstance(error, TimeoutError)):
                    log.debug("redis failed", exc_info=True)
                    raise Unavailable("Redis failed.", hop=NAME, reason=_reason(error)) from error
                if self._lag.lost - lost > self._timeout_seconds * _LOST_SHARE:
                    # Perhaps the answer has been there for long.
                    raise DeadlineExceeded("The event loop was held up.", hop=NAME, reason="LOOP_LATE") from error
                raise AttemptTimedOut("Redis took too long.", hop=NAME) from error


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + _SLICE] for start in range(0, len(items), _SLICE))


def _breaker(name: str, clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(_FAILURES_IN_A_ROW, _LONGEST_PAUSE_SECONDS, name=name, clock=clock)
    breaker.listener = partial(_breaker_moved, name)
    BREAKER_STATE.labels(name).set(0)
    return breaker


def _reason(error: BaseException) -> str:
    """The class's name as reasons are written: AUTHENTICATION_ERROR, OUT_OF_MEMORY_ERROR, CONNECTION_ERROR."""
    # What goes wrong while a socket connects, a wrong password too, comes wrapped into a ConnectionError.
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).upper()


def _named(key: bytes) -> bytes:
    return _PREFIX + key.hex().encode()


def _breaker_moved(name: str, moved: Transition) -> None:
    BREAKER_STATE.labels(name).set(_STATE_NUMBER[moved.after])
    BREAKER_TRANSITIONS.labels(name, moved.after.value, moved.cause.value).inc()
    said = fields(hop=name, reason=moved.reason)
    if moved.after is BreakerState.OPEN:
        log.warning("Redis is left alone for a moment; vectors are computed.", extra=said)
    elif moved.after is BreakerState.CLOSED:
        log.info("Redis answers again.", extra=said)
