"""What the batcher promises whatever comes, in whatever order."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batcher import Batcher, BatchLimits
from inference.testing import FakeWork, GatedRun
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import GpuOutOfMemory, Internal, Unavailable
from tests.unit.inference.batching import running

PRIORITIES = st.sampled_from(list(Priority))
REQUESTS = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), min_size=1, max_size=12), PRIORITIES),
    min_size=1,
    max_size=12,
)
"""Each request: tokens and value of its items, and its lane."""

Requests = list[tuple[list[tuple[int, int]], Priority]]


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


async def answers(batcher: Batcher[FakeWork, int], requests: Requests) -> list[list[int] | BaseException]:
    """What each request gets, all of them sent at once. Fails where one waits for much longer than computing takes."""

    async def call(pairs: list[tuple[int, int]], priority: Priority) -> list[int]:
        works = [FakeWork(tokens, value) for tokens, value in pairs]
        return (await batcher.submit(works, deadline=Deadline.after(600), priority=priority)).results

    async with asyncio.timeout(60):
        return await asyncio.gather(*(call(*request) for request in requests), return_exceptions=True)


@settings(max_examples=40, deadline=None)
@given(requests=REQUESTS, poison=st.sets(st.integers(0, 50), max_size=12))
def test_a_failing_item_fails_its_own_request_and_no_other(requests: Requests, poison: set[int]) -> None:
    """Wherever the poisonous items are, whoever has none of them gets exactly its own; whoever has one is told."""

    async def scenario() -> None:
        async with running(
            GatedRun(poison=sorted(poison)), BatchLimits(batch_tokens=64, queued_tokens=10**6)
        ) as batcher:
            for (pairs, _), answer in zip(requests, await answers(batcher, requests), strict=True):
                if poison.isdisjoint(value for _, value in pairs):
                    assert answer == [2 * value for _, value in pairs]
                else:
                    # Unavailable where nothing at all was computed: then the engine may be at fault.
                    assert isinstance(answer, (Internal, Unavailable))
            assert batcher.queued_tokens == 0

    asyncio.run(scenario())


@settings(max_examples=40, deadline=None)
@given(requests=REQUESTS, memory_tokens=st.integers(1, 64))
def test_out_of_memory_costs_only_what_does_not_fit_alone(requests: Requests, memory_tokens: int) -> None:
    """However little memory there is, all that fits by itself is computed; the rest is told why it is not."""
    run = GatedRun(memory_tokens=memory_tokens)

    async def scenario() -> None:
        async with running(run, BatchLimits(batch_tokens=64, queued_tokens=10**6)) as batcher:
            for (pairs, _), answer in zip(requests, await answers(batcher, requests), strict=True):
                if all(tokens <= memory_tokens for tokens, _ in pairs):
                    assert answer == [2 * value for _, value in pairs]
                else:
                    assert isinstance(answer, GpuOutOfMemory)
            assert batcher.queued_tokens == 0

    asyncio.run(scenario())


@settings(max_examples=40, deadline=None)
@given(
    requests=REQUESTS,
    poison=st.sets(st.integers(0, 50), max_size=4),
    memory_tokens=st.integers(8, 64),
    leaving=st.sets(st.integers(0, 11), max_size=6),
    turns=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_nobody_waits_for_ever(
    requests: Requests, poison: set[int], memory_tokens: int, leaving: set[int], turns: list[int]
) -> None:
    """Failures, too little memory, callers that leave and come late, all at once: each is answered, nothing is left."""
    run = GatedRun(poison=sorted(poison), memory_tokens=memory_tokens)

    async def call(batcher: Batcher[FakeWork, int], number: int) -> list[int]:
        pairs, priority = requests[number]
        for _ in range(turns[number]):
            await asyncio.sleep(0)
        works = [FakeWork(tokens, value) for tokens, value in pairs]
        return (await batcher.submit(works, deadline=Deadline.after(600), priority=priority)).results

    async def scenario() -> None:
        async with running(run, BatchLimits(batch_tokens=64, queued_tokens=10**6)) as batcher:
            calls = [asyncio.create_task(call(batcher, number)) for number in range(len(requests))]
            await asyncio.sleep(0)
            for number in leaving & set(range(len(calls))):
                calls[number].cancel()
            async with asyncio.timeout(60):
                found = await asyncio.gather(*calls, return_exceptions=True)
            for number, answer in enumerate(found):
                if isinstance(answer, list):
                    assert answer == [2 * value for _, value in requests[number][0]]
            assert batcher.queued_tokens == 0
        assert batcher.progress() == 0.0

    asyncio.run(scenario())
