"""What batches tell a trace: who waited how long, and who was computed with whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from inference.batcher import Batcher
from inference.testing import FakeWork, GatedRun
from mesh.context import CallContext, current_call
from mesh.errors import DeadlineExceeded, Internal
from mesh.testing.tracing import KEPT_TRACE, RecordingTracer, recording
from tests.unit.inference.batching import entered, running, submit


@pytest.fixture
def tracer() -> Iterator[RecordingTracer]:
    """Traces are on."""
    with recording() as made:
        yield made


def requests_span(number: int, *, kept: bool = True) -> str:
    """A request's own span, in a trace of its own."""
    return f"00-{number:032x}-{number:016x}-0{int(kept)}"


def traced(batcher: Batcher[FakeWork, int], above: str, *values: int, seconds: float = 30.0) -> asyncio.Task[list[int]]:
    """A request below a span, as a task."""
    token = current_call.set(CallContext(traceparent=above))
    try:
        return submit(batcher, *values, seconds=seconds)
    finally:
        current_call.reset(token)


async def told() -> None:
    """Spans are told on the loop, a moment after the answer."""
    for _ in range(5):
        await asyncio.sleep(0.01)


async def test_a_lone_request_sees_its_wait_and_its_batch(tracer: RecordingTracer) -> None:
    """queue, then inference, and in it the batch: one after the other, in the request's own trace."""
    async with running(GatedRun()) as batcher:
        await traced(batcher, KEPT_TRACE, 1, 2)
        await told()
    queue, inference, batch = tracer.one("queue"), tracer.one("inference"), tracer.one("batch")
    assert (queue.parent, inference.parent, batch.parent) == (KEPT_TRACE, KEPT_TRACE, inference.traceparent)
    assert queue.began <= (queue.ended or 0) == inference.began == batch.began
    assert inference.ended == batch.ended
    assert batch.attributes["mesh.batch.items"] == 2
    assert batch.attributes["mesh.batch.requests"] == 1
    assert not any(span.error for span in tracer.spans)


async def test_requests_of_one_batch_are_linked_to_it_and_it_to_them(tracer: RecordingTracer) -> None:
    """One batch span, in the oldest request's trace; the others' inference points to it."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        first = traced(batcher, requests_span(1), 1)
        await entered(run)
        others = [traced(batcher, requests_span(number), number) for number in (2, 3)]
        await asyncio.sleep(0.05)
        run.gate.set()
        await asyncio.gather(first, *others)
        await told()
    (alone, shared) = tracer.named("batch")
    assert alone.links == [requests_span(1)]
    assert shared.links == [requests_span(2), requests_span(3)]
    by_parent = {span.parent: span for span in tracer.named("inference")}
    assert shared.parent == by_parent[requests_span(2)].traceparent
    assert by_parent[requests_span(3)].links == [shared.traceparent]
    waits = {span.parent: span.seconds for span in tracer.named("queue")}
    assert waits[requests_span(2)] >= 0.04 > waits[requests_span(1)]


async def test_a_request_in_several_batches_waits_once(tracer: RecordingTracer) -> None:
    """Each batch is seen, the queue is told with the first."""
    async with running(GatedRun()) as batcher:
        await traced(batcher, KEPT_TRACE, *range(8))  # 4 tokens each, and 16 fit a batch
        await told()
    assert len(tracer.named("inference")) == len(tracer.named("batch")) == 2
    assert len(tracer.named("queue")) == 1


async def test_a_batch_that_fails_is_told_as_failed(tracer: RecordingTracer) -> None:
    """With the name of what was raised, never its text."""

    def broken(_: Sequence[FakeWork]) -> list[int]:
        raise RuntimeError("a secret of the engine")

    async with running(broken) as batcher:
        with pytest.raises(Internal):
            await traced(batcher, KEPT_TRACE, 1)
        await told()
    assert tracer.one("batch").error == tracer.one("inference").error == "RuntimeError"
    assert "secret" not in str([vars(span) for span in tracer.spans])


async def test_a_wait_in_vain_is_told(tracer: RecordingTracer) -> None:
    """A request whose time is up in the queue was never computed, and its trace says where the time went."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        first = submit(batcher, 1)
        await entered(run)
        with pytest.raises(DeadlineExceeded):
            await traced(batcher, KEPT_TRACE, 2, seconds=0.05)
        run.gate.set()
        await first
        await told()
    assert tracer.one("queue").error == "never_computed"
    assert tracer.named("inference") == []


async def test_nothing_is_told_of_whom_nobody_traces(tracer: RecordingTracer) -> None:
    """Canaries, unsampled requests and those without a trace have no spans, also beside one that has."""
    run = GatedRun(is_open=False)
    async with running(run) as batcher:
        first = submit(batcher, 1)
        await entered(run)
        unsampled = traced(batcher, requests_span(2, kept=False), 2)
        sampled = traced(batcher, KEPT_TRACE, 3)
        await asyncio.sleep(0)
        run.gate.set()
        await asyncio.gather(first, unsampled, sampled)
        await told()
    assert {span.parent for span in tracer.named("queue")} == {KEPT_TRACE}
    batch = tracer.one("batch")
    assert batch.links == [KEPT_TRACE]
    assert batch.attributes["mesh.batch.items"] == 2  # as many as were computed
