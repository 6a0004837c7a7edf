"""Callers of a batcher, for its tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from inference.batcher import Batcher, BatchLimits
from inference.testing import FakeWork, GatedRun
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline

LIMITS = BatchLimits(batch_tokens=16, queued_tokens=1000)


@asynccontextmanager
async def running(
    run: Callable[..., list[int]], limits: BatchLimits = LIMITS, *, clock: Clock = monotonic
) -> AsyncIterator[Batcher[FakeWork, int]]:
    """A started batcher, drained at the end.

    With a clock that stands still it learns no speed, so it cuts batches by their budget alone, however slow the
    machine is.
    """
    batcher: Batcher[FakeWork, int] = Batcher(run, limits, capability="test", clock=clock)
    batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(run, GatedRun):
            run.gate.set()
        await batcher.stop()


def submit(
    batcher: Batcher[FakeWork, int],
    *values: int,
    tokens: int = 4,
    seconds: float = 30.0,
    priority: Priority = Priority.INTERACTIVE,
) -> asyncio.Task[list[int]]:
    """One caller's request, as a task."""

    async def answer() -> list[int]:
        works = [FakeWork(tokens, value) for value in values]
        return (await batcher.submit(works, deadline=Deadline.after(seconds), priority=priority)).results

    return asyncio.create_task(answer())


async def entered(run: GatedRun) -> None:
    """Wait until the engine is inside a batch."""
    assert await asyncio.to_thread(run.entered.acquire, timeout=5)
