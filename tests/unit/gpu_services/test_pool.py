"""Children are given out warm, fairly, and never twice after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from gpu_services.chunking.pool import FAILED_STARTS, WITHOUT_CHILD_SECONDS, ChildPool, DocumentProcess, PoolLimits
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
    chosen = {"children": 1, "reserved": 0, "max_queued": 8, "documents_per_child": 100, **limits}
    return ChildPool(starter, PoolLimits(**chosen), pause=_no_pause, clock=clock)


class _GatedStarter(_Starter):
    """Starts scripted children while the gate is open; a start before a closed one hangs until it opens."""

    def __init__(self, child_class: Callable[[], DocumentProcess]) -> None:
        super().__init__(child_class)
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0

    async def __call__(self) -> DocumentProcess:
        self.begun += 1
        await self.gate.wait()
        return await super().__call__()


async def _use(pool: ChildPool, priority: Priority = Priority.INTERACTIVE, *, check: bool = False) -> Any:
    """Do one document; the child that did it."""
    async with pool.child(Deadline.after(5), priority, check=check) as child:
        pass
    await _settle()
    return child


async def test_a_child_is_used_again_until_its_time_is_served(scripted_child: ScriptedChild) -> None:
    """After its share of documents a child is closed and another takes its place."""
    starter = _Starter(scripted_child)
    pool = _pool(starter, documents_per_child=2)
    await pool.start()
    used = [await _use(pool) for _ in range(3)]
    assert used[0] is used[1] is not used[2]
    assert starter.children[0].closed
    await pool.stop()
    assert all(child.closed for child in starter.children)


async def test_a_child_that_has_served_works_on_until_its_successor_is_warm(scripted_child: ScriptedChild) -> None:
    """However long the successor takes, no document waits for it and the pool stays healthy; then it takes over."""
    starter, clock = _GatedStarter(scripted_child), FakeClock()
    pool = _pool(starter, clock, documents_per_child=2)
    await pool.start()
    starter.gate.clear()
    used = [await _use(pool) for _ in range(5)]
    clock.advance(100 * WITHOUT_CHILD_SECONDS)
    assert pool.unhealthy() is None
    assert starter.begun == 2
    starter.gate.set()
    await _settle()
    used.append(await _use(pool))
    assert used == [starter.children[0]] * 5 + [starter.children[1]]
    assert starter.children[0].closed
    await pool.stop()


async def test_the_successor_is_started_while_the_last_document_is_done(scripted_child: ScriptedChild) -> None:
    """It is warm by the time that it is needed, and until then idle: no more are at work than may be."""
    starter = _GatedStarter(scripted_child)
    pool = _pool(starter, documents_per_child=2)
    await pool.start()
    await _use(pool)
    assert starter.begun == 1
    async with pool.child(LATER, Priority.INTERACTIVE):
        await _settle()
        assert len(starter.children) == 2
        second = asyncio.create_task(_use(pool))
        await _settle()
        assert not pool.free
        assert not second.done()
    assert await second is starter.children[1]
    await pool.stop()


async def test_with_a_child_for_each_document_none_does_two(scripted_child: ScriptedChild) -> None:
    """Also where the successor is late: the next document waits for it, and nobody is told that nothing is served."""
    starter, clock = _GatedStarter(scripted_child), FakeClock()
    pool = _pool(starter, clock, documents_per_child=1)
    await pool.start()
    starter.gate.clear()
    first = await _use(pool)
    second = asyncio.create_task(_use(pool))
    await _settle()
    clock.advance(WITHOUT_CHILD_SECONDS / 2)
    assert pool.unhealthy() is None
    assert not second.done()
    starter.gate.set()
    assert first is not await second
    assert [child.documents for child in starter.children[:2]] == [1, 1]
    await pool.stop()


async def test_a_check_does_not_wear_a_child_out(scripted_child: ScriptedChild) -> None:
    """An idle worker that proves itself every few seconds need not start a process each time."""
    starter = _Starter(scripted_child)
    pool = _pool(starter, documents_per_child=1)
    await pool.start()
    for _ in range(10):
        await _use(pool, Priority.BULK, check=True)
    assert len(starter.children) == 1
    await pool.stop()


async def test_a_lost_child_costs_documents_a_wait_and_no_refusal(scripted_child: ScriptedChild) -> None:
    """They are let in and stand in line while another child starts, as long as a start takes here."""
    starter, clock = _GatedStarter(scripted_child), FakeClock()
    starter.gate.clear()
    pool = _pool(starter, clock)
    starting = asyncio.create_task(pool.start())
    await _settle()
    clock.advance(20.0)  # a slow machine: that is what a start takes
    starter.gate.set()
    await starting
    starter.gate.clear()
    starter.children[0].kill()

    async def work() -> Any:
        with pool.place(Deadline.after(60, clock), Priority.INTERACTIVE):
            return await _use(pool)

    waiting = [asyncio.create_task(work()) for _ in range(3)]
    await _settle()
    clock.advance(40.0)
    assert pool.unhealthy() is None
    starter.gate.set()
    assert await asyncio.gather(*waiting) == [starter.children[1]] * 3
    await pool.stop()


async def test_who_cannot_wait_for_the_child_that_is_coming_hears_so_at_once(scripted_child: ScriptedChild) -> None:
    """What a start takes is part of the wait."""
    starter, clock = _GatedStarter(scripted_child), FakeClock()
    starter.gate.clear()
    pool = _pool(starter, clock)
    starting = asyncio.create_task(pool.start())
    await _settle()
    clock.advance(6.0)
    starter.gate.set()
    await starting
    starter.gate.clear()
    starter.children[0].kill()
    with pytest.raises(Overloaded) as refused, pool.place(Deadline.after(5.0, clock), Priority.INTERACTIVE):
        raise AssertionError("let in")
    assert refused.value.reason == "QUEUE_LONGER_THAN_DEADLINE"
    clock.advance(4.0)
    with pool.place(Deadline.after(5.0, clock), Priority.INTERACTIVE):
        pass
    await pool.stop()


async def test_documents_in_line_are_turned_away_where_no_child_comes_up(scripted_child: ScriptedChild) -> None:
    """They hear the reason when health does, and may be done elsewhere, instead of waiting for their deadline."""
    starter, clock = _GatedStarter(scripted_child), FakeClock()
    pool = _pool(starter, clock)
    await pool.start()
    starter.gate.clear()
    starter.children[0].kill()
    waiting = [asyncio.create_task(_use(pool, lane)) for lane in Priority]
    await _settle()
    clock.advance(10 * WITHOUT_CHILD_SECONDS)
    reason = pool.unhealthy()
    assert reason is not None
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == [reason.reason] * 2
    starter.gate.set()
    await _settle()
    assert await _use(pool) is starter.children[1]
    await pool.stop()


async def test_a_killed_child_is_replaced_also_when_starts_fail_for_a_while(scripted_child: ScriptedChild) -> None:
    """A start or two that fail cost a wait alone; the pool mends by itself."""
    starter = _Starter(scripted_child, failures=FAILED_STARTS - 1)
    pool = _pool(starter)
    await pool.start()
    async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as first:
        first.kill()
    seen = []
    while starter.failures:
        await asyncio.sleep(0)
        seen.append(pool.unhealthy())
    assert await _use(pool) is not first
    assert set(seen) == {None}
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
    pool.arrange()
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


async def test_a_first_child_that_cannot_start_is_told_after_a_few_attempts(
    scripted_child: ScriptedChild, caplog: pytest.LogCaptureFixture
) -> None:
    """The start ends, health has the typed reason and each failure is logged; when one can start, all is well."""
    may_start = asyncio.Event()
    starter = _Starter(scripted_child)

    async def start() -> DocumentProcess:
        if not may_start.is_set():
            raise Unavailable("There is no memory for it.", reason="CHILD_DOES_NOT_START", retry_after=5.0)
        return await starter()

    pool = _pool(start, children=2)
    await pool.start()
    reason = pool.unhealthy()
    assert isinstance(reason, Unavailable)
    assert (reason.reason, reason.message, reason.retry_after) == (
        "CHILD_DOES_NOT_START",
        "There is no memory for it.",
        5.0,
    )
    assert len([record for record in caplog.records if "does not start" in record.message]) >= FAILED_STARTS
    with pytest.raises(Unavailable, match="no memory"), pool.place(LATER, Priority.INTERACTIVE):
        raise AssertionError("let in")
    may_start.set()
    await _settle()
    assert pool.unhealthy() is None
    assert pool.free
    assert len(starter.children) == 2
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


async def test_neither_lane_waits_for_the_other_where_a_child_is_reserved(scripted_child: ScriptedChild) -> None:
    """Beside a bulk job an interactive document starts at once; a lane never has more than its own children."""
    pool = _pool(_Starter(scripted_child), children=1, reserved=1)
    await pool.start()
    await _settle()
    served: list[str] = []
    leave = {name: asyncio.Event() for name in ("bulk 1", "bulk 2", "interactive 1", "interactive 2")}

    async def work(name: str, lane: Priority) -> None:
        with pool.place(LATER, lane):
            async with pool.child(LATER, lane):
                served.append(name)
                await leave[name].wait()

    tasks = [asyncio.create_task(work(name, Priority.BULK)) for name in ("bulk 1", "bulk 2")]
    await _settle()
    tasks += [asyncio.create_task(work(name, Priority.INTERACTIVE)) for name in ("interactive 1", "interactive 2")]
    await _settle()
    assert served == ["bulk 1", "interactive 1"]
    assert not pool.free
    leave["interactive 1"].set()
    await _settle()
    assert served[2:] == ["interactive 2"]
    leave["bulk 1"].set()
    await _settle()
    assert served[3:] == ["bulk 2"]
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


async def test_checks_meet_every_child_and_documents_the_same(scripted_child: ScriptedChild) -> None:
    """No idle child is broken unnoticed; and children that share the documents do not come to their end together."""
    pool = _pool(_Starter(scripted_child), children=3)
    await pool.start()
    await _settle()
    checked = {await _use(pool, check=True) for _ in range(3)}
    used = {await _use(pool) for _ in range(3)}
    assert (len(checked), len(used)) == (3, 1)
    await pool.stop()
