"""The limiter in front of a simulated server that gets far too much, on a clock that only the simulation moves."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from mesh.context import Priority
from mesh.errors import Overloaded
from mesh.resilience import AdaptiveLimiter
from mesh.resilience.limiter import Slot
from mesh.testing import FakeClock

BULK = Priority.BULK
INTERACTIVE = Priority.INTERACTIVE


def end(slot: Slot, error: BaseException | None = None) -> None:
    """One call ends, by ``error`` or well."""
    slot.__exit__(type(error) if error else None, error, None)


@dataclass
class Outcomes:
    """When what became of the calls of one lane, in seconds since the beginning."""

    answered: list[float] = field(default_factory=list)
    refused_by_hop: list[float] = field(default_factory=list)
    refused_by_server: list[float] = field(default_factory=list)


def per_second(times: list[float], begin: float, until: float) -> float:
    """Mean rate between two times."""
    return sum(begin <= time < until for time in times) / (until - begin)


class Simulation:
    """A limiter before a server that serves ``slots`` at once for ``seconds`` each, and lets ``queue`` wait.

    As workers do, it serves interactive calls first, and keeps a quarter of what it holds from bulk calls.
    Calls come by chance at a rate that does not depend on how they fare (open loop); the way takes 2 ms both ways.
    """

    TRIP = 0.001

    def __init__(self, limiter: AdaptiveLimiter, clock: FakeClock, *, slots: int, queue: int, seconds: float) -> None:
        self.limiter = limiter
        self.rate = slots / seconds
        self.outcomes = {priority: Outcomes() for priority in Priority}
        self._clock = clock
        self._began = clock()
        self._slots = self._room = slots
        self._queue = queue
        self._seconds = seconds
        self._waiting: dict[Priority, deque[Callable[[], None]]] = {priority: deque() for priority in Priority}
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._rng = random.Random(11)

    def offer(self, priority: Priority, load: Callable[[float], float], until: float) -> None:
        """Calls at the rate ``load(time)`` until then."""

        def arrive() -> None:
            if self.now < until:
                self._in(self._rng.expovariate(load(self.now)), arrive)
                self._call(priority)

        arrive()

    def run(self) -> None:
        """Until nothing happens any more."""
        while self._events:
            at, _, event = heapq.heappop(self._events)
            self._clock.advance(max(0.0, at - self._clock()))
            event()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def _in(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._clock() + seconds, next(self._order), event))

    def _call(self, priority: Priority) -> None:
        outcomes = self.outcomes[priority]
        try:
            slot = self.limiter.slot(priority)
        except Overloaded:
            outcomes.refused_by_hop.append(self.now)
            return

        def answered() -> None:
            outcomes.answered.append(self.now)
            end(slot)

        def refused() -> None:
            outcomes.refused_by_server.append(self.now)
            end(slot, Overloaded("full", reason="QUEUE_FULL"))

        self._in(self.TRIP, partial(self._reach, priority, answered, refused))

    def _reach(self, priority: Priority, answered: Callable[[], None], refused: Callable[[], None]) -> None:
        held = self._slots - self._room + sum(map(len, self._waiting.values()))
        holds = self._slots + self._queue
        if held < (holds - holds // 4 if priority is BULK else holds):
            self._waiting[priority].append(answered)
            self._serve()
        else:
            self._in(self.TRIP, refused)

    def _serve(self) -> None:
        while self._room and (lane := self._waiting[INTERACTIVE] or self._waiting[BULK]):
            self._room -= 1
            answered = lane.popleft()
            self._in(self._rng.uniform(0.8, 1.2) * self._seconds, partial(self._done, answered))

    def _done(self, answered: Callable[[], None]) -> None:
        self._room += 1
        self._in(self.TRIP, answered)
        self._serve()


SERVERS = pytest.mark.parametrize(
    ("slots", "queue", "seconds", "refused_there"),
    [(1, 4, 0.01, 0.03), (1, 4, 0.1, 0.03), (4, 16, 0.02, 0.005), (32, 64, 0.1, 0.001)],
    ids=["one-at-a-time", "one-at-a-time-slow", "four", "batches"],
)


@SERVERS
def test_ten_times_too_much_for_long_costs_no_goodput(
    slots: int, queue: int, seconds: float, refused_there: float
) -> None:
    """After the first second the server is as busy as it can be, and nearly all refusals are made here.

    Once the load falls, everything is served within two seconds.
    """
    clock = FakeClock()
    simulation = Simulation(AdaptiveLimiter(clock=clock), clock, slots=slots, queue=queue, seconds=seconds)
    rate = simulation.rate
    simulation.offer(INTERACTIVE, lambda now: 10 * rate if now < 20 else 0.5 * rate, until=30)
    simulation.run()
    outcomes = simulation.outcomes[INTERACTIVE]
    assert per_second(outcomes.answered, 1, 20) >= 0.95 * rate
    here, there = (per_second(times, 1, 20) for times in (outcomes.refused_by_hop, outcomes.refused_by_server))
    assert there / (here + there) <= refused_there
    assert per_second(outcomes.refused_by_hop + outcomes.refused_by_server, 22, 30) <= 0.01 * rate


def test_a_minimum_above_what_the_server_holds_would_let_the_overload_through() -> None:
    """Why the minimum is four: with eight, a server that holds five refuses most of the overload itself."""
    clock = FakeClock()
    simulation = Simulation(AdaptiveLimiter(minimum=8, clock=clock), clock, slots=1, queue=4, seconds=0.01)
    simulation.offer(INTERACTIVE, lambda _: 10 * simulation.rate, until=10)
    simulation.run()
    outcomes = simulation.outcomes[INTERACTIVE]
    assert len(outcomes.refused_by_server) > len(outcomes.refused_by_hop)


@SERVERS
def test_a_bulk_job_that_saturates_the_worker_refuses_no_interactive_call(
    slots: int, queue: int, seconds: float, refused_there: float
) -> None:
    """Bulk work at ten times the rate beside interactive work at a fifth of it: the hop lets every such call in."""
    clock = FakeClock()
    simulation = Simulation(AdaptiveLimiter(clock=clock), clock, slots=slots, queue=queue, seconds=seconds)
    rate = simulation.rate
    simulation.offer(BULK, lambda _: 10 * rate, until=20)
    simulation.offer(INTERACTIVE, lambda _: 0.2 * rate, until=20)
    simulation.run()
    interactive, bulk = simulation.outcomes[INTERACTIVE], simulation.outcomes[BULK]
    by_hop = len([time for time in interactive.refused_by_hop if time >= 1])
    by_server = len(interactive.refused_by_server)
    assert by_hop <= 0.01 * len(interactive.answered)
    # One more, since the slowest server answers so few that one is a fortieth of them.
    assert by_server <= 0.05 * len(interactive.answered) + 1
    assert per_second(interactive.answered + bulk.answered, 1, 20) >= 0.95 * rate
