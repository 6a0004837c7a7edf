"""So many run, so many wait, the rest are told when to come back; and no slot is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llm_service.admission import INTERACTIVE_TURNS, RECENT_SECONDS, Admission
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Overloaded
from mesh.testing import FakeClock

LATER = Deadline.after(3600)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def slot(
    admission: Admission, deadline: Deadline, priority: Priority = Priority.INTERACTIVE
) -> AsyncIterator[None]:
    """Let in, and then a slot."""
    with admission.place(deadline, priority) as place:
        async with place.slot():
            yield


class Visitor:
    """Holds a slot until told to leave."""

    def __init__(
        self, admission: Admission, name: str, log: list[str], priority: Priority = Priority.INTERACTIVE
    ) -> None:
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(admission, name, log, priority))

    async def _visit(self, admission: Admission, name: str, log: list[str], priority: Priority) -> None:
        async with slot(admission, LATER, priority):
            log.append(name)
            await self.leave.wait()


async def test_over_the_queue_the_answer_is_overloaded_with_a_time() -> None:
    """One runs, one waits, the third is refused at once with a retry_after."""
    admission, log = Admission(concurrency=1, queue=1), list[str]()
    first, second = Visitor(admission, "first", log), Visitor(admission, "second", log)
    await settle()
    with pytest.raises(Overloaded) as caught:
        async with slot(admission, LATER):
            pass
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    assert caught.value.reason == "QUEUE_FULL"
    first.leave.set()
    second.leave.set()
    await asyncio.gather(first.task, second.task)
    assert (log, admission.running, admission.waiting) == (["first", "second"], 0, 0)


async def test_retry_after_follows_how_long_requests_take() -> None:
    """After slow requests the advice is to come back later."""
    clock = FakeClock()
    admission = Admission(concurrency=1, queue=0, clock=clock)
    for _ in range(30):
        async with slot(admission, LATER):
            clock.advance(20.0)
    async with slot(admission, LATER):
        with pytest.raises(Overloaded) as caught:
            async with slot(admission, LATER):
                pass
    assert caught.value.retry_after is not None
    assert 15.0 <= caught.value.retry_after <= 60.0


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    """Who goes away while waiting takes no slot, and the next one gets it."""
    admission, log = Admission(concurrency=1, queue=5), list[str]()
    first, gone, last = (Visitor(admission, name, log) for name in ("first", "gone", "last"))
    await settle()
    gone.task.cancel()
    first.leave.set()
    await settle()
    last.leave.set()
    await last.task
    assert (log, admission.running) == (["first", "last"], 0)


async def test_a_slot_handed_to_one_who_just_left_is_passed_on() -> None:
    """Cancelled in the very moment of its turn, a waiter passes the slot on."""
    admission, log = Admission(concurrency=1, queue=5), list[str]()
    first, gone, last = (Visitor(admission, name, log) for name in ("first", "gone", "last"))
    await settle()
    first.leave.set()
    await asyncio.sleep(0)  # first has left and handed its slot over; gone has not run since
    gone.task.cancel()
    await settle()
    last.leave.set()
    await asyncio.wait_for(last.task, 1)
    assert admission.running == 0


async def test_a_time_that_is_up_ends_the_wait() -> None:
    """A waiter whose deadline passes is told so, and the queue forgets it."""
    clock, log = FakeClock(), list[str]()
    admission = Admission(concurrency=1, queue=5, clock=clock)
    await let_in_and_done(admission, clock, 0.0001)  # so it is expected to be done in time
    first = Visitor(admission, "first", log)
    await settle()
    with pytest.raises(DeadlineExceeded):
        async with slot(admission, Deadline.after(0.001)):
            pass
    assert admission.waiting == 0
    first.leave.set()
    await first.task


async def test_nothing_starts_after_its_deadline() -> None:
    """A request whose time is up takes no slot, also where one is free."""
    with pytest.raises(DeadlineExceeded):
        async with slot(Admission(concurrency=1, queue=5), Deadline.after(0)):
            pass


async def test_interactive_goes_first_and_bulk_does_not_starve() -> None:
    """After a few interactive turns a waiting bulk request has its own."""
    admission, log = Admission(concurrency=1, queue=50), list[str]()
    visitors = [Visitor(admission, "first", log)]
    await settle()
    visitors += [Visitor(admission, "bulk", log, Priority.BULK)]
    visitors += [Visitor(admission, f"interactive {number}", log) for number in range(INTERACTIVE_TURNS + 2)]
    await settle()
    for visitor in visitors:
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in visitors))
    assert log.index("bulk") == INTERACTIVE_TURNS + 1


async def test_an_error_inside_frees_the_slot() -> None:
    """A request that fails frees its slot."""
    admission = Admission(concurrency=1, queue=0)
    with pytest.raises(ValueError, match="inside"):
        async with slot(admission, LATER):
            raise ValueError("inside")
    async with slot(admission, LATER):
        assert admission.running == 1


async def let_in_and_done(admission: Admission, clock: FakeClock, seconds: float, times: int = 200) -> None:
    """Teach it how long requests take."""
    for _ in range(times):
        async with slot(admission, LATER):
            clock.advance(seconds)


async def test_a_wait_longer_than_the_deadline_is_refused_on_arrival() -> None:
    """Who could not be done in time hears so at once, with the time after which it can; who has more time waits."""
    clock, log = FakeClock(), list[str]()
    admission = Admission(concurrency=1, queue=50, clock=clock)
    await let_in_and_done(admission, clock, 2.0)
    first = Visitor(admission, "first", log)
    await settle()
    with pytest.raises(Overloaded) as caught:
        async with slot(admission, Deadline.after(3.0, clock)):
            pass
    assert caught.value.reason == "QUEUE_LONGER_THAN_DEADLINE"
    assert caught.value.retry_after is not None
    assert 0.8 < caught.value.retry_after < 1.7
    second = asyncio.create_task(slot(admission, Deadline.after(4.5, clock)).__aenter__())
    await settle()
    assert admission.waiting == 1
    first.leave.set()
    await asyncio.gather(first.task, second)


async def test_a_free_slot_is_never_refused_for_the_past() -> None:
    """However long requests took before, one that can start now does: it may be a short one."""
    clock = FakeClock()
    admission = Admission(concurrency=1, queue=5, clock=clock)
    await let_in_and_done(admission, clock, 100.0)
    async with slot(admission, Deadline.after(1.0, clock)):
        assert admission.running == 1


async def test_requests_broken_off_do_not_shorten_what_is_expected() -> None:
    """Callers who leave after a moment say nothing about how long an answer takes."""
    clock, log = FakeClock(), list[str]()
    admission = Admission(concurrency=1, queue=5, clock=clock)
    await let_in_and_done(admission, clock, 10.0)
    for _ in range(20):
        with pytest.raises(ValueError, match="left"):
            async with slot(admission, LATER):
                raise ValueError("left")
    first = Visitor(admission, "first", log)
    await settle()
    with pytest.raises(Overloaded):
        async with slot(admission, Deadline.after(15.0, clock)):
            pass
    first.leave.set()
    await first.task


async def test_bulk_leaves_a_slot_free_while_interactive_work_is_recent() -> None:
    """With several slots an interactive request starts at once beside a bulk job; without any, bulk has them all."""
    clock, log = FakeClock(), list[str]()
    admission = Admission(concurrency=2, queue=50, clock=clock)
    async with slot(admission, LATER):
        pass
    bulk = [Visitor(admission, f"bulk {number}", log, Priority.BULK) for number in range(4)]
    await settle()
    assert (admission.running, admission.waiting) == (1, 3)
    interactive = Visitor(admission, "interactive", log)
    await settle()
    assert log == ["bulk 0", "interactive"]
    clock.advance(RECENT_SECONDS)
    interactive.leave.set()
    await settle()
    assert (admission.running, log[2:]) == (2, ["bulk 1"])
    for visitor in bulk:
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in (*bulk, interactive)))
    assert admission.running == 0


async def test_no_lane_takes_the_last_places() -> None:
    """A bulk job that fills its share of the queue leaves room for interactive requests, and they for it."""
    admission, log = Admission(concurrency=1, queue=7), list[str]()
    visitors = [Visitor(admission, "bulk", log, Priority.BULK) for _ in range(6)]
    await settle()
    with pytest.raises(Overloaded):
        async with slot(admission, LATER, Priority.BULK):
            pass
    visitors += [Visitor(admission, "interactive", log) for _ in range(2)]
    await settle()
    assert admission.waiting == 7
    for visitor in visitors:
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in visitors))
    assert log.count("interactive") == 2
    visitors = [Visitor(admission, "interactive", log) for _ in range(7)]
    await settle()
    with pytest.raises(Overloaded):
        async with slot(admission, LATER):
            pass
    visitors.append(Visitor(admission, "one of bulk", log, Priority.BULK))
    await settle()
    for visitor in visitors:
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in visitors))
    assert "one of bulk" in log


async def test_a_refusal_comes_before_any_work() -> None:
    """What a place is asked for is all that a refused request costs; the queue does not grow by it."""
    admission, log = Admission(concurrency=1, queue=0), list[str]()
    first = Visitor(admission, "first", log)
    await settle()
    for _ in range(1000):
        with pytest.raises(Overloaded), admission.place(LATER):
            raise AssertionError("let in")
    assert (admission.waiting, admission.running) == (0, 1)
    first.leave.set()
    await first.task


async def test_two_hundred_who_leave_at_once_leave_nothing_behind() -> None:
    """A storm of cancels empties queue and slots within one turn of the loop for each."""
    admission, log = Admission(concurrency=4, queue=300), list[str]()
    visitors = [Visitor(admission, str(number), log) for number in range(200)]
    await settle()
    assert (admission.running, admission.waiting) == (4, 196)
    for visitor in visitors:
        visitor.task.cancel()
    await asyncio.gather(*(visitor.task for visitor in visitors), return_exceptions=True)
    assert (admission.running, admission.waiting, len(log)) == (0, 0, 4)


async def test_who_waited_past_its_time_is_not_started() -> None:
    """The deadline is looked at again when the turn comes: what nobody waits for is not begun."""
    clock, log = FakeClock(), list[str]()
    admission = Admission(concurrency=1, queue=5, clock=clock)
    first = Visitor(admission, "first", log)
    await settle()

    async def impatient() -> None:
        async with slot(admission, Deadline.after(30.0, clock)):
            log.append("too late")

    waiting = asyncio.create_task(impatient())
    await settle()
    clock.advance(31.0)
    first.leave.set()
    with pytest.raises(DeadlineExceeded):
        await waiting
    await first.task
    assert (log, admission.running, admission.waiting) == (["first"], 0, 0)
