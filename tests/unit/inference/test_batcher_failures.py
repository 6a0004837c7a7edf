"""The batcher's promises where the engine fails: only who is at fault learns of it."""

from __future__ import annotations

import asyncio

import pytest

from inference.batcher import BatchLimits
from inference.testing import FakeWork, GatedRun
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import GpuOutOfMemory, Internal, InvalidRequest, Unavailable
from tests.unit.inference.batching import entered, running, submit


async def test_one_requests_failure_fails_only_it() -> None:
    """The item at fault is found by splitting; its neighbours in the batch are answered."""
    run = GatedRun(is_open=False, poison=[13])
    async with running(run) as batcher:
        first = submit(batcher, 0)
        await entered(run)
        calls = [submit(batcher, value) for value in (11, 12, 13, 14)]
        await asyncio.sleep(0)
        run.gate.set()
        answers = await asyncio.gather(first, *calls, return_exceptions=True)
    assert [each for each in answers if isinstance(each, list)] == [[0], [22], [24], [28]]
    assert isinstance(answers[3], Internal)
    assert "poisoned" not in answers[3].message


async def test_a_mesh_error_of_the_engine_reaches_the_caller() -> None:
    """What the engine says in the mesh's own words is passed on as it is."""

    def refuse(_works: object) -> list[int]:
        raise InvalidRequest("no", reason="SPECIAL")

    async with running(refuse) as batcher:
        with pytest.raises(InvalidRequest) as caught:
            await submit(batcher, 1)
    assert caught.value.reason == "SPECIAL"


async def test_out_of_memory_splits_the_batch_and_shrinks_the_next() -> None:
    """Every item that fits alone is answered, and later batches fit from the start."""
    run = GatedRun(memory_tokens=8)
    async with running(run) as batcher:
        assert await submit(batcher, 1, 2, 3, 4) == [2, 4, 6, 8]
        before = len(run.batches)
        assert await submit(batcher, 5, 6, 7, 8) == [10, 12, 14, 16]
    assert all(len(batch) * 4 <= 8 for batch in run.batches[before:])


async def test_an_item_that_alone_does_not_fit_is_gpu_out_of_memory() -> None:
    """The caller learns that the device's memory is the reason; others go on."""
    async with running(GatedRun(memory_tokens=8)) as batcher:
        with pytest.raises(GpuOutOfMemory):
            await submit(batcher, 1, tokens=9)
        assert await submit(batcher, 2) == [4]


async def test_a_request_that_failed_in_part_is_not_computed_further() -> None:
    """After one item failed, the rest of the same request costs nothing."""
    run = GatedRun(poison=[0])
    async with running(run, BatchLimits(batch_tokens=4, queued_tokens=1000)) as batcher:
        with pytest.raises(Internal):
            await submit(batcher, 0, 1, 2, 3)
        await submit(batcher, 9)
    assert [[work.value for work in batch] for batch in run.batches] == [[0], [9]]


async def test_a_broken_engine_thread_fails_its_callers_and_says_so_from_then_on() -> None:
    """Nobody waits for ever on a thread that ended."""

    def explode(_works: object) -> list[int]:
        raise SystemExit

    async with running(explode) as batcher:
        for _ in range(2):
            with pytest.raises(Internal) as caught:
                await submit(batcher, 1)
            assert caught.value.reason == "ENGINE_BROKEN"


async def test_each_caller_gets_an_error_of_its_own() -> None:
    """An exception that several callers raise would carry the tracebacks of them all."""

    def explode(_works: object) -> list[int]:
        raise SystemExit

    async with running(explode) as batcher:
        caught = await asyncio.gather(*(submit(batcher, value) for value in range(3)), return_exceptions=True)
        caught += await asyncio.gather(*(submit(batcher, value) for value in range(3)), return_exceptions=True)
    assert len({id(each) for each in caught}) == 6
    assert {getattr(each, "reason", None) for each in caught} == {"ENGINE_BROKEN"}


async def test_a_wrong_number_of_results_is_an_internal_error() -> None:
    """An engine that drops a row can never shift the rows of other callers."""
    async with running(lambda works: [1] * (len(works) - 1)) as batcher:
        with pytest.raises(Internal):
            await submit(batcher, 1, 2)


async def test_several_poisonous_requests_take_nobody_with_them() -> None:
    """Eight among sixty-four fail alone; the fifty-six others are computed."""
    poison = range(8, 72, 8)
    run = GatedRun(is_open=False, poison=poison)
    async with running(run, BatchLimits(batch_tokens=4 * 64, queued_tokens=10_000), clock=lambda: 0.0) as batcher:
        first = submit(batcher, 0)
        await entered(run)
        calls = {value: submit(batcher, value) for value in range(8, 72)}
        await asyncio.sleep(0)
        run.gate.set()
        await asyncio.gather(first, *calls.values(), return_exceptions=True)
        for value, call in calls.items():
            if value in poison:
                assert isinstance(call.exception(), Internal)
            else:
                assert call.result() == [2 * value]


async def test_a_failing_canary_ends_the_search_for_the_request_at_fault() -> None:
    """An engine that fails everything is asked until its canary fails; then its callers may go elsewhere."""
    run = GatedRun(is_open=False, poison=range(1, 1000))
    async with running(run, BatchLimits(batch_tokens=4 * 200, queued_tokens=10_000), clock=lambda: 0.0) as batcher:
        first = submit(batcher, 0)
        await entered(run)
        calls = [submit(batcher, value) for value in range(1, 200)]
        await asyncio.sleep(0)
        run.let_through(1)
        await first
        await entered(run)
        canary = asyncio.create_task(
            batcher.submit([FakeWork(4, 999)], deadline=Deadline.after(30), priority=Priority.INTERACTIVE, canary=True)
        )
        await asyncio.sleep(0)
        run.gate.set()
        answers = await asyncio.gather(canary, *calls, return_exceptions=True)
        assert len(run.batches) == 3
        assert batcher.failures() == 2
        assert all(isinstance(each, Unavailable) and each.reason == "ENGINE_FAILING" for each in answers)
        run.gate.clear()
        blocker = submit(batcher, 500)
        await entered(run)
        await entered(run)
        calls = [submit(batcher, value) for value in range(1, 50)]
        await asyncio.sleep(0)
        run.gate.set()
        await asyncio.gather(blocker, *calls, return_exceptions=True)
        assert len(run.batches) == 5


async def test_failures_are_counted_until_a_batch_succeeds() -> None:
    """The signal for the watchdog: 0 while all is well, and again after one success."""
    async with running(GatedRun(poison=[13])) as batcher:
        assert batcher.failures() == 0
        for expected in (1, 2):
            with pytest.raises(Internal):
                await submit(batcher, 13)
            assert batcher.failures() == expected
        await submit(batcher, 1)
        assert batcher.failures() == 0


async def test_a_canary_goes_before_the_parts_of_a_failed_batch() -> None:
    """While the request at fault is looked for, the engine can be proved."""
    run = GatedRun(is_open=False, poison=[2])
    async with running(run) as batcher:
        first = submit(batcher, 0)
        await entered(run)
        calls = [submit(batcher, value) for value in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        run.gate.set()
        await first
        await entered(run)
        canary = asyncio.create_task(
            batcher.submit([FakeWork(4, 99)], deadline=Deadline.after(30), priority=Priority.INTERACTIVE, canary=True)
        )
        assert (await canary).results == [198]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [each for each in answers if isinstance(each, list)] == [[2], [6], [8]]
