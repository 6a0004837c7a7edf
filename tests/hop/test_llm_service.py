"""The LLM service behind a real gRPC server: what its clients see when answers are whole, broken or unwanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from llm_service.generation import Accepted, Piece
from llm_service.servicer import SERVICE, LlmServicer
from llm_service.testing import ScriptedEngine, written
from llm_service.writer import Limits, Writer
from mesh.clients.llm import AsyncLLMServiceClient, ChatMessage, Finish, GenerateEvent, Generation, Role, Sampling
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InvalidRequest, NotFound, Unavailable
from mesh.serving import Capability
from mesh.testing import serve

CHAT = Generation(messages=(ChatMessage(Role.USER, "Say it."),), sampling=Sampling(temperature=0.0))
Connect = Callable[[ScriptedEngine], Awaitable[AsyncLLMServiceClient]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Serves an engine and connects a client to it."""
    async with AsyncExitStack() as stack:

        async def one(engine: ScriptedEngine) -> AsyncLLMServiceClient:
            writer = Writer(engine, limits=Limits(output_tokens=100, queued=0))
            servicer = LlmServicer(writer, default_deadline_seconds=30.0, max_request_bytes=1024)
            capability = Capability(service=SERVICE, register=servicer.register, start=writer.start, stop=writer.stop)
            running = await stack.enter_async_context(serve([capability]))
            client = await stack.enter_async_context(AsyncLLMServiceClient(running.target))
            await _until_serving(client)
            return client

        yield one


async def _until_serving(client: AsyncLLMServiceClient) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await client.info(deadline=Deadline.after(1.0))
                return
            except Unavailable:
                await asyncio.sleep(0.01)


async def _collect(client: AsyncLLMServiceClient, seen: list[GenerateEvent]) -> None:
    async for event in client.generate(CHAT):
        seen.append(event)


async def test_a_whole_answer(connect: Connect) -> None:
    """Text, usage and timings arrive, and the engine saw the request as it was sent."""
    engine = ScriptedEngine(written("Hello", ", wörld"))
    client = await connect(engine)
    answer = await client.complete(CHAT)
    assert (
        answer.text,
        answer.model,
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    ) == ("Hello, wörld", "scripted-model", 3, 2)
    assert engine.requests[0].messages[0].content == "Say it."
    assert engine.requests[0].sampling.temperature == 0.0
    assert engine.requests[0].sampling.top_p is None


async def test_pieces_arrive_as_they_are_written(connect: Connect) -> None:
    """The first piece is there while the engine still writes."""
    engine = ScriptedEngine([Accepted(), Piece("first"), ScriptedEngine.HOLD, *written(" rest")[1:]])
    client = await connect(engine)
    texts = []
    async for event in client.generate(CHAT):
        if not engine.release.is_set() and getattr(event, "text", "") == "first":
            engine.release.set()
        texts.append(event)
    assert isinstance(texts[-1], Finish)


@pytest.mark.parametrize("position", range(4))
async def test_an_engine_lost_at_any_frame_is_unavailable(connect: Connect, position: int) -> None:
    """Whichever frame the engine dies at, the client raises and yields no Finish."""
    script: list[object] = list(written("one", " two"))
    script[position:] = [Unavailable("The engine was lost.", reason="ENGINE_LOST")]
    client = await connect(ScriptedEngine(script))
    seen: list[GenerateEvent] = []
    with pytest.raises(Unavailable) as caught:
        await _collect(client, seen)
    assert caught.value.reason == "ENGINE_LOST"
    assert not any(isinstance(event, Finish) for event in seen)


async def test_a_client_that_leaves_frees_the_engine(connect: Connect) -> None:
    """A client that goes away in the middle frees the slot within a second."""
    engine = ScriptedEngine([Accepted(), Piece("one"), ScriptedEngine.HOLD])
    client = await connect(engine)
    answer = client.generate(CHAT)
    async for event in answer:
        if getattr(event, "text", ""):
            break
    await answer.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(1):
        await engine.idle.wait()
    engine.script = list(written("next"))
    assert (await client.complete(CHAT)).text == "next"


async def test_a_deadline_reaches_the_engine(connect: Connect) -> None:
    """When the caller's time is up, the engine stops too."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD])
    client = await connect(engine)
    with pytest.raises(DeadlineExceeded):
        await client.complete(CHAT, deadline=Deadline.after(0.2))
    async with asyncio.timeout(1):
        await engine.idle.wait()


async def test_errors_keep_their_class_reason_and_field(connect: Connect) -> None:
    """Typed errors cross the wire with all they say."""
    client = await connect(ScriptedEngine())
    with pytest.raises(NotFound, match="scripted-model") as unknown:
        await client.complete(Generation(prompt="x", model="gpt-4"))
    assert unknown.value.param == "model"
    with pytest.raises(InvalidRequest) as invalid:
        await client.complete(Generation(prompt="x", sampling=Sampling(temperature=2.5)))
    assert invalid.value.param == "temperature"


async def test_info_tells_the_model_and_every_limit(connect: Connect) -> None:
    """Info names model, engine, versions and limits."""
    info = await (await connect(ScriptedEngine())).info()
    assert (
        info.models[0].name,
        info.models[0].context_tokens,
        info.engine,
        info.engine_version,
    ) == ("scripted-model", 128, "scripted", "1")
    assert (
        info.limits.max_output_tokens,
        info.limits.max_request_bytes,
        info.limits.max_concurrent_requests,
        info.limits.max_queued_requests,
    ) == (100, 1024, 1, 0)
