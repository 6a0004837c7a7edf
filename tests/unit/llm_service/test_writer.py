"""A request is checked, admitted, written, timed; and however it ends, the caller knows and the slot is free."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from llm_service.abilities import ALL_ABILITIES
from llm_service.generation import (
    Accepted,
    Event,
    Finish,
    FinishReason,
    Generation,
    Header,
    Load,
    Message,
    Piece,
    Role,
    Sampling,
    TokenCount,
    Usage,
)
from llm_service.testing import ScriptedEngine, written
from llm_service.writer import Limits, Names, Writer
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InvalidRequest, MeshError, NotFound, Overloaded, Unavailable, WrongState
from mesh.generation import EngineLoad, Image, ResponseFormat, Tool

PROMPT = Generation(prompt="Once upon a time")


async def started(engine: ScriptedEngine, **limits: int) -> Writer:
    """A writer that has started."""
    writer = Writer(engine, limits=Limits(**limits), names=Names(aliases=("nick",)))
    await writer.start()
    return writer


async def collect(writer: Writer, request: Generation = PROMPT, seconds: float = 60.0) -> list[Event]:
    """All events of one request."""
    return [event async for event in writer.generate(request, Deadline.after(seconds))]


async def append_to(events: list[Event], writer: Writer) -> None:
    """Keep what came, also where it ends with an error."""
    async for event in writer.generate(PROMPT, Deadline.after(60)):
        events.append(event)


async def test_header_pieces_finish() -> None:
    """A whole answer is one Header, its Pieces and one Finish with the engine's usage."""
    header, *pieces, finish = await collect(await started(ScriptedEngine()))
    assert isinstance(header, Header)
    assert isinstance(finish, Finish)
    assert ("scripted-model", FinishReason.STOP, Usage(3, 2)) == (header.model, finish.reason, finish.usage)
    assert [Piece("one"), Piece(" two")] == pieces
    assert finish.timings.total_us >= finish.timings.first_token_us >= finish.timings.queue_us


async def test_the_header_waits_for_the_first_piece() -> None:
    """An engine that took the request and dies before it wrote anything is a plain failure: nothing was said yet."""
    engine = ScriptedEngine([Accepted(Usage(7, 0)), Unavailable("lost", reason="ENGINE_LOST")])
    writer = await started(engine)
    events: list[Event] = []
    with pytest.raises(Unavailable):
        await append_to(events, writer)
    assert events == []
    for told in (Usage(7, 0, 4), Usage(7, 3, 4, 2)):  # the second by an engine that had begun to write already
        engine.script = [Accepted(told), *written("one")[1:]]
        header = (await collect(writer))[0]
        assert isinstance(header, Header)
        assert header.usage == Usage(7, 0, 4)


async def test_the_prompts_usage_may_come_from_the_workers_own_count() -> None:
    """What `prepare` counted is told with the header, where the engine does not tell."""

    class Counting(ScriptedEngine):
        async def prepare(self, request: Generation) -> Generation:
            return replace(request, prompt_tokens=11)

    header = (await collect(await started(Counting())))[0]
    assert isinstance(header, Header)
    assert header.usage == Usage(11, 0)


async def test_the_requests_own_lane_goes_before_the_callers() -> None:
    """A request that says bulk waits as bulk does, whatever lane its call came in."""
    engine = ScriptedEngine([Accepted(), Piece("one"), ScriptedEngine.HOLD, *written("rest")[1:]])
    writer = await started(engine, queued=4)
    order: list[str] = []

    async def ask(name: str, request: Generation) -> None:
        async for event in writer.generate(request, Deadline.after(60)):
            if isinstance(event, Finish):
                order.append(name)

    first = asyncio.create_task(ask("first", PROMPT))
    await engine.busy.wait()
    bulk = asyncio.create_task(ask("bulk", replace(PROMPT, priority=Priority.BULK)))
    await asyncio.sleep(0)
    later = asyncio.create_task(ask("interactive", PROMPT))
    while writer.load().waiting < 2:
        await asyncio.sleep(0)
    engine.release.set()
    await asyncio.gather(first, bulk, later)
    assert order == ["first", "interactive", "bulk"]


async def test_what_the_engine_cannot_do_never_reaches_it() -> None:
    """Neither does a schema that is none."""
    engine = ScriptedEngine()
    engine.abilities = frozenset()
    writer = await started(engine)
    with pytest.raises(WrongState):
        await collect(writer, Generation(prompt="x", sampling=Sampling(n=2)))
    engine.abilities = ALL_ABILITIES
    with pytest.raises(InvalidRequest):
        await collect(writer, Generation(prompt="x", response_format=ResponseFormat('{"type": 3}', "answer")))
    assert engine.requests == []


