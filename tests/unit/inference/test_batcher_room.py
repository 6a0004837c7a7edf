"""The batcher's promises while its queue is full: who is let in, who goes first, when the others may come back."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from inference.batcher import BatchLimits
from inference.testing import FakeWork, GatedRun
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import Overloaded
from tests.unit.inference.batching import entered, running, submit


async def test_a_full_queue_refuses_with_a_measured_wait() -> None:
    """Overloaded says when the tokens ahead will have been computed at the engine's speed."""
    run = GatedRun(is_open=False)
    limits = BatchLimits(batch_tokens=4, queued_tokens=25, initial_tokens_per_second=10.0)
    async with running(run, limits) as batcher:
        running_one = submit(batcher, 0)
        await entered(run)
        waiting = submit(batcher, *range(5))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await submit(batcher, 9)
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after == pytest.approx(0.4)
        run.gate.set()
        await asyncio.gather(running_one, waiting)


async def test_a_request_that_cannot_be_in_time_is_refused_at_once() -> None:
    """Work that would only be thrown away at its deadline is not admitted."""
    run = GatedRun(is_open=False)
    limits = BatchLimits(batch_tokens=4, queued_tokens=1000, initial_tokens_per_second=10.0)
    async with running(run, limits) as batcher:
        waiting = [submit(batcher, *range(10))]
        await entered(run)
        with pytest.raises(Overloaded) as caught:
            await submit(batcher, 1, seconds=1.0)
        assert caught.value.reason == "QUEUE_LONGER_THAN_DEADLINE"
        run.gate.set()
        await asyncio.gather(*waiting)


async def test_bulk_leaves_room_for_interactive_work() -> None:
    """A queue full of bulk work still takes an interactive request."""
    run = GatedRun(is_open=False)
    async with running(run, BatchLimits(batch_tokens=4, queued_tokens=40)) as batcher:
        calls = [submit(batcher, 0, priority=Priority.BULK)]
        await entered(run)
        calls.append(submit(batcher, *range(8), priority=Priority.BULK))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await submit(batcher, 8, priority=Priority.BULK)
        calls.append(submit(batcher, 9))
        await asyncio.sleep(0)
        run.gate.set()
        assert (await asyncio.gather(*calls))[-1] == [18]


