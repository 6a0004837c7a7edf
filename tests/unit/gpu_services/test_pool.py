"""Children are given out warm, fairly, and never twice after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from gpu_services.chunking.pool import WITHOUT_CHILD_SECONDS, ChildPool, DocumentProcess, PoolLimits
from gpu_services.chunking.queueing import RECENT_SECONDS
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Overloaded, Unavailable
from mesh.testing import FakeClock

ScriptedChild = Any
LATER = Deadline.after(3600)


async def _no_pause(seconds: float) -> None:
    """Time that does not pass."""
    await asyncio.sleep(0)


async def _settle() -> None:
    """Let everything that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


class _Starter:
    """Starts scripted children; the first ``failures`` attempts after the first child fail."""

    def __init__(self, child_class: Callable[[], DocumentProcess], failures: int = 0) -> None:
        self.child_class = child_class
        self.failures = failures
        self.children: list[Any] = []

    async def __call__(self) -> DocumentProcess:
        if self.children and self.failures > 0:
            self.failures -= 1
            raise Unavailable("no memory")
        self.children.append(self.child_class())
        return self.children[-1]  # type: ignore[no-any-return]


def _pool(starter: Callable[[], Awaitable[DocumentProcess]], clock: Clock = monotonic, **limits: int) -> ChildPool:
    chosen = {"children": 1, "max_queued": 8, "documents_per_child": 100, **limits}
    return ChildPool(starter, PoolLimits(**chosen), pause=_no_pause, clock=clock)


async def test_a_child_is_used_again_until_its_time_is_served(scripted_child: ScriptedChild) -> None:
    """After its share of documents a child is closed and another takes its place."""
    starter = _Starter(scripted_child)
    pool = _pool(starter, documents_per_child=2)
    await pool.start()
    used = []
    for _ in range(3):
        async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as child:
            child.documents += 1
            used.append(child)
        await _settle()
    assert used[0] is used[1] is not used[2]
    assert starter.children[0].closed
    await pool.stop()
    assert all(child.closed for child in starter.children)


async def test_a_killed_child_is_replaced_also_when_starts_fail_for_a_while(scripted_child: ScriptedChild) -> None:
    """A machine short of memory makes the pool unhealthy, and the pool mends by itself."""
    starter = _Starter(scripted_child, failures=3)
    pool = _pool(starter)
    await pool.start()
    async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as first:
        first.kill()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    failures = [pool.unhealthy()]
    async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as second:
        assert second is not first
    failures.append(pool.unhealthy())
    assert isinstance(failures[0], Unavailable)
    assert failures[1] is None
    await pool.stop()


async def test_an_idle_child_that_died_is_not_given_out(scripted_child: ScriptedChild) -> None:
    """Whoever kills an idle child costs nobody a document."""
    starter = _Starter(scripted_child)
    pool = _pool(starter)
    await pool.start()
    starter.children[0].kill()
    async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as child:
        assert child is starter.children[1]
    await pool.stop()


async def test_one_document_too_many_is_refused_with_when_to_come_back(scripted_child: ScriptedChild) -> None:
    """Those at work and those in line count together."""
    pool = _pool(_Starter(scripted_child), max_queued=1)
    await pool.start()
    with pool.place(LATER, Priority.INTERACTIVE), pool.place(LATER, Priority.INTERACTIVE):
        with pytest.raises(Overloaded) as refused, pool.place(LATER, Priority.INTERACTIVE):
            raise AssertionError("let in")
        assert refused.value.reason == "QUEUE_FULL"
        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 0
    with pool.place(LATER, Priority.INTERACTIVE):
        pass
    await pool.stop()


async def test_interactive_goes_first_and_bulk_is_not_starved(scripted_child: ScriptedChild) -> None:
    """With both lanes full, every fifth child is bulk's."""
    pool = _pool(_Starter(scripted_child))
    await pool.start()
    served: list[str] = []

    async def work(lane: Priority) -> None:
        async with pool.child(Deadline.after(5), lane):
            served.append(lane.value)

    async with pool.child(Deadline.after(5), Priority.INTERACTIVE):
        tasks = [asyncio.create_task(work(Priority.BULK)) for _ in range(2)]
        tasks += [asyncio.create_task(work(Priority.INTERACTIVE)) for _ in range(6)]
        await _settle()
    await asyncio.gather(*tasks)
    assert served == ["interactive"] * 4 + ["bulk"] + ["interactive"] * 2 + ["bulk"]
    await pool.stop()


