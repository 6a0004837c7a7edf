"""Asks a Redis for what is not worth a wait: within a bounded time, behind a breaker, and without raising."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from prometheus_client import Counter

from gateway.vector_cache.loop_lag import LoopLag
from mesh.breaker_series import announce_breaker, breaker_moved
from mesh.clock import Clock, monotonic
from mesh.errors import AttemptTimedOut, DeadlineExceeded, MeshError, Unavailable
from mesh.resilience import BreakerState, CircuitBreaker, Transition
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

T = TypeVar("T")

_LOST_SHARE = 0.25
"""From this share of an operation's time on that the event loop was held up, a timeout is not Redis's."""
_FAILURES_IN_A_ROW = 3
_LONGEST_PAUSE_SECONDS = 30.0


class GuardedRedis:
    """Bounds what is asked of a Redis for one purpose.

    Args:
        name: the hop's name in errors.
        timeout_seconds: for one operation.
        errors: counts failures by operation and reason.
        meanwhile: what is done while Redis is left alone, for the log.
        clock: source of time, for the breakers and for how late the event loop is.
    """

    def __init__(
        self, name: str, *, timeout_seconds: float, errors: Counter, meanwhile: str, clock: Clock = monotonic
    ) -> None:
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._errors = errors
        self._meanwhile = meanwhile
        self._clock = clock
        self._lag = LoopLag(clock)

    def breaker(self, name: str) -> CircuitBreaker:
        """A breaker of the class that hops have, told of in metrics and in the log as ``name``."""
        breaker = CircuitBreaker(_FAILURES_IN_A_ROW, _LONGEST_PAUSE_SECONDS, name=name, clock=self._clock)
        breaker.listener = partial(self._breaker_moved, name)
        announce_breaker(breaker)
        return breaker

    async def guarded(self, operation: str, breaker: CircuitBreaker, work: Callable[[], Awaitable[T]]) -> T | None:
        """The outcome of ``work``, or None where it failed, took too long, or is not worth trying now."""
        try:
            with breaker.guard():
                return await self.within_time(work())
        except MeshError as error:
            self._errors.labels(operation, error.reason).inc()
            return None

    async def within_time(self, work: Awaitable[T]) -> T:
        """``work``, its failures in the breaker's words."""
        lost = self._lag.lost
        with self._lag.watched():
            try:
                async with asyncio.timeout(self._timeout_seconds) as limit:
                    return await work
            except Exception as error:  # whatever Redis, its library or a stranger on its port does
                if not (limit.expired() or isinstance(error, TimeoutError)):
                    log.debug("redis failed", exc_info=True)
                    raise Unavailable("Redis failed.", hop=self._name, reason=_reason(error)) from error
                if self._lag.lost - lost > self._timeout_seconds * _LOST_SHARE:
                    # Perhaps the answer has been there for long.
                    raise DeadlineExceeded("The event loop was held up.", hop=self._name, reason="LOOP_LATE") from error
                raise AttemptTimedOut("Redis took too long.", hop=self._name) from error

    def _breaker_moved(self, name: str, moved: Transition) -> None:
        breaker_moved(name, moved)
        if moved.after is BreakerState.OPEN:
            log.warning(f"Redis is left alone for a moment; {self._meanwhile}.", extra=fields(hop=name))
        elif moved.after is BreakerState.CLOSED:
            log.info("Redis answers again.", extra=fields(hop=name))


def _reason(error: BaseException) -> str:
    """The class's name as reasons are written: AUTHENTICATION_ERROR, OUT_OF_MEMORY_ERROR, CONNECTION_ERROR."""
    # What goes wrong while a socket connects, a wrong password too, comes wrapped into a ConnectionError.
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).upper()
