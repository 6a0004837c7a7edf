"""A bound on what is in flight to one peer, which adapts to what the peer can take."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import TracebackType

from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.errors import AttemptTimedOut, GpuOutOfMemory, Overloaded
from mesh.resilience.returning import ReturnSchedule

ABOUT_THE_DEADLINE = frozenset({"QUEUE_LONGER_THAN_DEADLINE"})
"""Reasons of Overloaded that speak of one caller's deadline: whoever allows more time would have been let in. They tell
of too many in flight only where that caller allowed as much time as calls take; else one caller in a hurry would empty
the hop for all."""

_FIRST_GUESS_SECONDS = 0.1
_NEWEST_WEIGHT = 0.1
_SAYS_SOMETHING = 8
_OLD_NEWS_SECONDS = 5.0
"""A refusal tells how much the peer can take for about so long; in an overload the next one comes sooner."""


class AdaptiveLimiter:
    """Lets ``limit`` calls through at once and refuses the rest immediately: a queue here would only hide the wait.

    The limit grows by about one per round of successes while more than half of it is in use. When the peer says that
    it is busy or does not answer in time, it falls to a tenth below what was really in flight. Calls that were under
    way at that moment do not shrink it again: their answers tell of the time before. What nobody has spoken for lately
    gives way up to the first limit, so that one bad night does not narrow the morning.

    Bulk work has a lane of its own. It never takes the last quarter of the places, two at least, so that interactive
    work finds one however much bulk work there is; and what the peer refuses of it shrinks only the bulk lane's limit.

    Args:
        initial: calls let through at first.
        minimum: the limit never falls below.
        maximum: the limit never grows above.
        name: what it guards, for errors.
        clock: source of time.
    """

    def __init__(
        self, *, initial: int = 256, minimum: int = 4, maximum: int = 1024, name: str = "", clock: Clock = monotonic
    ) -> None:
        if not 1 <= minimum <= initial <= maximum:
            raise ValueError("needs 1 <= minimum <= initial <= maximum")
        self.name = name
        self._clock = clock
        self._lock = threading.RLock()  # see mesh.resilience
        self._whole = _Lane(initial, minimum, maximum, clock)
        self._bulk = _Lane(initial, places_for_bulk(minimum), maximum, clock)

    @property
    def limit(self) -> int:
        """Calls let through at once now."""
        return int(self._whole.limit)

    @property
    def bulk_limit(self) -> int:
        """Bulk calls among them."""
        return min(int(self._bulk.limit), places_for_bulk(self.limit))

    @property
    def in_flight(self) -> int:
        """Calls let through and not finished."""
        return self._whole.in_flight

    @property
    def bulk_in_flight(self) -> int:
        """Bulk calls among them."""
        return self._bulk.in_flight

    def require_room(self, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise what ``slot`` would raise now, and take nothing: for asking before a request's body is read.

        Raises:
            Overloaded: at once, with the time to come back after, when all places of this lane are taken.
        """
        with self._lock:
            self._require_room(priority)

    def slot(self, priority: Priority = Priority.INTERACTIVE, *, seconds: float = math.inf) -> Slot:
        """Take one place, as a context manager that gives it back.

        Args:
            priority: the lane.
            seconds: how long the caller waits at most.

        Raises:
            Overloaded: at once, with the time to come back after, when all places of this lane are taken.
        """
        with self._lock:
            self._require_room(priority)
            self._whole.in_flight += 1
            if priority is Priority.BULK:
                self._bulk.in_flight += 1
                return Slot(self, self._bulk, self._clock(), seconds)
            return Slot(self, self._whole, self._clock(), seconds)

    def _require_room(self, priority: Priority) -> None:
        now = self._clock()
        if priority is Priority.BULK:
            full = self._whole.is_full(now, places_for_bulk) or self._bulk.is_full(now)
        else:
            full = self._whole.is_full(now)
        if full:
            raise self._refusal(priority)

    def _refusal(self, priority: Priority) -> Overloaded:
        lane = self._bulk if priority is Priority.BULK else self._whole
        return Overloaded(
            f"The {self.name or 'peer'} service has as many {priority.value} requests under way as it can take. "
            "Try again after the given time.",
            reason="HOP_LIMIT",
            hop=self.name or None,
            # One call is done every so often, and each makes room for one.
            retry_after=round(lane.returns.next(lane.seconds_per_place), 3),
        )

    def _release(self, slot: Slot, error: BaseException | None) -> None:
        now = self._clock()
        lane, whole = slot.lane, self._whole
        with self._lock:
            if error is None:
                lane.took(now - slot.started, slot.position)
                whole.grow()
                if lane is not whole:
                    lane.grow()
            elif isinstance(error, AttemptTimedOut):
                # All that is in flight now, whenever it came, has slowed this call; alone, it was not slowed by others.
                if lane.in_flight > 1:
                    lane.shrink(slot.epoch, lane.in_flight, now)
            elif _says_too_many(error, in_a_hurry=slot.seconds < lane.typical_seconds):
                # The peer decided on its arrival: what came later has no part in that.
                lane.shrink(slot.epoch, slot.position, now)
            whole.in_flight -= 1
            if lane is not whole:
                lane.in_flight -= 1


