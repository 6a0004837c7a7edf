"""Who is let into the queue, and when those who are not should come back. Pure: no thread, no lock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from inference.admission import INTERACTIVE_BATCHES_BEFORE_BULK, AdmissionQueue
from inference.metrics import BatchMetrics
from inference.pace import Pace
from mesh.clock import Clock
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import Overloaded
from mesh.resilience.returning import ReturnSchedule

LANE_SHARE = 0.2
"""Of the queue, kept for each lane: neither ever leaves the other without room."""

_DEADLINE_SHARE = 0.8
"""Of the time that a request has left, which its computed wait may take: work that ends just too late is computed for
nobody, and under overload the queue is always as long as is let in."""
_SHORTEST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 10.0
"""Those who do not obey take places in the schedule too; a longer one would outlive the overload by far."""

_OTHER = {Priority.INTERACTIVE: Priority.BULK, Priority.BULK: Priority.INTERACTIVE}


@dataclass(slots=True, eq=False)
class Reservation:
    """Room that is held for a request while it is made ready.

    Attributes:
        tokens: what of it is not queued yet.
    """

    tokens: int
    priority: Priority


class Room:
    """The room in front of the engine: what waits in ``queue``, and what is reserved there.

    Args:
        tokens: how many may wait, reservations included.
    """

    def __init__(
        self, tokens: int, *, queue: AdmissionQueue[Any, Any], pace: Pace, metrics: BatchMetrics, clock: Clock
    ) -> None:
        self._tokens = tokens
        self._queue = queue
        self._pace = pace
        self._metrics = metrics
        self._reserved: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._returns = ReturnSchedule(
            clock=clock, shortest_seconds=_SHORTEST_RETRY_SECONDS, longest_seconds=_LONGEST_RETRY_SECONDS
        )

    def reserve(self, tokens: int, *, deadline: Deadline, priority: Priority, running: int) -> Reservation:
        """Hold room for so many tokens until they are used or released. Raises as ``require``."""
        self.require(tokens, deadline=deadline, priority=priority, running=running)
        self._reserved[priority] += tokens
        return Reservation(tokens, priority)

    def use(self, reservation: Reservation, tokens: int) -> None:
        """So many of the reserved tokens are queued now."""
        used = min(tokens, reservation.tokens)
        reservation.tokens -= used
        self._reserved[reservation.priority] -= used

    def release(self, reservation: Reservation) -> None:
        """What was not used of it is free again."""
        self.use(reservation, reservation.tokens)

    def require(self, tokens: int, *, deadline: Deadline, priority: Priority, running: int) -> None:
        """Raise Overloaded where so many tokens have no room, or would not be computed in time.

        A lane in which nothing waits takes one request of any size, so that large ones are not refused for ever.

        Args:
            tokens: of the request.
            deadline: of its caller.
            priority: its lane.
            running: tokens of the batch that is computed now.
        """
        own = self._held(priority)
        over = own + tokens + max(self._held(_OTHER[priority]), LANE_SHARE * self._tokens) - self._tokens
        if own and over > 0:
            wait = self._pace.seconds(over + self._overtaking(over, priority))
            raise self._overloaded("The queue is full; come back a little later.", "QUEUE_FULL", tokens, wait)
        overtaking = self._overtaking(own + tokens, priority)
        ahead = running + own + overtaking
        late = self._pace.seconds(ahead + tokens) - _DEADLINE_SHARE * deadline.remaining()
        # With nothing ahead it is tried: waiting would not make it faster, and only work corrects a wrong estimate.
        if ahead and late > 0:
            message = "The queue is longer than the request's deadline allows; come back later or allow more time."
            raise self._overloaded(message, "QUEUE_LONGER_THAN_DEADLINE", tokens, late)

    def _held(self, priority: Priority) -> int:
        return self._queue.lane_tokens[priority] + self._reserved[priority]

    def _overtaking(self, tokens: float, priority: Priority) -> int:
        """Tokens of the other lane that are computed before so many of this one: bulk waits for its turns."""
        if priority is Priority.INTERACTIVE:
            return 0
        budgets = self._pace.budgets()
        turns = math.ceil(tokens / budgets.bulk_tokens)
        return min(self._held(Priority.INTERACTIVE), turns * INTERACTIVE_BATCHES_BEFORE_BULK * budgets.tokens)

    def _overloaded(self, message: str, reason: str, tokens: int, wait_seconds: float) -> Overloaded:
        """A refusal of so many tokens that may have room after ``wait_seconds``."""
        self._metrics.refused("full")
        # One large request must not push those that come after it, and are small, beyond all places.
        work_seconds = min(self._pace.seconds(tokens), _LONGEST_RETRY_SECONDS)
        retry_after = self._returns.next(work_seconds, wait_seconds)
        return Overloaded(message, reason=reason, retry_after=round(retry_after, 3))
