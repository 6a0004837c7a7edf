"""Children are given out warm, fairly, and never twice after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gpu_services.chunking.pool import ChildPool, DocumentProcess, PoolLimits
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Overloaded, Unavailable

ScriptedChild = Any


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


def _pool(starter: _Starter, *, children: int = 1, max_queued: int = 8, documents_per_child: int = 100) -> ChildPool:
    return ChildPool(
        starter,
        PoolLimits(children=children, max_queued=max_queued, documents_per_child=documents_per_child),
        pause=_no_pause,
    )


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
    failures = [pool.failure]
    async with pool.child(Deadline.after(5), Priority.INTERACTIVE) as second:
        assert second is not first
    failures.append(pool.failure)
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
    async with pool.place(), pool.place():
        with pytest.raises(Overloaded) as refused:
            async with pool.place():
                pass
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= 1
    async with pool.place():
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
