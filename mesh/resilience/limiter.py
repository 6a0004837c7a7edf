"""A bound on what is in flight to one peer, which adapts to what the peer can take."""

from __future__ import annotations

import threading
from types import TracebackType

from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.errors import AttemptTimedOut, GpuOutOfMemory, Overloaded
from mesh.resilience.returning import ReturnSchedule

ABOUT_THE_CALLER = frozenset({"QUEUE_LONGER_THAN_DEADLINE"})
"""Reasons of Overloaded that speak of one caller's deadline: whoever allows more time would have been let in."""

_FIRST_GUESS_SECONDS = 0.1


class AdaptiveLimiter:
    """Lets ``limit`` calls through at once and refuses the rest immediately: a queue here would only hide the wait.

    The limit grows by about one per round of successes while more than half of it is in use. When the peer says that
    it is busy or does not answer in time, it falls to a tenth below what was really in flight. Calls that were under
    way at that moment do not shrink it again: their answers tell of the time before.

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
        self._lock = threading.Lock()
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

    def slot(self, priority: Priority = Priority.INTERACTIVE) -> Slot:
        """Take one place, as a context manager that gives it back.

        Raises:
            Overloaded: at once, with the time to come back after, when all places of this lane are taken.
        """
        with self._lock:
            self._require_room(priority)
            self._whole.in_flight += 1
            if priority is Priority.BULK:
                self._bulk.in_flight += 1
                return Slot(self, self._bulk, self._clock())
            return Slot(self, self._whole, self._clock())

    def _require_room(self, priority: Priority) -> None:
        limit = int(self._whole.limit)
        if priority is Priority.BULK:
            full = self._whole.in_flight >= places_for_bulk(limit) or self._bulk.in_flight >= int(self._bulk.limit)
        else:
            full = self._whole.in_flight >= limit
        if full:
            raise self._refusal(priority)

    def _refusal(self, priority: Priority) -> Overloaded:
        lane = self._bulk if priority is Priority.BULK else self._whole
        return Overloaded(
            f"The {self.name or 'peer'} service has as many {priority.value} requests under way as it can take. "
            "Try again after the given time.",
            reason="HOP_LIMIT",
            hop=self.name or None,
            # One call is done every so often (Little's law), and each makes room for one.
            retry_after=round(lane.returns.next(lane.typical_seconds / max(1, lane.in_flight)), 3),
        )

    def _release(self, slot: Slot, error: BaseException | None) -> None:
        now = self._clock()
        lane, whole = slot.lane, self._whole
        with self._lock:
            if error is None:
                lane.typical_seconds += 0.1 * (now - slot.started - lane.typical_seconds)
                whole.grow()
                if lane is not whole:
                    lane.grow()
            elif isinstance(error, AttemptTimedOut):
                # All that is in flight now, whenever it came, has slowed this call.
                lane.shrink(slot.epoch, lane.in_flight)
            elif _says_too_many(error):
                # The peer decided on its arrival: what came later has no part in that.
                lane.shrink(slot.epoch, slot.position)
            whole.in_flight -= 1
            if lane is not whole:
                lane.in_flight -= 1


class _Lane:
    """A limit and what counts against it. Not locked: the limiter holds its lock."""

    __slots__ = ("epoch", "in_flight", "limit", "maximum", "minimum", "returns", "typical_seconds")

    def __init__(self, initial: int, minimum: int, maximum: int, clock: Clock) -> None:
        self.limit = float(initial)
        self.minimum = minimum
        self.maximum = maximum
        self.in_flight = 0
        self.epoch = 0
        self.typical_seconds = _FIRST_GUESS_SECONDS
        self.returns = ReturnSchedule(clock)

    def grow(self) -> None:
        """A call succeeded. A limit that is hardly used is not proved by it."""
        if self.in_flight > self.limit / 2:
            self.limit = min(self.maximum, self.limit + 1 / self.limit)

    def shrink(self, epoch: int, in_flight: int) -> None:
        """The peer could not take so many: a tenth less, and one less at least, since ten times nothing is nothing."""
        if epoch == self.epoch:
            self.epoch += 1
            self.limit = max(self.minimum, min(self.limit, in_flight * 0.9, in_flight - 1))


class Slot:
    """One place in flight. Leaving it gives the place back and tells the limiter how the call ended."""

    __slots__ = ("_limiter", "epoch", "lane", "position", "started")

    def __init__(self, limiter: AdaptiveLimiter, lane: _Lane, started: float) -> None:
        self._limiter = limiter
        self.lane = lane
        self.epoch = lane.epoch
        self.position = lane.in_flight
        self.started = started

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limiter._release(self, error)


def places_for_bulk(limit: int) -> int:
    """How many of ``limit`` places bulk work may take: all but a quarter, two at least; one in any case."""
    return max(1, limit - max(2, -(-limit // 4)))


def _says_too_many(error: BaseException) -> bool:
    # GpuOutOfMemory is an Overloaded for callers, but no sign of too many: the worker has split the batch down to one
    # item before it says so, and with a single call in flight that item would not fit either. The breaker counts it.
    return (
        isinstance(error, Overloaded) and not isinstance(error, GpuOutOfMemory) and error.reason not in ABOUT_THE_CALLER
    )
