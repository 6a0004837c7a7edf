"""What the limiter promises, call by call."""

from __future__ import annotations

import threading

import pytest

from mesh.context import Priority
from mesh.errors import AttemptTimedOut, GpuOutOfMemory, InvalidRequest, MeshError, Overloaded, Unavailable
from mesh.resilience import AdaptiveLimiter
from mesh.resilience.limiter import Slot, places_for_bulk
from mesh.testing import FakeClock

BULK = Priority.BULK
INTERACTIVE = Priority.INTERACTIVE


def take(limiter: AdaptiveLimiter, count: int, priority: Priority = INTERACTIVE) -> list[Slot]:
    """So many calls that are under way."""
    return [limiter.slot(priority) for _ in range(count)]


def end(slot: Slot, error: BaseException | None = None) -> None:
    """One call ends, by ``error`` or well."""
    slot.__exit__(type(error) if error else None, error, None)


def end_all(slots: list[Slot], error: BaseException | None = None) -> None:
    """All of them end alike."""
    for slot in slots:
        end(slot, error)


def fill(limiter: AdaptiveLimiter, priority: Priority) -> list[Slot]:
    """As many calls as get in."""
    slots: list[Slot] = []
    while True:
        try:
            slots.append(limiter.slot(priority))
        except Overloaded:
            return slots


def test_over_the_limit_the_answer_is_no_at_once() -> None:
    """Nothing queues: the call beyond the limit is refused with the time to come back, and a place given back helps."""
    limiter = AdaptiveLimiter(initial=8, clock=FakeClock())
    slots = take(limiter, 8)
    with pytest.raises(Overloaded) as caught:
        limiter.slot()
    assert caught.value.reason == "HOP_LIMIT"
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    end(slots[0])
    limiter.slot()


@pytest.mark.parametrize("priority", Priority)
def test_room_can_be_asked_for_without_taking_it(priority: Priority) -> None:
    """It raises exactly when a slot would, and asking a thousand times takes nothing."""
    limiter = AdaptiveLimiter(initial=8, clock=FakeClock())
    for _ in range(1000):
        limiter.require_room(priority)
    assert limiter.in_flight == 0
    fill(limiter, priority)
    with pytest.raises(Overloaded, match=priority.value):
        limiter.require_room(priority)


@pytest.mark.parametrize("error", [Overloaded("busy"), AttemptTimedOut("slow")])
def test_the_first_sign_of_too_many_brings_the_limit_below_what_was_in_flight(error: MeshError) -> None:
    """With 40 in flight and a limit of 256 it falls to 36, not to 230."""
    limiter = AdaptiveLimiter(initial=256, clock=FakeClock())
    slots = take(limiter, 40)
    end(slots[-1], error)
    assert limiter.limit == 36


def test_what_a_refusal_tells_is_how_many_were_there_when_the_call_arrived() -> None:
    """Of 256 sent at once the 21st is the first refused: the peer takes twenty, however many wait for their no."""
    limiter = AdaptiveLimiter(initial=256, clock=FakeClock())
    slots = take(limiter, 256)
    end(slots[20], Overloaded("busy"))
    assert limiter.limit == 18


@pytest.mark.parametrize("error", [Overloaded("busy"), AttemptTimedOut("slow")])
def test_one_round_of_refusals_shrinks_it_once(error: MeshError) -> None:
    """Calls that were under way when it shrank tell of the time before; those sent after it count again."""
    limiter = AdaptiveLimiter(initial=100, clock=FakeClock())
    slots = take(limiter, 100)
    end(slots.pop(), error)
    assert limiter.limit == 90
    end_all(slots, error)
    assert limiter.limit == 90
    end(take(limiter, 90)[-1], error)
    assert limiter.limit == 81


@pytest.mark.parametrize("priority", Priority)
def test_it_never_shrinks_below_its_minimum(priority: Priority) -> None:
    """A peer that refuses everything still gets a few calls of either lane, by which its recovery is found."""
    limiter = AdaptiveLimiter(initial=100, minimum=4, clock=FakeClock())
    for _ in range(100):
        end_all(fill(limiter, priority), Overloaded("busy"))
    assert len(fill(limiter, priority)) == (4 if priority is INTERACTIVE else 2)


