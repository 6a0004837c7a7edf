"""The batcher's promises: right answers for everyone, whatever fails, leaves or arrives meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batcher import Batcher, BatchLimits
from inference.testing import FakeWork, GatedRun
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, GpuOutOfMemory, Internal, InvalidRequest, Overloaded, Unavailable
from mesh.testing import FakeClock

LIMITS = BatchLimits(batch_tokens=16, queued_tokens=1000)


@asynccontextmanager
async def running(
    run: Callable[..., list[int]], limits: BatchLimits = LIMITS, clock: Clock = monotonic
) -> AsyncIterator[Batcher[FakeWork, int]]:
    """A started batcher, drained at the end. With a clock that stands still it learns no pace, and cuts no batch."""
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


@settings(max_examples=30, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10**6)), min_size=1, max_size=20),
            st.sampled_from(list(Priority)),
            st.integers(0, 3),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_interleaving_gives_every_caller_its_own_results_in_its_own_order(
    requests: list[tuple[list[tuple[int, int]], Priority, int, bool]],
) -> None:
    """Callers that come late, leave, share batches and lanes: each that stays gets exactly its own, in order."""

    async def call(batcher: Batcher[FakeWork, int], works: list[FakeWork], priority: Priority, turns: int) -> list[int]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return (await batcher.submit(works, deadline=Deadline.after(60), priority=priority)).results

    async def scenario() -> None:
        async with running(GatedRun(), BatchLimits(batch_tokens=16, queued_tokens=10**6)) as batcher:
            calls = []
            for pairs, priority, turns, leaves in requests:
                works = [FakeWork(tokens, value) for tokens, value in pairs]
                calls.append((asyncio.create_task(call(batcher, works, priority, turns)), pairs, leaves))
            await asyncio.sleep(0)
            for task, _, leaves in calls:
                if leaves:
                    task.cancel()
            for task, pairs, leaves in calls:
                if leaves:
                    await asyncio.wait([task])
                else:
                    assert await task == [2 * value for _, value in pairs]
            assert batcher.queued_tokens == 0

    asyncio.run(scenario())


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


async def test_a_request_that_failed_in_part_is_not_computed_further() -> None:
    """After one item failed, the rest of the same request costs nothing."""
    run = GatedRun(poison=[0])
    async with running(run, BatchLimits(batch_tokens=4, queued_tokens=1000)) as batcher:
        with pytest.raises(Internal):
            await submit(batcher, 0, 1, 2, 3)
        await submit(batcher, 9)
    assert [[work.value for work in batch] for batch in run.batches] == [[0], [9]]


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
    async with running(run, BatchLimits(batch_tokens=4 * 64, queued_tokens=10_000)) as batcher:
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
    limits = BatchLimits(batch_tokens=4 * 200, queued_tokens=10_000)
    async with running(run, limits, FakeClock()) as batcher:
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
        assert [len(batch) for batch in run.batches] == [1, 199, 1]
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
