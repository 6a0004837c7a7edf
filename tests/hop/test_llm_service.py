"""The LLM service behind a real gRPC server: what its clients see when answers are whole, broken or unwanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

import pytest

from llm_service.abilities import Ability
from llm_service.generation import Accepted, Ended, Ending, EngineEvent, FinishReason, Load, Piece
from llm_service.generation import Generation as WireGeneration
from llm_service.metrics import RUNNING, WAITING
from llm_service.servicer import SERVICE, LlmServicer
from llm_service.testing import ScriptedEngine, written
from llm_service.writer import Limits, Writer
from mesh.clients.llm import AsyncLLMServiceClient, ChatMessage, Event, Finish, Generation, Role, Sampling
from mesh.context import CallContext, Priority, current_call
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InvalidRequest, MeshError, NotFound, Overloaded, Unavailable, WrongState
from mesh.generation import (
    EngineLoad,
    Header,
    Image,
    ResponseFormat,
    TokenCount,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
    Usage,
)
from mesh.pb.llm.v1 import llm_pb2 as pb
from mesh.serving import Capability
from mesh.testing import serve, until_serving

CHAT = Generation(messages=(ChatMessage(Role.USER, "Say it."),), sampling=Sampling(temperature=0.0))
Connect = Callable[..., Awaitable[AsyncLLMServiceClient]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Serves an engine and connects a client to it."""
    async with AsyncExitStack() as stack:

        async def one(engine: ScriptedEngine, queued: int = 0) -> AsyncLLMServiceClient:
            writer = Writer(engine, limits=Limits(output_tokens=100, queued=queued))
            servicer = LlmServicer(writer, default_deadline_seconds=30.0, max_request_bytes=1024)
            capability = Capability(service=SERVICE, register=servicer.register, start=writer.start, stop=writer.stop)
            running = await stack.enter_async_context(serve([capability]))
            client = await stack.enter_async_context(AsyncLLMServiceClient(running.target))
            await until_serving(client.hop)
            return client

        yield one


async def _collect(client: AsyncLLMServiceClient, seen: list[Event]) -> None:
    async for event in client.generate(CHAT):
        seen.append(event)


async def test_a_whole_answer(connect: Connect) -> None:
    """Text, usage and timings arrive, and the engine saw the request as it was sent."""
    engine = ScriptedEngine(written("Hello", ", wörld"))
    client = await connect(engine)
    answer = await client.complete(CHAT)
    assert (answer.text, answer.model, answer.usage) == ("Hello, wörld", "scripted-model", Usage(3, 2))
    assert engine.requests[0].messages[0].content == "Say it."
    assert engine.requests[0].sampling.temperature == 0.0
    assert engine.requests[0].sampling.top_p is None


async def test_a_prompt_is_continued_and_earlier_clients_are_served(connect: Connect) -> None:
    """Chat, Complete and the RPC of earlier versions write the same."""
    client = await connect(ScriptedEngine(written("Hello", "!")))
    assert (await client.complete(Generation(prompt="Say it."))).text == "Hello!"
    events = [event async for event in client.generate_text(CHAT)]
    assert "".join(event.text for event in events if isinstance(event, Piece)) == "Hello!"
    assert isinstance(events[-1], Finish)
    for more in ({"tools": (Tool("look"),)}, {"sampling": Sampling(n=2)}, {"sampling": Sampling(top_logprobs=0)}):
        with pytest.raises(InvalidRequest):
            await anext(client.generate_text(replace(CHAT, **more)))