@pytest.mark.parametrize(
    "error",
    [
        GpuOutOfMemory("one item is too large"),
        InvalidRequest("bad"),
        Unavailable("down"),
        ValueError("our bug"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: getattr(error, "reason", type(error).__name__),
)
def test_what_does_not_mean_too_many_neither_shrinks_nor_leaks(error: BaseException) -> None:
    """An item too large for the device, a bad request: the place comes back, that is all."""
    limiter = AdaptiveLimiter(initial=10, clock=FakeClock())
    for priority in Priority:
        for _ in range(100):
            end(limiter.slot(priority), error)
    assert (limiter.limit, limiter.bulk_limit) == (10, 7)
    assert (limiter.in_flight, limiter.bulk_in_flight) == (0, 0)


@pytest.mark.parametrize("priority", Priority)
def test_a_queue_longer_than_a_deadline_is_too_much_only_where_the_deadline_was_not_short(priority: Priority) -> None:
    """One caller in a hurry must not empty the hop for all; where callers have as much time as calls take, it does."""
    clock = FakeClock()
    limiter = AdaptiveLimiter(initial=20, clock=clock)
    for _ in range(50):
        slots = fill(limiter, priority)
        clock.advance(1)
        end_all(slots)
    before = (limiter.limit, limiter.bulk_limit)
    late = Overloaded("no time", reason="QUEUE_LONGER_THAN_DEADLINE")
    for _ in range(20):
        end(limiter.slot(priority, seconds=0.1), late)
    assert (limiter.limit, limiter.bulk_limit) == before
    slots = fill(limiter, priority)
    end(slots.pop())
    end(limiter.slot(priority, seconds=2.0), late)
    end_all(slots, InvalidRequest("bad"))
    assert len(fill(limiter, priority)) < len(slots)


def test_one_late_answer_alone_does_not_narrow_the_hop_and_old_news_gives_way() -> None:
    """A single oversized call at night must not refuse the morning's callers."""
    clock = FakeClock()
    limiter = AdaptiveLimiter(clock=clock)
    end(limiter.slot(), AttemptTimedOut("late"))
    assert limiter.limit == 256
    for _ in range(100):
        end(limiter.slot(), Overloaded("another client has filled the worker"))
    assert limiter.limit < 16
    clock.advance(6)
    assert len(take(limiter, 64)) == 64


def test_it_grows_by_about_one_per_round_while_it_is_in_use_and_never_above_its_maximum() -> None:
    """Ten rounds of as many successes as there are places add ten, give or take one."""
    limiter = AdaptiveLimiter(initial=20, maximum=40, clock=FakeClock())
    slots = fill(limiter, INTERACTIVE)
    for _ in range(10):
        for slot in slots[: limiter.limit]:
            end(slot)
            slots = [*slots[1:], *fill(limiter, INTERACTIVE)]
    assert limiter.limit in (29, 30, 31)
    end_all(slots)
    for _ in range(100):
        end_all(fill(limiter, INTERACTIVE))
    assert limiter.limit == 40


def test_it_does_not_grow_while_nobody_needs_it() -> None:
    """Half of its places in use prove nothing about all of them."""
    limiter = AdaptiveLimiter(initial=10, clock=FakeClock())
    for _ in range(1000):
        end_all(take(limiter, 5))
    assert limiter.limit == 10


@pytest.mark.parametrize(("limit", "bulk"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 6), (9, 6), (10, 7), (256, 192)])
def test_a_quarter_of_the_places_and_two_at_least_are_not_for_bulk_work(limit: int, bulk: int) -> None:
    """Bulk work fills all others, and where there are hardly any places it still gets one."""
    limiter = AdaptiveLimiter(initial=limit, minimum=1, clock=FakeClock())
    assert len(fill(limiter, BULK)) == bulk == limiter.bulk_limit
    assert len(fill(limiter, INTERACTIVE)) == limit - bulk


def test_bulk_work_leaves_the_last_places_free_also_beside_interactive_work() -> None:
    """With half of the places in interactive use, bulk work stops at three quarters all the same."""
    limiter = AdaptiveLimiter(initial=100, clock=FakeClock())
    take(limiter, 50)
    assert len(fill(limiter, BULK)) == 25
    assert len(fill(limiter, INTERACTIVE)) == 25


def test_what_the_peer_refuses_of_bulk_work_shrinks_the_bulk_lane_alone() -> None:
    """Bulk work gives way by itself; interactive work keeps every place."""
    limiter = AdaptiveLimiter(initial=100, clock=FakeClock())
    end(take(limiter, 20, BULK)[-1], Overloaded("busy"))
    assert limiter.bulk_limit == 18
    assert limiter.limit == 100


def test_the_bulk_lane_grows_again_by_its_own_successes() -> None:
    """Interactive successes say nothing about how much bulk work the peer takes."""
    limiter = AdaptiveLimiter(initial=100, clock=FakeClock())
    slots = take(limiter, 20, BULK)
    end(slots.pop(), Overloaded("busy"))
    end_all(slots)
    refused = limiter.bulk_limit
    for _ in range(10):
        end_all(take(limiter, 60))
    assert limiter.bulk_limit == refused
    for _ in range(10):
        end_all(fill(limiter, BULK))
    assert limiter.bulk_limit >= refused + 4


def test_refused_callers_are_told_to_come_back_one_after_another() -> None:
    """Ten in flight that take two seconds each are five a second: the refused are 0.2 s apart."""
    clock = FakeClock()
    limiter = AdaptiveLimiter(initial=10, maximum=10, clock=clock)
    slots = take(limiter, 10)
    for _ in range(100):
        clock.advance(0.2)
        end(slots.pop(0))
        slots += take(limiter, 1)
    told = []
    for _ in range(11):
        with pytest.raises(Overloaded) as caught:
            limiter.slot()
        told.append(caught.value.retry_after or 0.0)
    assert told[10] - told[5] == pytest.approx(1.0, rel=0.01)


def test_threads_never_exceed_the_limit_and_give_everything_back() -> None:
    """Eight threads at once, both lanes: never more in flight than places, and none lost in the end."""
    limiter = AdaptiveLimiter(initial=6, maximum=6)
    seen: list[int] = []

    def work(priority: Priority) -> None:
        for _ in range(500):
            try:
                with limiter.slot(priority):
                    seen.append(limiter.in_flight)
            except Overloaded:
                continue

    threads = [threading.Thread(target=work, args=(priority,)) for priority in Priority for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(seen) <= 6
    assert (limiter.in_flight, limiter.bulk_in_flight) == (0, 0)


@pytest.mark.parametrize("bounds", [{"initial": 4, "minimum": 8}, {"minimum": 0}, {"initial": 9, "maximum": 8}])
def test_nonsense_is_refused(bounds: dict[str, int]) -> None:
    """The bounds have an order."""
    with pytest.raises(ValueError, match="minimum"):
        AdaptiveLimiter(**bounds)  # type: ignore[arg-type]


def test_the_reserve_is_the_only_thing_that_bulk_work_cannot_have() -> None:
    """For every limit the two lanes' places add up, and a quarter is interactive's alone where there are enough."""
    for limit in range(1, 2000):
        reserve = limit - places_for_bulk(limit)
        assert reserve >= min(max(2, limit / 4), limit - 1)
        assert reserve <= max(2, limit / 4 + 1)


def test_a_limit_that_gives_way_lets_nobody_in_above_it() -> None:
    """Long calls from before a shrink still count, however long ago that was."""
    clock = FakeClock()
    limiter = AdaptiveLimiter(initial=100, clock=clock)
    long = take(limiter, 100)
    end(long.pop(), Overloaded("full"))
    before = limiter.limit
    assert before < limiter.in_flight
    clock.advance(60)
    for _ in range(50):
        with pytest.raises(Overloaded):
            limiter.slot()
    assert limiter.limit == before


def test_bulk_work_alone_recovers_from_a_bad_night_too() -> None:
    """Its lane gives way as the whole does."""
    clock = FakeClock()
    limiter = AdaptiveLimiter(clock=clock)
    for _ in range(200):
        end(limiter.slot(BULK), Overloaded("full"))
        end(limiter.slot(), Overloaded("full"))
    for _ in range(60):
        clock.advance(6)
        end_all(fill(limiter, BULK))
    assert limiter.bulk_limit > 32
