"""What to do when the worker does not answer: wait as long as it asks for, and not for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from mesh.bulk.failures import BulkFailure, GaveUp
from mesh.clock import Clock, monotonic
from mesh.errors import (
    AttemptTimedOut,
    Cancelled,
    CircuitOpen,
    DeadlineExceeded,
    Internal,
    MeshError,
    ModelUnusable,
    Overloaded,
    Unavailable,
)

_PASSES = (Overloaded, Unavailable, AttemptTimedOut, DeadlineExceeded, Cancelled, Internal)
_FIRST_PAUSE_SECONDS = 0.5
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 10.0
_BREAKER_PAUSE_SECONDS = 1.0
"""Asking an open breaker costs the worker nothing, and it closes as soon as its probe sees the worker serve."""


class Outage:
    """The time since the worker's last answer, for all streams together.

    Args:
        patience_seconds: without any answer, until the job gives up.
        verify: asks the worker whether it still is what the job began with. Raises BulkFailure where it is not,
            MeshError where it does not say.
        tell: takes a line for the user.
        sleep, clock: passed in by tests.
    """

    def __init__(
        self,
        *,
        patience_seconds: float,
        verify: Callable[[], Awaitable[None]],
        tell: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock = monotonic,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._verify = verify
        self._tell = tell
        self._sleep = sleep
        self._clock = clock
        self._answered_at = clock()
        self._told = False

    def over(self) -> None:
        """The worker has answered."""
        self._answered_at = self._clock()
        if self._told:
            self._told = False
            self._tell("The worker answers again.")

    async def wait(self, error: MeshError, failures: int) -> None:
        """Until it is worth trying again.

        Args:
            error: what happened.
            failures: how often in a row, on this stream.

        Raises:
            GaveUp: no answer came for too long.
            BulkFailure: trying again is in vain.
        """
        while True:
            _require_passing(error)
            waited = self._clock() - self._answered_at
            if waited > self._patience_seconds:
                raise GaveUp(f"The worker has not answered for {waited:.0f} s: {error.message}") from error
            if not self._told and not isinstance(error, Overloaded):
                self._told = True
                self._tell(f"Waiting for the worker: {error.message}")
            await self._sleep(pause_seconds(error, failures))
            try:
                await self._verify()
            except MeshError as again:
                error, failures = again, failures + 1
            else:
                return


def pause_seconds(error: MeshError, failures: int) -> float:
    """As long as the worker asks for; where it does not, longer from failure to failure."""
    if isinstance(error, CircuitOpen):
        return min(error.retry_after or _BREAKER_PAUSE_SECONDS, _BREAKER_PAUSE_SECONDS)
    if error.retry_after is not None:
        return max(_SHORTEST_PAUSE_SECONDS, error.retry_after)
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 10))
    return longest * random.uniform(0.75, 1.0)  # noqa: S311 - spreads the streams, and is no secret


def _require_passing(error: MeshError) -> None:
    if isinstance(error, ModelUnusable) or not isinstance(error, _PASSES):
        raise BulkFailure(f"The worker cannot do this: {error.message}") from error
