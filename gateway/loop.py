"""The event loop as a resource: how late it comes to what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context

from mesh.clock import Clock, monotonic

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds, as an event loop's ``call_later`` does."""


def later_on_this_loop(seconds: float, act: Callable[[], None]) -> object:
    """On whichever event loop is running, and in nobody's context: what is done then belongs to no request."""
    return asyncio.get_running_loop().call_later(seconds, act, context=Context())


_TICKS_TO_BEGIN = 2
_TICKS_TO_END = 10


class LoopDelay:
    """How late the event loop comes to what is due: the one measure that all work of a process adds to.

    A timer asks every ``tick_seconds``, while there is something to ask for. ``is_late`` holds from the second tick in
    a row that came late by more than the bound, since one pause, a collection or one large body, is no overload; and
    until so many ticks in a row came in less than a third of it, since a loop that is being relieved is not yet well.
    """

    def __init__(
        self,
        bound_seconds: float,
        *,
        tick_seconds: float = 0.01,
        clock: Clock = monotonic,
        later: Later = later_on_this_loop,
    ) -> None:
        self._bound = bound_seconds
        self._tick_seconds = tick_seconds
        self._clock = clock
        self._later = later
        self._in_a_row = 0
        self.is_late = False
        self._due: float | None = None
        self._wanted = False

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
        late = self._clock() - self._due
        turns = late < self._bound / 3 if self.is_late else late > self._bound
        self._in_a_row = self._in_a_row + 1 if turns else 0
        if self._in_a_row >= (_TICKS_TO_END if self.is_late else _TICKS_TO_BEGIN):
            self.is_late = not self.is_late
            self._in_a_row = 0
        if self._wanted or self.is_late or self._in_a_row:
            self._arm()
        else:
            # Nobody came within a tick: an idle process sleeps.
            self._due = None
