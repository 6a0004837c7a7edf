"""What refused callers are told, and what becomes of those that obey."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import pytest

from mesh.resilience import ReturnSchedule
from mesh.testing import FakeClock


def test_each_caller_gets_a_place_of_its_own_behind_the_backlog() -> None:
    """The first is told the backlog, every other one the work of those before it on top."""
    schedule = ReturnSchedule(FakeClock())
    told = [schedule.next(0.5, backlog_seconds=2.0) for _ in range(4)]
    assert told == pytest.approx([2.0, 2.5, 3.0, 3.5])


def test_places_that_went_by_are_not_kept() -> None:
    """After a quiet time the next caller is told the backlog alone."""
    clock = FakeClock()
    schedule = ReturnSchedule(clock)
    for _ in range(10):
        schedule.next(0.5)
    clock.advance(60)
    assert schedule.next(0.5, backlog_seconds=1.0) == pytest.approx(1.0)


def test_places_move_nearer_as_time_passes() -> None:
    """What is told are seconds from now."""
    clock = FakeClock()
    schedule = ReturnSchedule(clock)
    schedule.next(4.0)
    clock.advance(1.0)
    assert schedule.next(4.0) == pytest.approx(3.0)


def test_nobody_is_told_less_than_the_shortest_or_more_than_the_longest_time() -> None:
    """The bounds hold whatever the work and the backlog."""
    schedule = ReturnSchedule(FakeClock(), shortest_seconds=0.2, longest_seconds=5.0)
    told = [schedule.next(work, backlog) for work in (0.0, 0.01, 3.0) for backlog in (0.0, 1.0, 1000.0)]
    assert min(told) == 0.2
    assert max(told) == 5.0


def test_callers_beyond_the_longest_time_do_not_push_the_schedule_further() -> None:
    """A million refusals in one moment leave no place later than the longest time and one caller's work."""
    clock = FakeClock()
    schedule = ReturnSchedule(clock, longest_seconds=10.0)
    for _ in range(10_000):
        schedule.next(1.0)
    clock.advance(10.5)
    assert schedule.next(1.0) == pytest.approx(0.5)


def test_nonsense_is_refused() -> None:
    """The bounds have an order."""
    with pytest.raises(ValueError, match="shortest"):
        ReturnSchedule(shortest_seconds=2.0, longest_seconds=1.0)


Advice = Callable[[float, float], float]
"""From work and backlog to the time to come back after, all in seconds."""


def arrivals_until_served(clock: FakeClock, advice: Advice, *, clients: int, rate: float, room: int) -> list[int]:
    """How often each of ``clients`` comes, that all begin in one moment and obey, until a server lets it in.

    The server holds ``room`` requests and finishes one after the other, ``rate`` in a second.
    """
    arrivals = [0] * clients
    work = 1.0 / rate
    order = itertools.count()
    events = [(clock(), next(order), client) for client in range(clients)]
    done_at: list[float] = []
    while events:
        at, _, client = heapq.heappop(events)
        clock.advance(at - clock())
        done_at = [done for done in done_at if done > clock()]
        arrivals[client] += 1
        if len(done_at) < room:
            done_at.append(max([clock(), *done_at]) + work)
        else:
            backlog = min(done_at) - clock()
            heapq.heappush(events, (clock() + advice(work, backlog), next(order), client))
    return arrivals


@pytest.mark.parametrize(
    ("clients", "rate", "room"), [(50, 10.0, 1), (90, 10.0, 4), (500, 100.0, 32), (1900, 100.0, 32)]
)
def test_clients_that_obey_are_served_at_their_first_or_second_return(clients: int, rate: float, room: int) -> None:
    """However many are refused at once, in the 20 s that two returns can be apart, none comes a fourth time."""
    clock = FakeClock()
    arrivals = arrivals_until_served(clock, ReturnSchedule(clock).next, clients=clients, rate=rate, room=room)
    assert max(arrivals) <= 3


def test_one_time_for_all_would_send_them_again_and_again() -> None:
    """The simulation tells the difference: told the backlog alone, or a second, most come many times."""
    for advice in (lambda _, backlog: max(0.1, backlog), lambda *_: 1.0):
        arrivals = arrivals_until_served(FakeClock(), advice, clients=50, rate=10.0, room=1)
        assert sum(arrivals) > 500