async def test_who_gives_up_waiting_loses_no_child(scripted_child: ScriptedChild) -> None:
    """A cancelled waiter and one whose time is up leave the line; the child goes to the next."""
    pool = _pool(_Starter(scripted_child))
    await pool.start()

    async def wait(deadline: Deadline) -> None:
        async with pool.child(deadline, Priority.INTERACTIVE):
            pass

    async with pool.child(Deadline.after(5), Priority.INTERACTIVE):
        cancelled = asyncio.create_task(wait(Deadline.after(5)))
        await _settle()
        cancelled.cancel()
        with pytest.raises(DeadlineExceeded):
            await wait(Deadline.after(0))
        await asyncio.gather(cancelled, return_exceptions=True)
    assert pool.free
    await wait(Deadline.after(5))
    await pool.stop()


async def test_a_child_given_in_the_moment_of_giving_up_is_given_on(scripted_child: ScriptedChild) -> None:
    """A waiter cancelled just after its child arrived puts the child back."""
    pool = _pool(_Starter(scripted_child))
    await pool.start()
    first = pool.child(Deadline.after(5), Priority.INTERACTIVE)
    await first.__aenter__()
    second = asyncio.create_task(pool.child(Deadline.after(5), Priority.INTERACTIVE).__aenter__())
    await _settle()
    await first.__aexit__(None, None, None)  # gives the child to the second …
    second.cancel()  # … which is cancelled before it runs
    await asyncio.gather(second, return_exceptions=True)
    assert pool.free
    await pool.stop()


async def test_stopping_waits_until_every_child_has_ended(scripted_child: ScriptedChild) -> None:
    """Also for one that was just retired: nothing outlives the worker's event loop."""
    starter = _Starter(scripted_child)
    pool = _pool(starter)
    await pool.start()
    async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as child:
        child.kill()
    await pool.stop()
    assert starter.children[0].closed


async def test_a_child_that_ends_on_its_way_to_the_next_in_line_is_replaced(scripted_child: ScriptedChild) -> None:
    """Who was handed a dead child keeps its turn and gets the replacement, before those that came later."""
    starter = _Starter(scripted_child)
    pool = _pool(starter)
    await pool.start()
    served: list[tuple[str, Any]] = []

    async def work(name: str) -> None:
        async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as child:
            served.append((name, child))

    async with pool.child(Deadline.after(5), Priority.INTERACTIVE):
        tasks = [asyncio.create_task(work(name)) for name in ("second", "third")]
        await _settle()
    starter.children[0].kill()  # it is the second's by now, which has not run yet
    await asyncio.gather(*tasks)
    assert served == [("second", starter.children[1]), ("third", starter.children[1])]
    await pool.stop()


async def test_a_dead_idle_child_is_not_free_and_can_be_replaced_before_a_document_comes(
    scripted_child: ScriptedChild,
) -> None:
    """The pool says that nothing is free, and after the replacement that something is."""
    starter = _Starter(scripted_child)
    pool = _pool(starter)
    await pool.start()
    starter.children[0].kill()
    free = [pool.free]
    pool.replace_dead()
    await _settle()
    free.append(pool.free)
    assert free == [False, True]
    assert starter.children[0].closed
    await pool.stop()


async def test_a_pool_without_any_child_is_unhealthy_and_one_with_a_child_is_not(scripted_child: ScriptedChild) -> None:
    """A replacement that cannot be started is no reason to stop serving while another child is there."""
    starter = _Starter(scripted_child)
    pool = _pool(starter, children=2)
    await pool.start()
    await _settle()
    starter.failures = 10**9
    starter.children[0].kill()
    seen = [pool.unhealthy()]
    await _settle()
    seen.append(pool.unhealthy())
    starter.children[1].kill()
    pool.unhealthy()
    await _settle()
    seen.append(pool.unhealthy())
    starter.failures = 0
    await _settle()
    seen.append(pool.unhealthy())
    assert [seen[0], seen[1], seen[3]] == [None] * 3
    assert isinstance(seen[2], Unavailable)
    await pool.stop()


async def test_a_start_that_hangs_makes_a_pool_without_children_unhealthy(scripted_child: ScriptedChild) -> None:
    """For a moment a pool may be without a child; when none comes up, it says so within ten seconds."""
    starter, clock = _Starter(scripted_child), FakeClock()
    may_start = asyncio.Event()
    may_start.set()

    async def start() -> DocumentProcess:
        await may_start.wait()
        return await starter()

    pool = _pool(start, clock)
    await pool.start()
    may_start.clear()
    starter.children[0].kill()
    seen = [pool.unhealthy()]
    clock.advance(WITHOUT_CHILD_SECONDS)
    seen.append(pool.unhealthy())
    may_start.set()
    await _settle()
    seen.append(pool.unhealthy())
    assert seen[0] is seen[2] is None
    assert seen[1] is not None
    assert seen[1].reason == "CHILD_STARTING"
    assert WITHOUT_CHILD_SECONDS < 10
    await pool.stop()


