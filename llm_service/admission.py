"""Who may write now, who waits, and who is told to come back: a queue with two lanes, bounded in number and in time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from llm_service.load import READ_EVERY_SECONDS, is_saturated
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Overloaded
from mesh.generation import EngineLoad
from mesh.resilience import ReturnSchedule, ServiceTime

INTERACTIVE_TURNS = 3
"""So many interactive requests go before a waiting bulk one: interactive first, and neither lane starves."""
WAITING_CACHES = 2.0
"""So often may the prompts let in fill the engine's key-value cache: once at work, once waiting."""
RECENT_SECONDS = 30.0
"""Interactive work that came within this time may come again: bulk work leaves slots free for it."""

_FIRST_GUESS_SECONDS = 1.0
_SHORTEST_ADVICE_SECONDS = 0.1
_LONGEST_ADVICE_SECONDS = 60.0


@dataclass(eq=False, slots=True)
class _Waiter:
    """A place that waits for its slots, and how many tokens the engine will read for it."""

    place: Place
    tokens: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


def _on_the_loop(seconds: float, call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, call)


class Place:
    """One request that was let in, before it has its slots. Made by `Admission.place`.

    Attributes:
        deadline: when nobody waits for it any more.
        priority: its lane.
        slots: how many it takes: one for each answer to its prompt, which are written side by side.
    """

    def __init__(self, admission: Admission, deadline: Deadline, priority: Priority, slots: int) -> None:
        self._admission = admission
        self.deadline = deadline
        self.priority = priority
        self.slots = slots

    @asynccontextmanager
    async def slot(self, tokens: int = 0) -> AsyncIterator[None]:
        """Hold its slots of the engine for the length of the block.

        Args:
            tokens: length of the prompt; 0 where it is not known.

        Raises:
            Overloaded: more tokens wait than the engine reads in a reasonable time; come back after ``retry_after``.
            DeadlineExceeded: the time was up before a slot was free.
        """
        admission = self._admission
        with admission.tokens(tokens):
            async with self._entered(tokens):
                yield

    @asynccontextmanager
    async def _entered(self, tokens: int) -> AsyncIterator[None]:
        admission = self._admission
        await admission.enter(self, tokens)
        started = admission.begin(self)
        whole = False
        try:
            yield
            whole = True
        finally:
            admission.end(self, started, whole=whole)
            admission.leave(self, tokens)


