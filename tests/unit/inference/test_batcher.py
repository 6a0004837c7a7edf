"""The batcher's promises while all goes well: when work is computed, when it is left out, what is told of it."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import REGISTRY

from inference.batcher import Batcher
from inference.testing import FakeWork, GatedRun
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Unavailable
from tests.unit.inference.batching import LIMITS, entered, running, submit


async def test_an_idle_engine_starts_at_once() -> None:
    """A lone request does not wait for company."""
    run = GatedRun()
    async with running(run) as batcher:
        assert await submit(batcher, 7) == [14]
    assert run.batches == [[FakeWork(4, 7)]]


async def test_the_next_batch_forms_while_one_is_computed() -> None:
    """Requests that arrive during a batch share the next one."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        first = submit(batcher, 1)
        await entered(run)
        others = [submit(batcher, value) for value in (2, 3, 4)]
        await asyncio.sleep(0)
        run.gate.set()
        assert await asyncio.gather(first, *others) == [[2], [4], [6], [8]]
    assert [len(batch) for batch in run.batches] == [1, 3]


async def test_work_past_its_deadline_is_not_computed() -> None:
    """The deadline is checked again when the engine is free."""
    now = 0.0
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        first = submit(batcher, 1)
        await entered(run)
        deadline = Deadline(at=100.0, clock=lambda: now)
        late = asyncio.create_task(batcher.submit([FakeWork(4, 2)], deadline=deadline, priority=Priority.INTERACTIVE))
        await asyncio.sleep(0)
        now = 101.0
        run.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        await first
    assert run.batches == [[FakeWork(4, 1)]]


async def test_a_cancelled_callers_work_is_not_computed() -> None:
    """Work that nobody waits for is taken out of the queue at once."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        first = submit(batcher, 1)
        await entered(run)
        gone = submit(batcher, 2, 3)
        await asyncio.sleep(0)
        assert batcher.queued_tokens == 8
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.queued_tokens == 0
        run.gate.set()
        await first
    assert run.batches == [[FakeWork(4, 1)]]


async def test_stop_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    """A drain loses no admitted request."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        calls = [submit(batcher, 1)]
        await entered(run)
        calls.append(submit(batcher, 2))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await submit(batcher, 3)
        assert caught.value.reason == "DRAINING"
        run.gate.set()
        assert await asyncio.gather(*calls) == [[2], [4]]
        await stopping


async def test_progress_grows_while_the_engine_hangs_and_is_zero_when_idle() -> None:
    """The watchdog sees a hung engine, and never blames an idle one."""
    now = 0.0
    run = GatedRun(is_open=False)
    batcher: Batcher[FakeWork, int] = Batcher(run, LIMITS, capability="test", clock=lambda: now)
    batcher.start()
    now = 50.0
    assert batcher.progress() == 0.0
    call = submit(batcher, 1)
    await entered(run)
    now = 62.0
    assert batcher.progress() == 12.0
    run.gate.set()
    await call
    await batcher.stop()
    assert batcher.progress() == 0.0


async def test_the_event_loop_stays_free_while_the_engine_computes() -> None:
    """No batch runs on the event loop: other tasks turn while one is computed."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        call = submit(batcher, 1)
        await entered(run)
        turns = 0
        until = time.monotonic() + 5
        while turns < 100 and time.monotonic() < until:
            await asyncio.sleep(0)
            turns += 1
        assert turns == 100
        assert not call.done()
        run.gate.set()
        await call


async def test_timings_tell_queue_inference_and_the_largest_batch() -> None:
    """A request that shared batches learns how large they were, and its times are not negative."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        first = submit(batcher, 0)
        await entered(run)
        works = [FakeWork(4, value) for value in range(6)]
        second = asyncio.create_task(batcher.submit(works, deadline=Deadline.after(30), priority=Priority.INTERACTIVE))
        await asyncio.sleep(0)
        run.gate.set()
        await first
        timings = (await second).timings
    assert timings.largest_batch == 4
    assert timings.queue_seconds >= 0
    assert timings.inference_seconds >= 0


async def test_the_engine_is_occupied_by_all_but_its_canary() -> None:
    """Who waits for a canary can tell whether the engine has begun it."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        assert not batcher.occupied()
        call = submit(batcher, 0)
        await entered(run)
        assert batcher.occupied()
        canary = asyncio.create_task(
            batcher.submit([FakeWork(4, 99)], deadline=Deadline.after(30), priority=Priority.INTERACTIVE, canary=True)
        )
        await asyncio.sleep(0)
        assert batcher.occupied()
        run.gate.set()
        await asyncio.gather(call, canary)
        run.gate.clear()
        lone = asyncio.create_task(
            batcher.submit([FakeWork(4, 98)], deadline=Deadline.after(30), priority=Priority.INTERACTIVE, canary=True)
        )
        while len(run.batches) < 3:
            await asyncio.sleep(0)
        assert not batcher.occupied()
        run.gate.set()
        await lone


async def test_size_padding_and_queue_time_are_metrics() -> None:
    """Two inputs of 2 and 6 tokens are one batch of 12, four of them waste, and their caller's wait is counted once."""
    names = {
        "batches": ("mesh_batch_size_count", {}),
        "inputs": ("mesh_batch_size_sum", {}),
        "tokens": ("mesh_batch_tokens_total", {}),
        "padding": ("mesh_batch_padding_tokens_total", {}),
        "waits": ("mesh_batch_queue_seconds_count", {"lane": "bulk"}),
    }

    def told() -> dict[str, float]:
        return {
            key: REGISTRY.get_sample_value(name, {"capability": "test", **labels}) or 0.0
            for key, (name, labels) in names.items()
        }

    before = told()
    async with running(GatedRun()) as batcher:
        await batcher.submit([FakeWork(2, 1), FakeWork(6, 2)], deadline=Deadline.after(30), priority=Priority.BULK)
    after = told()
    assert {name: after[name] - before[name] for name in names} == {
        "batches": 1,
        "inputs": 2,
        "tokens": 8,
        "padding": 4,
        "waits": 1,
    }
