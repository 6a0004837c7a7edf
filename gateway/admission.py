"""What is let in: a bounded number of requests, and while the event loop itself falls behind, far fewer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.clock import Clock, monotonic
from mesh.errors import Overloaded
from mesh.resilience import ReturnSchedule

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds, as an event loop's ``call_later`` does."""


def later_on_this_loop(seconds: float, act: Callable[[], None]) -> object:
    """On whichever event loop is running."""
    return asyncio.get_running_loop().call_later(seconds, act)


class LoopDelay:
    """How late the event loop comes to what is due: the one measure that all work of a process adds to.

    A timer asks every ``tick_seconds``, while there is something to ask for. ``is_late`` is said once it came late by
    more than the bound ``in_a_row`` times: one pause, a collection or one large body, is no overload.
    """

    def __init__(
        self,
        bound_seconds: float,
        *,
        tick_seconds: float = 0.01,
        in_a_row: int = 2,
        clock: Clock = monotonic,
        later: Later = later_on_this_loop,
    ) -> None:
        self._bound = bound_seconds
        self._tick_seconds = tick_seconds
        self._in_a_row = in_a_row
        self._clock = clock
        self._later = later
        self._late = 0
        self._due: float | None = None
        self._wanted = False

    @property
    def is_late(self) -> bool:
        """Whether the loop is behind."""
        return self._late >= self._in_a_row

    def keep_watch(self) -> None:
        """Measure for at least one tick more; costs next to nothing while it is measured already."""
        self._wanted = True
        if self._due is None:
            self._arm()

    def _arm(self) -> None:
        self._wanted = False
        self._due = self._clock() + self._tick_seconds
        self._later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        assert self._due is not None  # noqa: S101 - set where the timer is
        self._late = self._late + 1 if self._clock() - self._due > self._bound else 0
        if self._wanted or self._late:
            self._arm()
        else:
            # Nobody came within a tick: an idle process sleeps.
            self._due = None


class Admission:
    """Refuses at once what is over the most requests in progress: nothing waits in this process without a bound.

    While the event loop is late, the most is ``few``: enough to keep the process busy, and so few that what is let in,
    and whoever asks for its health, is served soon. What operators and load balancers look at is answered all the
    same, and takes no place.
    """

    always = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/status"})

    def __init__(
        self, app: ASGIApp, *, most: int, few: int = 32, delay: LoopDelay | None = None, clock: Clock = monotonic
    ) -> None:
        self._app = app
        self._most = most
        self._few = min(few, most)
        self._delay = delay
        self._clock = clock
        self._in_progress = 0
        self._typical_seconds = 0.1
        self._returns = ReturnSchedule(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in self.always:
            await self._app(scope, receive, send)
            return
        if self._delay is not None:
            self._delay.keep_watch()
            if self._delay.is_late and self._in_progress >= self._few:
                raise self._refusal("GATEWAY_BUSY")
        if self._in_progress >= self._most:
            raise self._refusal("GATEWAY_LIMIT")
        self._in_progress += 1
        started = self._clock()
        try:
            await self._app(scope, receive, send)
            # Only what was answered: refusals take no time, and would make the others look quick.
            self._typical_seconds += 0.1 * (self._clock() - started - self._typical_seconds)
        finally:
            self._in_progress -= 1

    def _refusal(self, reason: str) -> Overloaded:
        return Overloaded(
            f"This gateway is already busy with {self._in_progress} requests. Try again after the given time.",
            reason=reason,
            # As many are done in a typical request's time as are in progress.
            retry_after=self._returns.next(self._typical_seconds / self._in_progress),
        )
