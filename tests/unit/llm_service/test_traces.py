"""What an answer's writing tells a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import httpx
import pytest

from llm_service.engines.completions import http_client, stream
from llm_service.generation import Generation, Message, Piece, Role, Sampling
from llm_service.testing import ScriptedEngine, written
from llm_service.writer import Limits, Writer
from mesh.context import CallContext, current_call
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Unavailable
from mesh.testing import FakeClock
from mesh.testing.tracing import KEPT_TRACE, RecordingTracer, recording
from mesh.tracing import Kind

CHAT = Generation(messages=(Message(Role.USER, "a canary prompt"),), sampling=Sampling(max_tokens=9, temperature=0.0))


@pytest.fixture
def tracer() -> Iterator[RecordingTracer]:
    """Traces are on, and the request is below a span that is kept."""
    token = current_call.set(CallContext(traceparent=KEPT_TRACE))
    with recording() as made:
        yield made
    current_call.reset(token)


async def writer_of(engine: ScriptedEngine) -> Writer:
    """A writer that has started."""
    writer = Writer(engine, limits=Limits(concurrent=1, queued=4))
    await writer.start()
    return writer


async def write(writer: Writer, request: Generation = CHAT) -> list[object]:
    """All events of one request."""
    return [event async for event in writer.generate(request, Deadline.after(30))]


async def test_an_answer_is_a_wait_a_first_token_and_the_rest(tracer: RecordingTracer) -> None:
    """Queue beside the answer's span, first token and generation inside it, without a gap."""
    await write(await writer_of(ScriptedEngine()))
    queue, whole = tracer.one("queue"), tracer.one("chat scripted-model")
    first, rest = tracer.one("first token"), tracer.one("generation")
    assert (queue.parent, whole.parent, whole.kind) == (KEPT_TRACE, KEPT_TRACE, Kind.CLIENT)
    assert first.parent == rest.parent == whole.traceparent
    assert queue.ended == whole.began == first.began
    assert first.ended == rest.began
    assert rest.ended == whole.ended


async def test_the_conventions_for_models_are_kept_and_no_word_is_told(tracer: RecordingTracer) -> None:
    """Operation, model, usage and how it ended; neither prompt nor answer."""
    await write(await writer_of(ScriptedEngine([*written("a canary", " answer")])))
    said = tracer.one("chat scripted-model").attributes
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == "scripted-model"
    assert (said["gen_ai.request.max_tokens"], said["gen_ai.request.temperature"]) == (9, 0.0)
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (3, 2)
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert "canary" not in str([vars(span) for span in tracer.spans])


async def test_who_waits_for_a_place_is_seen_waiting(tracer: RecordingTracer) -> None:
    """The second request's queue lasts for as long as the first one's answer."""
    engine = ScriptedEngine([ScriptedEngine.HOLD, *written("x")])
    writer = await writer_of(engine)
    first = asyncio.create_task(write(writer))
    await engine.busy.wait()
    second = asyncio.create_task(write(writer, Generation(prompt="p")))
    await asyncio.sleep(0.05)
    engine.release.set()
    await asyncio.gather(first, second)
    waited, at_once = sorted((span.seconds for span in tracer.named("queue")), reverse=True)
    assert waited >= 0.04 > at_once
    assert tracer.one("text_completion scripted-model").attributes["gen_ai.operation.name"] == "text_completion"


async def test_who_waits_in_vain_is_seen_waiting_too(tracer: RecordingTracer) -> None:
    """Time that was up in the queue is in the trace, marked as never computed, and nothing was written for it."""
    engine = ScriptedEngine([ScriptedEngine.HOLD, *written("x")])
    writer = await writer_of(engine)
    first = asyncio.create_task(write(writer))
    await engine.busy.wait()
    clock = FakeClock()

    async def wait_in_vain() -> None:
        async for _ in writer.generate(Generation(prompt="p"), Deadline.after(30, clock)):
            pass

    second = asyncio.create_task(wait_in_vain())
    await asyncio.sleep(0)
    clock.advance(31)
    engine.release.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await second
    assert {(span.parent, span.error) for span in tracer.named("queue")} == {
        (KEPT_TRACE, ""), (KEPT_TRACE, "never_computed")
    }  # fmt: skip
    assert tracer.named("text_completion scripted-model") == []


async def test_an_answer_that_breaks_off_is_told_as_failed(tracer: RecordingTracer) -> None:
    """By its reason, and what was written until then is there."""
    engine = ScriptedEngine([Piece("one"), Unavailable("lost", reason="ENGINE_LOST")])
    with pytest.raises(Unavailable):
        await write(await writer_of(engine))
    assert tracer.one("chat scripted-model").error == tracer.one("generation").error == "ENGINE_LOST"


async def test_a_reader_that_leaves_has_not_made_it_fail(tracer: RecordingTracer) -> None:
    """It is said to be cancelled, without an error."""
    writer = await writer_of(ScriptedEngine([Piece("one"), ScriptedEngine.HOLD]))
    async with aclosing(writer.generate(CHAT, Deadline.after(30))) as events:
        async for event in events:
            if isinstance(event, Piece):
                break
    whole = tracer.one("chat scripted-model")
    assert (whole.error, whole.attributes["mesh.outcome"]) == ("", "cancelled")


async def test_off_the_events_come_as_they_are() -> None:
    """Nothing stands between the engine and its reader."""
    token = current_call.set(CallContext(traceparent=KEPT_TRACE))
    try:
        assert len(await write(await writer_of(ScriptedEngine()))) == 4
    finally:
        current_call.reset(token)


@pytest.mark.parametrize("traceparent", ["", KEPT_TRACE])
async def test_the_engine_is_told_the_trace(traceparent: str) -> None:
    """One that traces by itself joins it; without a trace there is no header."""
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("traceparent"))
        return httpx.Response(500)

    token = current_call.set(CallContext(traceparent=traceparent))
    try:
        async with http_client(stall_seconds=1, transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(Exception):  # noqa: B017 - the answer is none; what was asked is looked at
                async for _ in stream(client, "http://engine/v1/completions", {}):
                    pass
    finally:
        current_call.reset(token)
    assert seen == [traceparent or None]