class Admission:
    """Lets at most ``concurrency`` answers be written at once and at most ``queue`` wait. Most requests want one.

    The queue is bounded in time as well: who would not be done within the deadline is refused on arrival, by what
    requests were found to take. So those that are let in are served, however many more come.

    With more than one slot, bulk work leaves a quarter of them (one at least) free while interactive work is recent.
    The engine does not interrupt an answer: with a single slot, an interactive request waits for one bulk answer at
    most, and ``max_tokens`` is the bound on that. A request for several answers starts when as many slots are free.

    Where the engine says what it has to do, requests are handed to it only while it can run them: one that it would
    keep waiting waits here instead, where priorities and deadlines count, and where it can still be refused. Until its
    next reading the prompts' tokens tell, which fill the key-value cache.

    Args:
        concurrency: most answers that the engine writes at once.
        queue: most answers that wait.
        engine_load: the latest reading of the engine's load; None where there is none.
        clock: source of time.
        later: calls something after so many seconds.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        queue: int,
        engine_load: Callable[[], EngineLoad | None] = lambda: None,
        clock: Clock = monotonic,
        later: Callable[[float, Callable[[], None]], object] = _on_the_loop,
    ) -> None:
        self._later = later
        self._concurrency = concurrency
        self._queue = queue
        self._engine_load = engine_load
        self._clock = clock
        self._tokens_let_in = 0
        self._tokens_running = 0
        self._looks_again = False
        self._kept_free = max(1, concurrency // 4) if concurrency > 1 else 0
        places = concurrency + queue
        kept_for_others = {Priority.INTERACTIVE: places // 8, Priority.BULK: places // 4} if queue else {}
        self._places = {lane: places - kept_for_others.get(lane, 0) for lane in Priority}
        self._running = dict.fromkeys(Priority, 0)
        self._started: dict[Place, float] = {}
        self._let_in = dict.fromkeys(Priority, 0)
        self._lanes: dict[Priority, deque[_Waiter]] = {lane: deque() for lane in Priority}
        self._turns = 0
        self._interactive_at = float("-inf")
        self._service_time = ServiceTime(_FIRST_GUESS_SECONDS)
        self._returns = ReturnSchedule(
            clock=clock, shortest_seconds=_SHORTEST_ADVICE_SECONDS, longest_seconds=_LONGEST_ADVICE_SECONDS
        )

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        """For how many slots somebody waits."""
        return sum(waiter.place.slots for lane in self._lanes.values() for waiter in lane)

    @contextmanager
    def place(
        self, deadline: Deadline, priority: Priority = Priority.INTERACTIVE, *, answers: int = 1
    ) -> Iterator[Place]:
        """Let one request in, or refuse it. It takes microseconds: ask before any work is done for the request.

        Args:
            deadline: when nobody waits for it any more.
            priority: its lane.
            answers: how many it wants to its prompt. One that wants more than there are slots takes them all.

        Raises:
            Overloaded: too many are in, or the wait is longer than the deadline; come back after ``retry_after``.
            DeadlineExceeded: the time is up already.
        """
        deadline.require()
        if priority is Priority.INTERACTIVE:
            self._interactive_at = self._clock()
        place = Place(self, deadline, priority, min(answers, self._concurrency))
        self._require_room(place)
        self._require_time(place)
        self._let_in[priority] += place.slots
        try:
            yield place
        finally:
            self._let_in[priority] -= place.slots

    @contextmanager
    def idle_slot(self) -> Iterator[None]:
        """Hold a slot while nobody else does, for a check of the engine: who comes meanwhile takes the next or waits.

        Raises:
            Overloaded: somebody has a slot or waits for one.
        """
        if self.running or self.waiting:
            raise Overloaded("The model is busy.", reason="ENGINE_BUSY", retry_after=self._service_time.mean)
        self._running[Priority.INTERACTIVE] += 1
        try:
            yield
        finally:
            self._give_back(Priority.INTERACTIVE, 1)  # not learned from: it says nothing about requests

    # -- for Place ------------------------------------------------------------------------------------------------

    @contextmanager
    def tokens(self, tokens: int) -> Iterator[None]:
        """Count a prompt's tokens among those let in. Raises Overloaded where there are too many."""
        self._require_tokens(tokens)
        self._tokens_let_in += tokens
        try:
            yield
        finally:
            self._tokens_let_in -= tokens

    async def enter(self, place: Place, tokens: int) -> None:
        """Wait for a place's slots. Raises DeadlineExceeded."""
        waiter = _Waiter(place, tokens)
        lane = self._lanes[place.priority]
        lane.append(waiter)
        self._hand_out()
        try:
            if not waiter.turn.done():
                async with asyncio.timeout(place.deadline.remaining()):
                    await waiter.turn
            waiter.turn.result()
        except BaseException as error:
            if waiter in lane:
                lane.remove(waiter)
            elif waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self.leave(place, tokens)  # the slot was handed over in the moment the waiting ended: pass it on
            if isinstance(error, TimeoutError):
                raise _too_late() from None
            raise

    def begin(self, place: Place) -> float:
        """The place has its slot; the time."""
        started = self._started[place] = self._clock()
        return started

    def end(self, place: Place, started: float, *, whole: bool) -> None:
        """The place's work is over; ``whole`` where it was not broken off."""
        self._started.pop(place, None)
        seconds = self._clock() - started
        (self._service_time.learn if whole else self._service_time.learn_at_least)(seconds)

    def leave(self, place: Place, tokens: int) -> None:
        """Give a place's slots back to whoever is next."""
        self._tokens_running -= tokens
        self._give_back(place.priority, place.slots)

    # -- refusals -------------------------------------------------------------------------------------------------

    def _require_room(self, place: Place) -> None:
        inside = sum(self._let_in.values())
        if not inside:
            return
        room = self._slots + self._queue - inside
        if place.slots <= min(room, self._places[place.priority] - self._let_in[place.priority]):
            return
        raise Overloaded(
            f"The model is busy and {inside} answers are before this one; come back later.",
            reason="QUEUE_FULL",
            retry_after=self._retry_after(self._turn_seconds, place.slots),
        )

    def _require_time(self, place: Place) -> None:
        if self._may_start(place):
            return
        now = self._clock()
        unfinished = sum(
            self._service_time.left(now - started) * other.slots for other, started in self._started.items()
        )
        done_after = self._service_time.longest((self._ahead(place.priority) + unfinished) / self._slots + 1)
        if done_after <= place.deadline.remaining():
            return
        raise Overloaded(
            "The queue is longer than the request's deadline allows; come back later or allow more time.",
            reason="QUEUE_LONGER_THAN_DEADLINE",
            retry_after=self._retry_after(done_after - place.deadline.remaining(), place.slots),
        )

    def _require_tokens(self, tokens: int) -> None:
        load = self._engine_load()
        if load is None or not load.kv_tokens or not self._tokens_let_in:
            return
        excess = (self._tokens_let_in + tokens) / load.kv_tokens - WAITING_CACHES
        if excess <= 0:
            return
        raise Overloaded(
            f"The prompts before this one hold {self._tokens_let_in} tokens; come back later.",
            reason="QUEUE_FULL_OF_TOKENS",
            retry_after=self._retry_after(excess * self._service_time.mean),
        )

    def _ahead(self, priority: Priority) -> int:
        """Answers without a slot that go before a new one of this lane."""
        interactive, bulk = (self._let_in[lane] - self._running_let_in(lane) for lane in Priority)
        if priority is Priority.INTERACTIVE:
            return interactive + min(bulk, interactive // INTERACTIVE_TURNS + 1)
        # Where interactive requests wait now, more will come, and each bulk turn lets as many pass as it may.
        return bulk + ((bulk + 1) * INTERACTIVE_TURNS if interactive else 0)

    def _running_let_in(self, lane: Priority) -> int:
        return min(self._running[lane], self._let_in[lane])  # a check's slot belongs to nobody who was let in

    @property
    def _turn_seconds(self) -> float:
        """Seconds from one answer that is done to the next."""
        return self._service_time.mean / self._slots

    @property
    def _slots(self) -> int:
        """How many answers the engine writes at once, as far as that is known."""
        load = self._engine_load()
        if load is None or not is_saturated(load):
            return self._concurrency
        return max(1, min(self._concurrency, load.running))

    def _retry_after(self, until_there_is_room: float, slots: int = 1) -> float:
        return self._returns.next(slots * self._turn_seconds, until_there_is_room)

    # -- turns ----------------------------------------------------------------------------------------------------

    def _may_start(self, place: Place, tokens: int = 0) -> bool:
        running, bulk = self.running, self._running[Priority.BULK]
        if running + place.slots > self._concurrency or (running and not self._engine_can_run(tokens)):
            return False
        if place.priority is not Priority.BULK or not bulk:
            return True
        recent = self._clock() - self._interactive_at < RECENT_SECONDS
        return not recent or bulk + place.slots <= self._concurrency - self._kept_free

    def _engine_can_run(self, tokens: int) -> bool:
        """Whether it would begin at once, by its latest reading and by what it was handed. Unknown means yes."""
        load = self._engine_load()
        if load is None:
            return True
        return not is_saturated(load) and (not load.kv_tokens or self._tokens_running + tokens <= load.kv_tokens)

    def _hand_out(self) -> None:
        while (found := self._next()) is not None:
            self._running[found.place.priority] += found.place.slots
            self._tokens_running += found.tokens
            found.turn.set_result(None)
        if not self._looks_again and any(self._lanes.values()) and self._engine_load() is not None:
            # What holds them back may end without anybody leaving: by the next reading.
            self._looks_again = True
            self._later(READ_EVERY_SECONDS, self._look_again)

    def _give_back(self, lane: Priority, slots: int) -> None:
        self._running[lane] -= slots
        self._hand_out()

    def _look_again(self) -> None:
        self._looks_again = False
        self._hand_out()

    def _next(self) -> _Waiter | None:
        for lane in self._lanes.values():
            _forget_those_gone(lane)
        interactive, bulk = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BULK]
        bulk_may = bool(bulk) and self._may_start(bulk[0].place, bulk[0].tokens)
        interactive_may = bool(interactive) and self._may_start(interactive[0].place, interactive[0].tokens)
        # An interactive one that needs more room than there is waits for it: bulk ones do not slip past it into that.
        if bulk_may and (not interactive or self._turns >= INTERACTIVE_TURNS):
            self._turns = 0
            return bulk.popleft()
        if interactive_may:
            self._turns += bool(bulk)
            return interactive.popleft()
        return None


def _forget_those_gone(lane: deque[_Waiter]) -> None:
    """Take those off the head who left (they say so themselves a moment later) or whose time is up."""
    while lane and (lane[0].turn.done() or lane[0].place.deadline.expired):
        waiter = lane.popleft()
        if not waiter.turn.done():
            waiter.turn.set_exception(_too_late())


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The request's time was up while it waited for the model; allow more time, or ask again later."
    )