async def test_tokens_are_counted_without_a_slot() -> None:
    """While the engine writes for somebody else, a prompt is counted; a wrong model or no prompt is refused."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD])
    writer = await started(engine)
    writing = asyncio.create_task(collect(writer))
    await engine.busy.wait()
    assert await writer.count(PROMPT, Deadline.after(60)) == TokenCount("scripted-model", 4, 128)
    with pytest.raises(NotFound):
        await writer.count(replace(PROMPT, model="gpt-4"), Deadline.after(60))
    with pytest.raises(InvalidRequest):
        await writer.count(Generation(), Deadline.after(60))
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_counting_is_bounded_too() -> None:
    """It is the engine's work though it needs no slot: a flood is told when to come back, and passes."""

    class Counting(ScriptedEngine):
        async def count(self, request: Generation) -> int:
            await self.release.wait()
            return await super().count(request)

    engine = Counting()
    writer = await started(engine)
    flood = [asyncio.create_task(writer.count(PROMPT, Deadline.after(60))) for _ in range(50)]
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await writer.count(PROMPT, Deadline.after(60))
    assert caught.value.retry_after
    engine.release.set()
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(outcome, TokenCount) for outcome in outcomes) == 32
    assert (await writer.count(PROMPT, Deadline.after(60))).prompt_tokens == 4


@pytest.mark.parametrize(
    "request_",
    [
        Generation(prompt="x" * 4000),
        Generation(messages=(Message(Role.USER, parts=("x" * 4000,)),)),
        Generation(messages=(Message(Role.USER, "x"),), tools=(Tool("look", "x" * 4000),)),
        Generation(messages=(Message(Role.USER, parts=(Image(b"x", "image/png"),)),)),
    ],
    ids=["a prompt", "a part", "a tool", "an image"],
)
async def test_what_nobody_can_count_is_guessed_for_the_engines_load(request_: Generation) -> None:
    """An engine whose tokenizer is elsewhere has a cache that fills all the same; what was guessed is told nobody."""
    engine = ScriptedEngine([Accepted(), Piece("one"), ScriptedEngine.HOLD, *written("done")[1:]], concurrency=8)
    engine.engine_load = EngineLoad(1, 0, 0.0, 1500)
    writer = await started(engine, queued=8)
    asked = [asyncio.create_task(collect(writer, request_)) for _ in range(2)]
    while not writer.load().waiting:
        await asyncio.sleep(0)
    assert writer.load().running == 1
    engine.release.set()
    for events in await asyncio.gather(*asked, return_exceptions=True):
        assert not isinstance(events, BaseException)
        assert isinstance(events[0], Header)
        assert events[0].usage is None


async def test_the_load_is_told_at_once() -> None:
    """Who is at the engine, who waits, and what the engine says of itself."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD])
    engine.engine_load = EngineLoad(1, 0, 0.5, 4096)
    writer = await started(engine, queued=4)
    asked = [asyncio.create_task(collect(writer)) for _ in range(3)]
    while writer.load().waiting < 2:
        await asyncio.sleep(0)
    assert writer.load() == Load(1, 2, 1, 4, EngineLoad(1, 0, 0.5, 4096))
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert (writer.load().running, writer.load().waiting) == (0, 0)


@pytest.mark.parametrize("model", ["", "scripted-model", "nick"])
async def test_names_by_which_the_model_is_known(model: str) -> None:
    """The name, an alias or nothing reach the model."""
    assert await collect(await started(ScriptedEngine()), Generation(prompt="x", model=model))


async def test_an_unknown_model_is_told_the_known_ones() -> None:
    """A wrong name never reaches the engine, and the answer lists the right ones."""
    engine = ScriptedEngine()
    with pytest.raises(NotFound, match="scripted-model, nick"):
        await collect(await started(engine), Generation(prompt="x", model="gpt-4"))
    assert engine.requests == []


async def test_what_is_out_of_bounds_never_reaches_the_engine() -> None:
    """max_tokens is held to the worker's own limit."""
    engine = ScriptedEngine()
    with pytest.raises(InvalidRequest):
        await collect(await started(engine, output_tokens=10), Generation(prompt="x", sampling=Sampling(max_tokens=11)))
    assert engine.requests == []