async def test_the_rpc_of_earlier_versions_holds_one_text_alone(connect: Connect) -> None:
    """Several choices would come as one text, mixed; thoughts, which it has no place for, come as nothing at all."""
    engine = ScriptedEngine([Accepted(), Piece(reasoning="hm"), *written("Hello")[1:]])
    client = await connect(engine)
    generate = client._stub.Generate
    for sampling in (pb.Sampling(n=2), pb.Sampling(top_logprobs=0)):
        with pytest.raises(InvalidRequest, match="one text alone"):
            await anext(client.hop.stream(generate, pb.GenerateRequest(prompt="x", sampling=sampling)))
    frames = [reply async for reply in client.hop.stream(generate, pb.GenerateRequest(prompt="x"))]
    assert [frame.WhichOneof("frame") for frame in frames] == ["header", "piece", "finish"]
    assert len(engine.requests) == 1


async def test_tools_and_choices_cross_the_wire(connect: Connect) -> None:
    """What is asked reaches the engine as it was sent, and what the engine calls comes back whole."""
    call = Piece(choice=1, tool_calls=(ToolCallDelta(0, "c1", "look", "{}"),))
    endings = (Ending(FinishReason.STOP, "END"), Ending(FinishReason.TOOL_CALLS))
    engine = ScriptedEngine([Accepted(Usage(3, 0)), Piece("no"), call, Ended(endings, Usage(3, 2))])
    client = await connect(engine)
    request = replace(CHAT, tools=(Tool("look"),), sampling=Sampling(n=2), response_format=ResponseFormat())
    answer = await client.complete(request)
    assert [choice.ending for choice in answer.choices] == list(endings)
    assert (answer.text, answer.choices[1].tool_calls) == ("no", (ToolCall("c1", "look", "{}"),))
    assert replace(engine.requests[0], prompt_tokens=0) == request
    headers = [event async for event in client.generate(request) if isinstance(event, Header)]
    assert [header.usage for header in headers] == [Usage(3, 0)]


