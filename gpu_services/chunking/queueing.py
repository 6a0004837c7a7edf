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
"""With both lanes full, bulk gets every fifth child that both may have: interactive work waits little, bulk always
moves."""

_FIRST_GUESS_SECONDS = 2.0
_SHORTEST_ADVICE_SECONDS = 0.1
_LONGEST_ADVICE_SECONDS = 60.0
_OTHER = {Priority.INTERACTIVE: Priority.BULK, Priority.BULK: Priority.INTERACTIVE}


class Waiter(Protocol):
    """Who stands in a lane; an `asyncio.Future` is one."""

    def done(self) -> bool:
        """Whether it waits no more."""


WaiterT = TypeVar("WaiterT", bound=Waiter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """How many documents are worked on at once, and how many may be uploaded or wait beside them.

    Attributes:
        children: documents of one lane that are worked on at once.
        reserved: more children, so that one lane with all of its own leaves the other so many. A document is not
            interrupted: without them, interactive work waits until a bulk document is done.
        queued: documents that may be uploaded or wait.
    """

    children: int
    reserved: int
    queued: int

    @property
    def at_once(self) -> int:
        """Documents of both lanes that are worked on at once."""
        return self.children + self.reserved

    @property
    def all(self) -> int:
        """Documents that may be inside."""
        return self.at_once + self.queued

    @property
    def shared(self) -> int:
        """Children that both lanes contend for."""
        return max(0, self.children - self.reserved)

    def of(self, lane: Priority) -> int:
        """Of all that may be inside, those that one lane may take: uploads of neither leave the other without room."""
        left_to_the_other = self.all // (4 if lane is Priority.BULK else 8)
        return min(self.children + self.queued, self.all - left_to_the_other)

    def share(self, lane: Priority) -> float:
        """Children that a lane has on average while documents of the other wait too."""
        bulk = 1 / (INTERACTIVE_BEFORE_BULK + 1)
        share = bulk if lane is Priority.BULK else 1 - bulk
        return min(self.reserved, self.children) + share * self.shared


class Queue(Generic[WaiterT]):
    """Lets documents in, keeps those that wait for a child in two lanes, and learns how long documents take.

    Who would not be done within the deadline is refused on arrival, before the upload is read: those that are let in
    are served, however many more come.

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
        self._begun: dict[Priority, list[float]] = {lane: [] for lane in Priority}
        self._turn = 0
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

    def _done_after(self, lane: Priority) -> float:
        """Seconds until a document that came now would be done, rarely more; 0.0 where a child is free for it."""
        until_child = self._until_child()
        if not until_child and self.has_child_for(lane):
            return 0.0
        places, other = self._places, _OTHER[lane]
        share = places.share(lane) if self._waiting(other) else places.children
        # Until its turn: those of its own lane, those of the other that are let pass, and what is being worked on.
        turns = self._waiting(lane) / share + 1 / share - 1 / places.children
        in_its_way = self._unfinished(lane) + self._unfinished(other) * places.shared / places.children
        return until_child + self._service_time.longest(turns + in_its_way / places.children + 1)

    def _waiting(self, lane: Priority) -> int:
        """Documents without a child; those still uploaded count."""
        return max(0, self._let_in[lane] - self._given[lane])

    def _unfinished(self, lane: Priority) -> float:
        """What is left of the documents that are worked on, as a number of whole ones."""
        now = self._clock()
        return sum(self._service_time.left(now - began) for began in self._begun[lane])

    @property
    def _turn_seconds(self) -> float:
        """Seconds from one document that is done to the next."""
        return self._service_time.mean / self._places.children

    def _retry_after(self, until_there_is_room: float) -> float:
        return self._returns.next(self._turn_seconds, until_there_is_room)

    @property
    def running(self) -> int:
        """Documents that a child is given to."""
        return sum(self._given.values())

    @property
    def waiting(self) -> int:
        """Documents without a child; those still uploaded count."""
        return sum(map(self._waiting, Priority))

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
        for waiters in self._lanes.values():
            while waiters and waiters[0].done():
                waiters.popleft()
        if not all(self._lanes.values()):
            self._turn = 0
        able = [lane for lane in Priority if self._lanes[lane] and self.has_child_for(lane)]
        if not able:
            return None
        lane = able[0] if len(able) == 1 else self._turn_of_both()
        self._given[lane] += 1
        return self._lanes[lane].popleft()

    def _turn_of_both(self) -> Priority:
        """Whose turn it is at a child that either lane may have."""
        self._turn = (self._turn + 1) % (INTERACTIVE_BEFORE_BULK + 1)
        return Priority.BULK if self._turn == 0 else Priority.INTERACTIVE

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
    def learning(self, lane: Priority) -> Iterator[None]:
        """Around the work on one document: how long it takes is what the next ones are judged by."""
        began = self._clock()
        self._begun[lane].append(began)
        whole = False
        try:
            yield
            whole = True
        finally:
            self._begun[lane].remove(began)
            seconds = self._clock() - began
            (self._service_time.learn if whole else self._service_time.learn_at_least)(seconds)

    def has_child_for(self, lane: Priority) -> bool:
        """Whether one more document of this lane may be worked on at once."""
        return sum(self._given.values()) < self._places.at_once and self._given[lane] < self._places.children