@pytest.mark.parametrize("position", range(4))
async def test_an_engine_that_dies_is_never_a_clean_end(position: int) -> None:
    """At whatever point the engine is lost, the caller hears it and gets no Finish."""
    script: list[object] = list(written("one", " two"))
    script[position:] = [Unavailable("lost", reason="ENGINE_LOST")]
    events: list[Event] = []
    engine = ScriptedEngine(script)
    writer = await started(engine)
    with pytest.raises(Unavailable):
        await append_to(events, writer)
    assert not any(isinstance(event, Finish) for event in events)
    engine.script = list(written("again"))
    assert await collect(writer)


async def test_an_engine_that_just_stops_is_broken_too() -> None:
    """Events that end without Ended are no answer."""
    with pytest.raises(Unavailable):
        await collect(await started(ScriptedEngine([Accepted(), Piece("half")])))


async def test_a_caller_who_leaves_frees_the_engine() -> None:
    """Closing the answer closes the engine's stream and frees the slot at once."""
    engine = ScriptedEngine([Accepted(), Piece("one"), ScriptedEngine.HOLD, *written("never")[1:]])
    writer = await started(engine, queued=0)
    async with aclosing(writer.generate(PROMPT, Deadline.after(60))) as events:
        async for event in events:
            if isinstance(event, Piece):
                break
        assert engine.running == 1
    assert engine.running == 0
    engine.script = list(written("next"))
    assert await collect(writer)


async def test_a_cancelled_caller_frees_the_engine() -> None:
    """Cancelling the task that reads the answer does the same."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD])
    writer = await started(engine, queued=0)
    reading = asyncio.create_task(collect(writer))
    await engine.busy.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    engine.script = list(written("next"))
    assert (engine.running, bool(await collect(writer))) == (0, True)


async def test_the_deadline_ends_the_writing() -> None:
    """When nobody waits any more, the engine stops."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD])
    with pytest.raises(DeadlineExceeded):
        await collect(await started(engine), seconds=0.01)
    assert engine.running == 0


async def test_over_its_limits_the_worker_is_overloaded() -> None:
    """One writes, one waits, the third hears Overloaded with a time."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD, *written("done")[1:]])
    writer = await started(engine, queued=1)
    busy = [asyncio.create_task(collect(writer)) for _ in range(2)]
    await engine.busy.wait()
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await collect(writer)
    assert caught.value.retry_after is not None
    engine.release.set()
    assert all(await asyncio.gather(*busy))


async def test_an_engine_that_restarts_is_not_asked() -> None:
    """While the engine restarts, requests hear its reason at once."""
    engine = ScriptedEngine()
    writer = await started(engine)
    engine.broken = Unavailable("restarting", reason="ENGINE_RESTARTING")
    with pytest.raises(MeshError, match="restarting"):
        await collect(writer)
    assert engine.requests == []


async def test_a_refusal_costs_no_preparing() -> None:
    """Who is refused is refused before the prompt is looked at; so is everybody while the engine restarts."""

    class Counting(ScriptedEngine):
        prepared = 0

        async def prepare(self, request: Generation) -> Generation:
            self.prepared += 1
            return request

    engine = Counting([Accepted(), ScriptedEngine.HOLD, *written("done")[1:]])
    writer = await started(engine, queued=0)
    busy = asyncio.create_task(collect(writer))
    await engine.busy.wait()
    for _ in range(10):
        with pytest.raises(Overloaded):
            await collect(writer)
    engine.broken = Unavailable("restarting", reason="ENGINE_RESTARTING")
    with pytest.raises(Unavailable):
        await collect(writer)
    assert engine.prepared == 1
    engine.release.set()
    await busy


async def test_a_reason_told_to_many_grows_no_memory() -> None:
    """The frames of those who heard it do not pile up on the one exception that holds the reason."""
    engine = ScriptedEngine()
    writer = await started(engine)
    engine.broken = Unavailable("restarting", reason="ENGINE_RESTARTING")
    depths = []
    for _ in range(5):
        with pytest.raises(Unavailable) as caught:
            await collect(writer)
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1


async def test_concurrency_is_the_engines_unless_set() -> None:
    """0 asks for what the engine does well."""
    assert Writer(ScriptedEngine(concurrency=7)).limits.concurrent == 7
    assert Writer(ScriptedEngine(concurrency=7), limits=Limits(concurrent=2)).limits.concurrent == 2
