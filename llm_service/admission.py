"""Who may write now, who waits, and who is told to come back: a bounded queue with two lanes before the engine."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Overloaded

INTERACTIVE_TURNS = 3
"""So many interactive requests go before a waiting bulk one: interactive first, and neither lane starves."""

_FIRST_GUESS_SECONDS = 1.0
_LONGEST_ADVICE_SECONDS = 60.0


class Admission:
    """Lets at most ``concurrency`` requests through at once and at most ``queue`` wait; over that, ``Overloaded``."""

    def __init__(self, *, concurrency: int, queue: int, clock: Clock = monotonic) -> None:
        self._concurrency = concurrency
        self._queue = queue
        self._clock = clock
        self._running = 0
        self._turns = 0
        self._typical_seconds = _FIRST_GUESS_SECONDS
        self._lanes: dict[Priority, deque[asyncio.Future[None]]] = {lane: deque() for lane in Priority}

    @property
    def running(self) -> int:
        """How many have a slot."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return sum(map(len, self._lanes.values()))

    @asynccontextmanager
    async def slot(self, deadline: Deadline, priority: Priority = Priority.INTERACTIVE) -> AsyncIterator[None]:
        """Hold a slot of the engine for the length of the block.

        Raises:
            Overloaded: the queue is full; ``retry_after`` is when it should have drained.
            DeadlineExceeded: the time was up before a slot was free.
        """
        deadline.require()
        await self._enter(deadline, priority)
        started = self._clock()
        try:
            yield
        finally:
            # A moving average over about eight requests follows a change of load within seconds.
            self._typical_seconds += (self._clock() - started - self._typical_seconds) / 8
            self._leave()

    @contextmanager
    def idle_slot(self) -> Iterator[None]:
        """Hold a slot while nobody else does, for a check of the engine: who comes meanwhile takes the next or waits.

        Raises:
            Overloaded: somebody has a slot or waits for one.
        """
        if self._running or self.waiting:
            raise Overloaded("The model is busy.", reason="ENGINE_BUSY", retry_after=self._drain_seconds())
        self._running += 1
        try:
            yield
        finally:
            self._leave()  # uncounted: how long a check takes says nothing about requests

    async def _enter(self, deadline: Deadline, priority: Priority) -> None:
        if self._running < self._concurrency and not self.waiting:
            self._running += 1
            return
        if self.waiting >= self._queue:
            raise Overloaded(
                f"The model is busy and {self.waiting} requests wait already; come back later.",
                reason="QUEUE_FULL",
                retry_after=self._drain_seconds(),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane = self._lanes[priority]
        lane.append(turn)
        try:
            async with asyncio.timeout(deadline.remaining()):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave()  # the slot was handed over in the moment the waiting ended: pass it on
            elif turn in lane:
                lane.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "The request's time was up while it waited for the model; allow more time, or ask again later."
                ) from None
            raise

    def _leave(self) -> None:
        self._running -= 1
        while self._running < self._concurrency and (turn := self._next()) is not None:
            self._running += 1
            turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        interactive, bulk = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BULK]
        while interactive or bulk:
            prefer_bulk = bool(bulk) and (not interactive or self._turns >= INTERACTIVE_TURNS)
            self._turns = 0 if prefer_bulk else self._turns + 1
            turn = (bulk if prefer_bulk else interactive).popleft()
            if not turn.done():  # a cancelled waiter leaves on its own a moment later
                return turn
        return None

    def _drain_seconds(self) -> float:
        ahead = self._running + self.waiting
        return float(
            min(_LONGEST_ADVICE_SECONDS, max(1.0, math.ceil(ahead * self._typical_seconds / self._concurrency)))
        )
