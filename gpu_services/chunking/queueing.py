"""Which document is let in, and which goes next: a queue with two lanes, bounded in number and in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import Overloaded
from mesh.resilience import ReturnSchedule, ServiceTime

INTERACTIVE_BEFORE_BULK = 4
"""With both lanes full, bulk gets every fifth child: interactive work waits little, bulk always moves."""
RECENT_SECONDS = 30.0
"""Interactive work that came within this time may come again: bulk work leaves a child free for it."""

_FIRST_GUESS_SECONDS = 2.0
_SHORTEST_ADVICE_SECONDS = 0.1
_LONGEST_ADVICE_SECONDS = 60.0


class Waiter(Protocol):
    """Who stands in a lane; an `asyncio.Future` is one."""

    def done(self) -> bool:
        """Whether it waits no more."""


WaiterT = TypeVar("WaiterT", bound=Waiter)


@dataclass(frozen=True, slots=True)
class Places:
    """How many documents are worked on at once, and how many may be uploaded or wait beside them."""

    children: int
    queued: int

    @property
    def all(self) -> int:
        """Documents that may be inside."""
        return self.children + self.queued

    def of(self, lane: Priority) -> int:
        """Of them, those that one lane may take: uploads of neither leave the other without room."""
        return self.all - self.all // (4 if lane is Priority.BULK else 8)

    @property
    def bulk_children(self) -> int:
        """Children that bulk work may have while interactive work is recent."""
        return self.children - max(1, self.children // 4) if self.children > 1 else 1


class Queue(Generic[WaiterT]):
    """Lets documents in, keeps those that wait for a child in two lanes, and learns how long documents take.

    Who would not be done within the deadline is refused on arrival, before the upload is read: those that are let in
    are served, however many more come. A document is not interrupted: with a single child, an interactive one waits
    for one bulk document at most, and the limits on pages and seconds are the bound on that.

    Args:
        places: how many documents may be inside.
        until_child: seconds until there is any child; 0.0 where there is one.
        clock: source of time.
    """

    def __init__(
        self, places: Places, *, until_child: Callable[[], float] = lambda: 0.0, clock: Clock = monotonic
    ) -> None:
        self._places = places
        self._until_child = until_child
        self._clock = clock
        self._lanes: dict[Priority, deque[WaiterT]] = {lane: deque() for lane in Priority}
        self._let_in = dict.fromkeys(Priority, 0)
        self._given = dict.fromkeys(Priority, 0)
        self._begun: list[float] = []
        self._interactive_streak = 0
        self._interactive_at = float("-inf")
        self._service_time = ServiceTime(_FIRST_GUESS_SECONDS)
        self._returns = ReturnSchedule(
            clock=clock, shortest_seconds=_SHORTEST_ADVICE_SECONDS, longest_seconds=_LONGEST_ADVICE_SECONDS
        )

    # -- who is let in --------------------------------------------------------------------------------------------

    @contextmanager
    def place(self, deadline: Deadline, priority: Priority) -> Iterator[None]:
        """Let one document in for the length of the block, or refuse it.

        Raises:
            Overloaded: too many are inside, or the wait is longer than the deadline; come back after ``retry_after``.
            DeadlineExceeded: the time is up already.
        """
        deadline.require()
        if priority is Priority.INTERACTIVE:
            self._interactive_at = self._clock()
        inside = sum(self._let_in.values())
        if inside >= self._places.all or self._let_in[priority] >= self._places.of(priority):
            raise Overloaded(
                f"{inside} documents are being uploaded, converted or waiting; try again later.",
                reason="QUEUE_FULL",
                retry_after=self._retry_after(self._turn_seconds),
            )
        late = self._done_after(priority) - deadline.remaining()
        if late > 0:
            raise Overloaded(
                "More documents wait than are done within the request's deadline; come back later or allow more time.",
                reason="QUEUE_LONGER_THAN_DEADLINE",
                retry_after=self._retry_after(late),
            )
        self._let_in[priority] += 1
        try:
            yield
        finally:
            self._let_in[priority] -= 1

    def _done_after(self, priority: Priority) -> float:
        """Seconds until a document that came now would be done, rarely more; 0.0 where a child is free for it."""
        until_child = self._until_child()
        if not until_child and sum(self._given.values()) < self._places.children and self._may_have_child(priority):
            return 0.0
        now = self._clock()
        unfinished = sum(self._service_time.left(now - began) for began in self._begun)
        work = self._service_time.longest((self._ahead(priority) + unfinished) / self._places.children + 1)
        return until_child + work

    def _ahead(self, priority: Priority) -> int:
        """Documents without a child that go before a new one of this lane; those still uploaded count."""
        interactive, bulk = (max(0, self._let_in[lane] - self._given[lane]) for lane in Priority)
        if priority is Priority.INTERACTIVE:
            return interactive + min(bulk, interactive // INTERACTIVE_BEFORE_BULK + 1)
        # Where interactive documents wait now, more will come, and each bulk turn lets as many pass as it may.
        return bulk + ((bulk + 1) * INTERACTIVE_BEFORE_BULK if interactive else 0)

    @property
    def _turn_seconds(self) -> float:
        """Seconds from one document that is done to the next."""
        return self._service_time.mean / self._places.children

    def _retry_after(self, until_there_is_room: float) -> float:
        return self._returns.next(self._turn_seconds, until_there_is_room)

    # -- who goes next --------------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether nobody waits for a child."""
        return not any(self._lanes.values())

    def join(self, waiter: WaiterT, priority: Priority, *, at_the_head: bool = False) -> None:
        """Stand in a lane; at its head where one's turn had come already."""
        lane = self._lanes[priority]
        lane.appendleft(waiter) if at_the_head else lane.append(waiter)

    def leave(self, waiter: WaiterT, priority: Priority) -> bool:
        """Leave a lane; False where its turn has come meanwhile."""
        if waiter not in self._lanes[priority]:
            return False
        self._lanes[priority].remove(waiter)
        return True

    def next(self) -> WaiterT | None:
        """Take out whoever is to have the next free child; ``give_back`` when it has it no more."""
        for lane in self._lanes.values():
            while lane and lane[0].done():
                lane.popleft()
        interactive, bulk = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BULK]
        bulk_may = bool(bulk) and self._may_have_child(Priority.BULK)
        if bulk_may and (not interactive or self._interactive_streak >= INTERACTIVE_BEFORE_BULK):
            self._interactive_streak = 0
            self._given[Priority.BULK] += 1
            return bulk.popleft()
        if interactive:
            self._interactive_streak += bool(bulk)
            self._given[Priority.INTERACTIVE] += 1
            return interactive.popleft()
        return None

    def turn_away(self) -> WaiterT | None:
        """Take out one that waits, whoever it is: there will be no child for it. None where nobody waits."""
        for lane in self._lanes.values():
            while lane:
                if not (waiter := lane.popleft()).done():
                    return waiter
        return None

    def give_back(self, priority: Priority) -> None:
        """One who was taken out of this lane has its child no more."""
        self._given[priority] -= 1

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Around the work on one document: how long it takes is what the next ones are judged by."""
        began = self._clock()
        self._begun.append(began)
        whole = False
        try:
            yield
            whole = True
        finally:
            self._begun.remove(began)
            seconds = self._clock() - began
            (self._service_time.learn if whole else self._service_time.learn_at_least)(seconds)

    def _may_have_child(self, priority: Priority) -> bool:
        """Whether one more document of this lane may have a child that is free."""
        if priority is Priority.INTERACTIVE or self._clock() - self._interactive_at >= RECENT_SECONDS:
            return True
        return self._given[Priority.BULK] < self._places.bulk_children