async def test_interactive_work_leaves_room_for_bulk() -> None:
    """However much interactive work waits, bulk keeps its share of the queue, and is computed in its turn."""
    run = GatedRun(is_open=False)
    limits = BatchLimits(batch_tokens=4, queued_tokens=40, initial_tokens_per_second=100.0)
    async with running(run, limits) as batcher:
        calls = [submit(batcher, 0)]
        await entered(run)
        calls.append(submit(batcher, *range(8)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await submit(batcher, 8)
        calls += [submit(batcher, value, priority=Priority.BULK, seconds=1.0) for value in (21, 22)]
        await asyncio.sleep(0)
        run.gate.set()
        assert (await asyncio.gather(*calls))[-2:] == [[42], [44]]


async def test_an_empty_lane_takes_a_request_of_any_size() -> None:
    """What is larger than a lane's share is not refused for ever while the other lane stays full."""
    run = GatedRun(is_open=False)
    async with running(run, BatchLimits(batch_tokens=4, queued_tokens=40)) as batcher:
        calls = [submit(batcher, 0)]
        await entered(run)
        calls.append(submit(batcher, *range(8)))
        await asyncio.sleep(0)
        calls.append(submit(batcher, *range(5), priority=Priority.BULK))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await submit(batcher, 9, priority=Priority.BULK)
        run.gate.set()
        assert len((await asyncio.gather(*calls))[-1]) == 5


async def test_a_canary_passes_a_full_queue() -> None:
    """The proof of the engine is computed next, before all that waits, and alone."""
    run = GatedRun(is_open=False)
    async with running(run, BatchLimits(batch_tokens=8, queued_tokens=20)) as batcher:
        calls = [submit(batcher, 0)]
        await entered(run)
        calls += [submit(batcher, value) for value in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await submit(batcher, 5)
        canary = asyncio.create_task(
            batcher.submit([FakeWork(4, 99)], deadline=Deadline.after(30), priority=Priority.INTERACTIVE, canary=True)
        )
        await asyncio.sleep(0)
        run.gate.set()
        assert (await canary).results == [198]
        await asyncio.gather(*calls)
    assert [[work.value for work in batch] for batch in run.batches[:2]] == [[0], [99]]


async def test_reserved_room_is_refused_before_any_work_is_put_into_a_request() -> None:
    """What is being tokenized counts as queued, so that no crowd gathers in front of the queue."""
    run = GatedRun(is_open=False)
    async with running(run, BatchLimits(batch_tokens=4, queued_tokens=20)) as batcher:
        call = submit(batcher, 0)
        await entered(run)
        with batcher.reserved(15, deadline=Deadline.after(30), priority=Priority.INTERACTIVE):
            with pytest.raises(Overloaded) as refused:
                with batcher.reserved(6, deadline=Deadline.after(30), priority=Priority.INTERACTIVE):
                    raise AssertionError("there was no room")
            assert refused.value.reason == "QUEUE_FULL"
        with batcher.reserved(6, deadline=Deadline.after(30), priority=Priority.INTERACTIVE):
            pass
        run.gate.set()
        await call


async def test_what_has_a_reservation_is_not_refused() -> None:
    """A request that is computed in two parts gets its second one in, however full the queue is by then."""
    run = GatedRun(is_open=False)
    async with running(run, BatchLimits(batch_tokens=4, queued_tokens=30)) as batcher:
        call = submit(batcher, 0)
        await entered(run)
        deadline = Deadline.after(30)
        with batcher.reserved(12, deadline=deadline, priority=Priority.INTERACTIVE) as held:

            async def part(*values: int) -> list[int]:
                works = [FakeWork(4, value) for value in values]
                answer = batcher.submit(works, deadline=deadline, priority=Priority.INTERACTIVE, reservation=held)
                return (await answer).results

            first = asyncio.create_task(part(1))
            others = [submit(batcher, value) for value in (7, 8, 9)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await submit(batcher, 10)
            second = asyncio.create_task(part(2, 3))
            await asyncio.sleep(0)
            assert (batcher.queued_tokens, held.tokens) == (24, 0)
            run.gate.set()
            assert [await first, await second] == [[2], [4, 6]]
            await asyncio.gather(call, *others)


async def test_refused_callers_are_told_different_times() -> None:
    """Who comes back when told finds room: each time lies one request's work after the last."""
    run = GatedRun(is_open=False)
    limits = BatchLimits(batch_tokens=4, queued_tokens=20, initial_tokens_per_second=10.0)
    async with running(run, limits) as batcher:
        calls = [submit(batcher, 0)]
        await entered(run)
        calls.append(submit(batcher, *range(5)))
        await asyncio.sleep(0)
        told = []
        for _ in range(4):
            with pytest.raises(Overloaded) as refused:
                await submit(batcher, 9)
            told.append(refused.value.retry_after or 0.0)
        assert [later - sooner for sooner, later in pairwise(told)] == pytest.approx([0.4] * 3, abs=0.05)
        run.gate.set()
        await asyncio.gather(*calls)


async def test_a_request_that_an_idle_engine_cannot_do_in_time_is_tried() -> None:
    """An estimate alone never refuses for good: with nothing ahead the work is done, and corrects the estimate."""
    limits = BatchLimits(batch_tokens=4, queued_tokens=1000, initial_tokens_per_second=0.001)
    async with running(GatedRun(), limits) as batcher:
        assert await submit(batcher, 1, seconds=5.0) == [2]
        assert batcher.tokens_per_second > 0.001