class _Lane:
    """A limit and what counts against it. Not locked: the limiter holds its lock."""

    __slots__ = (
        "epoch", "in_flight", "initial", "limit", "maximum", "minimum", "returns", "seconds_per_place", "shrunk_at",
        "typical_seconds",
    )  # fmt: skip

    def __init__(self, initial: int, minimum: int, maximum: int, clock: Clock) -> None:
        self.initial = float(initial)
        self.limit = float(initial)
        self.shrunk_at = clock()
        self.minimum = minimum
        self.maximum = maximum
        self.in_flight = 0
        self.epoch = 0
        self.typical_seconds = _FIRST_GUESS_SECONDS
        self.seconds_per_place = _FIRST_GUESS_SECONDS
        self.returns = ReturnSchedule(clock)

    def took(self, seconds: float, position: int) -> None:
        """A call succeeded that was the ``position``-th in flight when it came: so many were done in its time."""
        self.typical_seconds += _NEWEST_WEIGHT * (seconds - self.typical_seconds)
        self.seconds_per_place += _NEWEST_WEIGHT * (seconds / max(1, position) - self.seconds_per_place)

    def grow(self) -> None:
        """A call succeeded. A limit that is hardly used is not proved by it."""
        if self.in_flight > self.limit / 2:
            self.limit = min(self.maximum, self.limit + 1 / self.limit)

    def is_full(self, now: float, places: Callable[[int], int] = int) -> bool:
        """Whether all places are taken. A limit that nothing has spoken for lately gives way instead of refusing."""
        room = places(int(self.limit))
        if self.in_flight < room:
            return False
        if self.in_flight > room or now - self.shrunk_at < _OLD_NEWS_SECONDS or self.limit >= self.initial:
            return True
        self.limit = min(self.initial, self.limit + 1)
        return self.in_flight >= places(int(self.limit))

    def shrink(self, epoch: int, in_flight: int, now: float) -> None:
        """The peer could not take so many: a tenth less than were in flight, and one less at least.

        Where only few were in flight, another cause is likelier than their number: then a tenth less than the limit.
        """
        if epoch != self.epoch:
            return
        self.epoch += 1
        self.shrunk_at = now
        found = float(in_flight) if in_flight >= _SAYS_SOMETHING else self.limit
        self.limit = max(self.minimum, min(self.limit, found * 0.9, found - 1))


class Slot:
    """One place in flight. Leaving it gives the place back and tells the limiter how the call ended."""

    __slots__ = ("_limiter", "epoch", "lane", "position", "seconds", "started")

    def __init__(self, limiter: AdaptiveLimiter, lane: _Lane, started: float, seconds: float) -> None:
        self._limiter = limiter
        self.lane = lane
        self.epoch = lane.epoch
        self.position = lane.in_flight
        self.started = started
        self.seconds = seconds

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limiter._release(self, error)


def places_for_bulk(limit: int) -> int:
    """How many of ``limit`` places bulk work may take: all but a quarter, two at least; one in any case."""
    return max(1, limit - max(2, -(-limit // 4)))


def _says_too_many(error: BaseException, *, in_a_hurry: bool) -> bool:
    # GpuOutOfMemory is an Overloaded for callers, but no sign of too many: the worker has split the batch down to one
    # item before it says so, and with a single call in flight that item would not fit either. The breaker counts it.
    if not isinstance(error, Overloaded) or isinstance(error, GpuOutOfMemory):
        return False
    return not (in_a_hurry and error.reason in ABOUT_THE_DEADLINE)
