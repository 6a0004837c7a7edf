"""A bound on what is in flight to one peer, which adapts to what the peer can take."""

from __future__ import annotations

import threading
from types import TracebackType

from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.errors import AttemptTimedOut, Overloaded


class AdaptiveLimiter:
    """Lets ``limit`` calls through at once and refuses the rest immediately: a queue here would only hide the wait.

    The limit grows by about one per round of successes while it is in use, and shrinks by a tenth, at most once per
    typical call time, when the peer says that it is busy or does not answer in time (additive increase, multiplicative
    decrease).

    Args:
        initial: calls let through at first.
        minimum: the limit never falls below.
        maximum: the limit never grows above.
        name: what it guards, for errors.
        clock: source of time.
    """

    def __init__(
        self, *, initial: int = 256, minimum: int = 8, maximum: int = 1024, name: str = "", clock: Clock = monotonic
    ) -> None:
        if not 1 <= minimum <= initial <= maximum:
            raise ValueError("needs 1 <= minimum <= initial <= maximum")
        self.name = name
        self._limit = float(initial)
        self._minimum = minimum
        self._maximum = maximum
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight = 0
        self._typical_seconds = 0.1
        self._shrunk_at = clock()

    @property
    def limit(self) -> int:
        """Calls let through at once now."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """Calls let through and not finished."""
        return self._in_flight

    def require_room(self, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise what ``slot`` would raise now, and take nothing: for asking before a request's body is read.

        Raises:
            Overloaded: when all places of this lane are taken.
        """
        with self._lock:
            self._require_room(priority)

    def slot(self, priority: Priority = Priority.INTERACTIVE) -> Slot:
        """Take one place, as a context manager that gives it back.

        Raises:
            Overloaded: at once, with the time after which places are likely, when all are taken.
        """
        with self._lock:
            self._require_room(priority)
            self._in_flight += 1
        return Slot(self, self._clock())

    def _require_room(self, priority: Priority) -> None:
        if self._in_flight >= self.limit:
            raise Overloaded(
                f"{self._in_flight} {priority.value} requests are already under way to the {self.name or 'peer'} "
                "service. Try again after the given time.",
                reason="HOP_LIMIT",
                hop=self.name or None,
                retry_after=min(max(self._typical_seconds, 0.1), 5.0),
            )

    def _release(self, started: float, error: BaseException | None) -> None:
        now = self._clock()
        with self._lock:
            in_use = self._in_flight > self._limit / 2
            self._in_flight -= 1
            if error is None:
                self._typical_seconds += 0.1 * (now - started - self._typical_seconds)
                if in_use:
                    self._limit = min(self._maximum, self._limit + 1 / self._limit)
            elif isinstance(error, Overloaded | AttemptTimedOut) and now - self._shrunk_at >= self._typical_seconds:
                self._limit = max(self._minimum, self._limit * 0.9)
                self._shrunk_at = now


class Slot:
    """One place in flight."""

    __slots__ = ("_limiter", "_started")

    def __init__(self, limiter: AdaptiveLimiter, started: float) -> None:
        self._limiter = limiter
        self._started = started

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limiter._release(self._started, error)