async def test_tokens_are_counted_and_the_load_is_told_beside_a_long_answer(connect: Connect) -> None:
    """Neither waits for the engine to be free."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD])
    engine.engine_load = EngineLoad(1, 0, 0.5, 4096)
    client = await connect(engine)
    writing = asyncio.create_task(client.complete(CHAT))
    await engine.busy.wait()
    assert await client.count_tokens(CHAT) == TokenCount("scripted-model", 2, 128)
    assert await client.count_tokens(Generation(prompt="one two three")) == TokenCount("scripted-model", 3, 128)
    assert await client.load() == Load(1, 0, 1, 0, EngineLoad(1, 0, 0.5, 4096))
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


@pytest.mark.parametrize(
    ("request_", "error", "reason"),
    [
        (Generation(messages=CHAT.messages, sampling=Sampling(n=10_000)), InvalidRequest, "INVALID_REQUEST"),
        (Generation(messages=CHAT.messages, tools=(Tool("a"),), tool_choice=ToolChoice(ToolChoiceMode.NAMED, "b")),
         InvalidRequest, "UNKNOWN_TOOL"),
        (Generation(messages=CHAT.messages, response_format=ResponseFormat('{"type": "strnig"}', "a")),
         InvalidRequest, "INVALID_JSON_SCHEMA"),
        (Generation(messages=CHAT.messages, tools=(Tool("a"),)), WrongState, "UNSUPPORTED_BY_ENGINE"),
        (Generation(messages=(ChatMessage(Role.USER, parts=(Image(b"x", "image/png"),)),)), WrongState, "NO_IMAGES"),
    ],
    ids=["n", "unknown tool", "broken schema", "no tools", "an image"],
)  # fmt: skip
async def test_what_cannot_be_done_is_typed_and_harms_nobody(
    connect: Connect, request_: Generation, error: type[MeshError], reason: str
) -> None:
    """The engine never hears of it, and writes the next answer."""
    engine = ScriptedEngine()
    engine.abilities = frozenset({Ability.JSON_SCHEMA})
    client = await connect(engine)
    with pytest.raises(error) as caught:
        await client.complete(request_)
    assert caught.value.reason == reason
    assert engine.requests == []
    assert (await client.complete(CHAT)).text == "one two"


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
    seen: list[Event] = []
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
    await answer.aclose()
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


class TimedEngine(ScriptedEngine):
    """Takes a while for each answer."""

    SECONDS = 0.05

    async def generate(self, request: WireGeneration) -> AsyncGenerator[EngineEvent, None]:
        """The script, after a while."""
        await asyncio.sleep(self.SECONDS)
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield event


async def test_ten_times_too_much_is_refused_quickly_and_costs_no_goodput(connect: Connect) -> None:
    """Open loop for 2 s at ten times the capacity: the engine stays busy, refusals are quick and say when to return,
    who is let in is done in time, and soon after it ends everybody is served at once.
    """
    concurrency, seconds, deadline = 2, 2.0, 0.6
    capacity = concurrency / TimedEngine.SECONDS
    client = await connect(TimedEngine(concurrency=concurrency), queued=64)
    for _ in range(10):
        await client.complete(CHAT)  # so that it is known what an answer takes
    done, late, refusals = 0, 0, list[tuple[float, float | None]]()

    async def ask() -> None:
        nonlocal done, late
        began = time.monotonic()
        try:
            await client.complete(CHAT, deadline=Deadline.after(deadline))
            done += 1
        except Overloaded as error:
            refusals.append((time.monotonic() - began, error.retry_after))
        except DeadlineExceeded:
            late += 1

    began = time.monotonic()
    async with asyncio.TaskGroup() as asking:
        for number in range(int(10 * capacity * seconds)):
            asking.create_task(ask())
            await asyncio.sleep(max(0.0, began + number / (10 * capacity) - time.monotonic()))
    assert done >= 0.8 * capacity * seconds
    assert late <= 0.02 * (done + late)
    assert sorted(took for took, _ in refusals)[int(0.9 * len(refusals))] < 0.05
    assert all(returns for _, returns in refusals)
    for _ in range(5):
        began = time.monotonic()
        await client.complete(CHAT)
        assert time.monotonic() - began < 1.0


async def test_interactive_beside_a_bulk_job_waits_for_nobody(connect: Connect) -> None:
    """While bulk work holds all slots that it may have, interactive answers take as long as on an idle worker."""
    client = await connect(TimedEngine(concurrency=4), queued=64)

    async def latencies(times: int) -> list[float]:
        taken = []
        for _ in range(times):
            began = time.monotonic()
            await client.complete(CHAT)
            taken.append(time.monotonic() - began)
        return taken

    async def bulk() -> None:
        current_call.set(CallContext(priority=Priority.BULK))
        while True:
            await client.complete(CHAT)

    idle = await latencies(10)
    job = [asyncio.create_task(bulk()) for _ in range(20)]
    await asyncio.sleep(0.2)
    beside = await latencies(20)
    for task in job:
        task.cancel()
    await asyncio.gather(*job, return_exceptions=True)
    assert max(beside) <= 3 * max(idle)


async def test_two_hundred_clients_that_leave_at_once_leave_nothing(connect: Connect) -> None:
    """Slots and queue are empty within a second, and the next request is answered."""
    engine = ScriptedEngine([Accepted(), Piece("one"), ScriptedEngine.HOLD], concurrency=8)
    client = await connect(engine, queued=300)
    asking = [asyncio.create_task(client.complete(CHAT, deadline=Deadline.after(60))) for _ in range(200)]
    async with asyncio.timeout(10):
        while _gauges() != (8, 192):
            await asyncio.sleep(0.01)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    async with asyncio.timeout(1):
        while _gauges() != (0, 0):
            await asyncio.sleep(0.01)
    assert engine.running == 0
    engine.script = list(written("next"))
    assert (await client.complete(CHAT)).text == "next"


def _gauges() -> tuple[float, float]:
    """Requests that run and that wait, as the metrics tell them."""
    running, waiting = (next(iter(gauge.collect())).samples[0].value for gauge in (RUNNING, WAITING))
    return running, waiting


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