async def test_a_pool_that_cannot_start_goes_on_trying(scripted_child: ScriptedChild) -> None:
    """The first child too may come up late, and whatever prevented it is no end."""
    starter = _Starter(scripted_child)
    failures: list[Exception] = [Unavailable("no memory"), ValueError("unforeseen")]

    async def start() -> DocumentProcess:
        if failures:
            raise failures.pop(0)
        return await starter()

    pool = _pool(start)
    await pool.start()
    assert pool.free
    await pool.stop()


async def test_bulk_leaves_a_child_free_while_interactive_work_is_recent(scripted_child: ScriptedChild) -> None:
    """With two children an interactive document starts at once beside a bulk job; without any, bulk has both."""
    clock = FakeClock()
    pool = _pool(_Starter(scripted_child), clock, children=2)
    await pool.start()
    await _settle()
    served: list[str] = []
    leave = {name: asyncio.Event() for name in ("bulk 1", "bulk 2", "bulk 3", "interactive")}

    async def work(name: str, lane: Priority) -> None:
        with pool.place(LATER, lane):
            async with pool.child(LATER, lane):
                served.append(name)
                await leave[name].wait()

    with pool.place(LATER, Priority.INTERACTIVE):
        pass  # somebody was here a moment ago
    tasks = [asyncio.create_task(work(f"bulk {number}", Priority.BULK)) for number in (1, 2, 3)]
    await _settle()
    tasks.append(asyncio.create_task(work("interactive", Priority.INTERACTIVE)))
    await _settle()
    assert served == ["bulk 1", "interactive"]
    clock.advance(RECENT_SECONDS)
    leave["interactive"].set()
    await _settle()
    assert served[2:] == ["bulk 2"]
    for event in leave.values():
        event.set()
    await asyncio.gather(*tasks)
    await pool.stop()


async def test_bulk_uploads_never_take_the_last_places(scripted_child: ScriptedChild) -> None:
    """However many bulk documents are being uploaded, an interactive one is let in."""
    pool = _pool(_Starter(scripted_child), max_queued=7)
    await pool.start()
    with ExitStack() as uploads:
        for _ in range(6):
            uploads.enter_context(pool.place(LATER, Priority.BULK))
        with pytest.raises(Overloaded):
            uploads.enter_context(pool.place(LATER, Priority.BULK))
        for _ in range(2):
            uploads.enter_context(pool.place(LATER, Priority.INTERACTIVE))
    await pool.stop()


async def test_a_wait_longer_than_the_deadline_is_refused_before_the_upload(scripted_child: ScriptedChild) -> None:
    """Who could not be done in time hears so at once, with the time after which it can."""
    clock = FakeClock()
    pool = _pool(_Starter(scripted_child), clock)
    await pool.start()
    for _ in range(99):
        async with pool.child(LATER, Priority.INTERACTIVE):
            clock.advance(2.0)
    async with pool.child(LATER, Priority.INTERACTIVE):
        with pytest.raises(Overloaded) as refused, pool.place(Deadline.after(3.0, clock), Priority.INTERACTIVE):
            raise AssertionError("let in")
        with pool.place(Deadline.after(4.5, clock), Priority.INTERACTIVE):
            pass
    assert refused.value.reason == "QUEUE_LONGER_THAN_DEADLINE"
    assert refused.value.retry_after is not None
    assert 0.8 < refused.value.retry_after < 1.7
    await pool.stop()


async def test_a_check_teaches_nothing_about_documents(scripted_child: ScriptedChild) -> None:
    """The canary's small document does not make the pool expect that all are small."""
    clock = FakeClock()
    pool = _pool(_Starter(scripted_child), clock)
    await pool.start()
    async with pool.child(LATER, Priority.INTERACTIVE):
        clock.advance(10.0)
    for _ in range(100):
        async with pool.child(LATER, Priority.BULK, check=True):
            clock.advance(0.01)
    async with pool.child(LATER, Priority.INTERACTIVE):
        with pytest.raises(Overloaded), pool.place(Deadline.after(15.0, clock), Priority.INTERACTIVE):
            raise AssertionError("let in")
    await pool.stop()


async def test_the_children_take_turns(scripted_child: ScriptedChild) -> None:
    """The canary meets every idle child, so that none is broken unnoticed."""
    starter = _Starter(scripted_child)
    pool = _pool(starter, children=3)
    await pool.start()
    await _settle()
    met = []
    for _ in range(3):
        async with pool.child(LATER, Priority.BULK) as child:
            met.append(child)
    assert len(set(met)) == 3
    await pool.stop()
