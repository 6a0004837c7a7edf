"""What a document tells a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gpu_services.chunking.events import MAX_WINDOWS, Finished, decode_event, encode_event
from gpu_services.chunking.traces import Stages
from mesh.context import CallContext, current_call
from mesh.errors import DeadlineExceeded, InvalidRequest
from mesh.testing.tracing import KEPT_TRACE, RecordingTracer, recording


@pytest.fixture
def tracer() -> Iterator[RecordingTracer]:
    """Traces are on, and the request is below a span that is kept."""
    token = current_call.set(CallContext(traceparent=KEPT_TRACE))
    with recording() as made:
        yield made
    current_call.reset(token)


async def test_a_document_is_uploaded_waits_and_is_worked_on(tracer: RecordingTracer, finished: Finished) -> None:
    """One after the other; conversion and chunking take turns inside, window by window, as the process says."""
    now = time.perf_counter()
    found = replace(finished, pages=4, chunks=7, windows=((0, 1000, 1500), (1500, 3000, 3500)))
    async with Stages(now - 3.0, now - 2.0) as stages:
        stages.begun, stages.found = now - 1.0, found
    upload, queue, document = tracer.one("upload"), tracer.one("queue"), tracer.one("document")
    assert {span.parent for span in (upload, queue, document)} == {KEPT_TRACE}
    assert (upload.ended, queue.ended) == (queue.began, document.began)
    assert upload.seconds == pytest.approx(1.0) == queue.seconds
    conversions, chunkings = tracer.named("conversion"), tracer.named("chunking")
    assert {span.parent for span in (*conversions, *chunkings)} == {document.traceparent}
    assert [round(span.seconds * 1e6) for span in conversions] == pytest.approx([1000, 1500], abs=1)
    assert [round(span.seconds * 1e6) for span in chunkings] == pytest.approx([500, 500], abs=1)
    assert document.attributes["mesh.document.chunks"] == 7


async def test_a_wait_in_vain_is_told(tracer: RecordingTracer) -> None:
    """No process became free in time: the queue has the error, and there is no document."""
    now = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        async with Stages(now, now):
            raise DeadlineExceeded("late")
    assert tracer.one("queue").error == "DEADLINE_EXCEEDED"
    assert tracer.named("document") == []


async def test_a_refused_document_is_told_by_its_reason(tracer: RecordingTracer) -> None:
    """Not by what stands in it."""
    now = time.perf_counter()
    with pytest.raises(InvalidRequest):
        async with Stages(now, now) as stages:
            stages.begun = now
            raise InvalidRequest("canary", reason="DOCUMENT_ENCRYPTED")
    assert tracer.one("document").error == "DOCUMENT_ENCRYPTED"
    assert "canary" not in str([vars(span) for span in tracer.spans])


async def test_times_that_cannot_be_are_bounded(tracer: RecordingTracer, finished: Finished) -> None:
    """The process that says them has read a stranger's document: its spans stay within the work on it."""
    now = time.perf_counter()
    async with Stages(now - 1.0, now - 1.0) as stages:
        stages.begun = now - 1.0
        stages.found = replace(finished, windows=((-(10**30), 10**30, 10**30),))
    document, conversion = tracer.one("document"), tracer.one("conversion")
    assert document.began <= conversion.began <= (conversion.ended or 0) <= (document.ended or 0)


def test_a_process_can_tell_only_so_many_windows(finished: Finished) -> None:
    """What comes over its pipe is cut, and what is no time is no event."""
    many = replace(finished, windows=((0, 1, 2),) * 1000)
    decoded = decode_event(encode_event(many))
    assert isinstance(decoded, Finished)
    assert decoded.windows == ((0, 1, 2),) * MAX_WINDOWS
    broken = encode_event(finished).replace(b'"windows":[]', b'"windows":[[1,2]]')
    with pytest.raises(ValueError):
        decode_event(broken)
