"""So many run, so many wait, the rest are told when to come back; and no slot is ever lost."""

from __future__ import annotations

import asyncio

import pytest

from llm_service.admission import INTERACTIVE_TURNS, Admission
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Overloaded
from mesh.testing import FakeClock

LATER = Deadline.after(3600)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


class Visitor:
    """Holds a slot until told to leave."""

    def __init__(
        self, admission: Admission, name: str, log: list[str], priority: Priority = Priority.INTERACTIVE
    ) -> None:
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(admission, name, log, priority))

    async def _visit(self, admission: Admission, name: str, log: list[str], priority: Priority) -> None:
        async with admission.slot(LATER, priority):
            log.append(name)
            await self.leave.wait()


async def test_over_the_queue_the_answer_is_overloaded_with_a_time() -> None:
    """One runs, one waits, the third is refused at once with a retry_after."""
    admission, log = Admission(concurrency=1, queue=1), list[str]()
    first, second = Visitor(admission, "first", log), Visitor(admission, "second", log)
    await settle()
    with pytest.raises(Overloaded) as caught:
        async with admission.slot(LATER):
            pass
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1.0
    first.leave.set()
    second.leave.set()
    await asyncio.gather(first.task, second.task)
    assert (log, admission.running, admission.waiting) == (["first", "second"], 0, 0)


async def test_retry_after_follows_how_long_requests_take() -> None:
    """After slow requests the advice is to come back later."""
    clock = FakeClock()
    admission = Admission(concurrency=1, queue=0, clock=clock)
    for _ in range(30):
        async with admission.slot(LATER):
            clock.advance(20.0)
    async with admission.slot(LATER):
        with pytest.raises(Overloaded) as caught:
            async with admission.slot(LATER):
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
    admission, log = Admission(concurrency=1, queue=5), list[str]()
    first = Visitor(admission, "first", log)
    await settle()
    with pytest.raises(DeadlineExceeded):
        async with admission.slot(Deadline.after(0.001)):
            pass
    assert admission.waiting == 0
    first.leave.set()
    await first.task


async def test_nothing_starts_after_its_deadline() -> None:
    """A request whose time is up takes no slot, also where one is free."""
    with pytest.raises(DeadlineExceeded):
        async with Admission(concurrency=1, queue=5).slot(Deadline.after(0)):
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
        async with admission.slot(LATER):
            raise ValueError("inside")
    async with admission.slot(LATER):
        assert admission.running == 1
