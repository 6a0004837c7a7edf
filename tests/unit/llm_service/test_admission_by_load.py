"""An engine that tells its load is handed only what it can run; the rest waits here, or is told when to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from llm_service.admission import WAITING_CACHES, Admission
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import Overloaded
from mesh.generation import EngineLoad
from mesh.testing import FakeClock

LATER = Deadline.after(3600)
FREE = EngineLoad(running=1, waiting=0, kv_tokens=100)
SATURATED = EngineLoad(running=2, waiting=5, kv_tokens=100)


class Engine:
    """An engine whose load a test sets, behind an admission."""

    def __init__(self, load: EngineLoad | None = FREE, *, concurrency: int = 8, queue: int = 4) -> None:
        self.load = load
        self.clock = FakeClock()
        self.started: list[str] = []
        self.later: list[Callable[[], None]] = []
        self.admission = Admission(
            concurrency=concurrency,
            queue=queue,
            engine_load=lambda: self.load,
            clock=self.clock,
            later=lambda _, call: self.later.append(call),
        )

    async def visit(self, name: str, tokens: int, leave: asyncio.Event) -> None:
        """Hold a slot until told to leave."""
        with self.admission.place(LATER) as place:
            async with place.slot(tokens):
                self.started.append(name)
                await leave.wait()

    async def come(self, name: str, tokens: int = 1) -> tuple[asyncio.Task[None], asyncio.Event]:
        """Let one more come, and see what becomes of it."""
        leave = asyncio.Event()
        task = asyncio.create_task(self.visit(name, tokens, leave))
        for _ in range(10):
            await asyncio.sleep(0)
        return task, leave


async def leave(*visits: tuple[asyncio.Task[None], asyncio.Event]) -> None:
    """All leave, one after another."""
    for task, event in visits:
        event.set()
        await task


async def test_a_saturated_engine_is_handed_no_more() -> None:
    """Who comes waits here, and starts when the engine has room again."""
    engine = Engine()
    first = await engine.come("first")
    engine.load = SATURATED
    second = await engine.come("second")
    assert (engine.started, engine.admission.waiting) == (["first"], 1)
    engine.load = FREE
    third = await engine.come("third")
    assert sorted(engine.started) == ["first", "second", "third"]
    await leave(first, second, third)


async def test_room_is_seen_when_nobody_comes_or_leaves() -> None:
    """Who is held back starts by the engine's next reading, however long the others write."""
    engine = Engine()
    first = await engine.come("first")
    engine.load = SATURATED
    second = await engine.come("second")
    engine.load = FREE
    (look_again,) = engine.later
    look_again()
    for _ in range(10):
        await asyncio.sleep(0)
    assert engine.started == ["first", "second"]
    await leave(first, second)


async def test_an_engine_that_others_keep_busy_still_gets_one() -> None:
    """With none of ours at work, waiting here would be waiting for nobody to leave."""
    engine = Engine(SATURATED)
    first = await engine.come("first")
    second = await engine.come("second")
    assert engine.started == ["first"]
    await leave(first, second)
    assert engine.started == ["first", "second"]


async def test_a_saturated_engine_shortens_the_queue() -> None:
    """Beyond what it runs and the queue, refusals come at once, before any slot is asked for."""
    engine = Engine(SATURATED, concurrency=8, queue=4)
    visits = [await engine.come(str(number)) for number in range(6)]
    with pytest.raises(Overloaded) as caught, engine.admission.place(LATER):
        raise AssertionError("let in")
    assert caught.value.reason == "QUEUE_FULL"
    engine.load = FREE
    visits.append(await engine.come("6"))
    await leave(*visits)


async def test_retry_after_follows_what_the_engine_runs() -> None:
    """The same requests take twice as long to make room where the engine runs half as many at once."""
    advice = []
    for running in (8, 4):
        engine = Engine(concurrency=8, queue=0)
        for _ in range(40):
            visit = await engine.come("learned from")
            engine.clock.advance(16.0)
            await leave(visit)
        visits = [await engine.come(str(number)) for number in range(8)]
        engine.load = EngineLoad(running=running, waiting=8, kv_tokens=100)
        with pytest.raises(Overloaded) as caught, engine.admission.place(LATER):
            raise AssertionError("let in")
        assert caught.value.retry_after is not None
        advice.append(caught.value.retry_after)
        await leave(*visits)
    assert advice[1] == pytest.approx(2 * advice[0], rel=0.3)


async def test_a_deadline_is_held_against_what_the_engine_runs() -> None:
    """Who would be served in time by an engine at its best is refused by one that is not."""
    engine = Engine(concurrency=8, queue=8)
    for _ in range(40):
        visit = await engine.come("learned from")
        engine.clock.advance(10.0)
        await leave(visit)
    visits = [await engine.come(str(number)) for number in range(8)]
    deadline = Deadline.after(60)
    with engine.admission.place(deadline):
        pass
    engine.load = EngineLoad(running=1, waiting=7, kv_tokens=100)
    with pytest.raises(Overloaded) as caught, engine.admission.place(deadline):
        raise AssertionError("let in")
    assert caught.value.reason in {"QUEUE_LONGER_THAN_DEADLINE", "QUEUE_FULL"}
    await leave(*visits)


async def test_prompts_fill_the_cache_before_a_reading_says_so() -> None:
    """A burst of long prompts between two readings starts as far as the cache holds them; short ones are not held."""
    engine = Engine()
    first = await engine.come("first", tokens=60)
    second = await engine.come("second", tokens=60)
    assert engine.started == ["first"]
    await leave(first)
    assert engine.started == ["first", "second"]
    third = await engine.come("third", tokens=40)
    assert engine.started == ["first", "second", "third"]
    await leave(second, third)


async def test_more_tokens_than_may_wait_are_refused() -> None:
    """The queue is bounded in tokens too, and a refused prompt leaves nothing behind."""
    engine = Engine(queue=100)
    visits = [await engine.come(str(number), tokens=50) for number in range(int(WAITING_CACHES * 2))]
    for _ in range(3):
        with pytest.raises(Overloaded) as caught:
            with engine.admission.place(LATER) as place:
                async with place.slot(1):
                    raise AssertionError("let in")
        assert caught.value.reason == "QUEUE_FULL_OF_TOKENS"
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
    await leave(*visits)
    await leave(await engine.come("after", tokens=100))
    assert engine.started[-1] == "after"


async def test_a_single_prompt_is_never_refused_for_its_tokens() -> None:
    """Whether one prompt fits is the context's affair; an idle engine takes it."""
    engine = Engine()
    await leave(await engine.come("long", tokens=1000))
    assert engine.started == ["long"]


@pytest.mark.parametrize("load", [None, EngineLoad(running=1, waiting=0)])
async def test_what_is_not_known_holds_nobody_back(load: EngineLoad | None) -> None:
    """Without a reading, or a cache whose size is told, the slots alone count."""
    engine = Engine(load)
    visits = [await engine.come(str(number), tokens=1000) for number in range(8)]
    assert len(engine.started) == 8
    await leave(*visits)


async def test_cancelled_prompts_give_their_tokens_back() -> None:
    """Whoever leaves, at work or waiting, no longer counts."""
    engine = Engine(queue=100)
    visits = [await engine.come(str(number), tokens=50) for number in range(4)]
    for task, _ in visits:
        task.cancel()
    await asyncio.gather(*(task for task, _ in visits), return_exceptions=True)
    again = [await engine.come(f"again {number}", tokens=50) for number in range(4)]
    assert engine.started == ["0", "1", "again 0", "again 1"]
    await leave(*again)


class Wide:
    """Visits that want several answers."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.started: list[str] = []

    async def _visit(self, name: str, answers: int, priority: Priority, leave: asyncio.Event) -> None:
        with self.admission.place(LATER, priority, answers=answers) as place:
            async with place.slot():
                self.started.append(name)
                await leave.wait()

    async def come(
        self, name: str, answers: int, priority: Priority = Priority.INTERACTIVE
    ) -> tuple[asyncio.Task[None], asyncio.Event]:
        """Let one more come, and see what becomes of it."""
        leaves = asyncio.Event()
        task = asyncio.create_task(self._visit(name, answers, priority, leaves))
        for _ in range(10):
            await asyncio.sleep(0)
        return task, leaves


async def test_several_answers_take_as_many_slots() -> None:
    """What a request for sixteen answers costs is what sixteen requests cost, at the engine and in the queue."""
    wide = Wide(Admission(concurrency=8, queue=8))
    first = await wide.come("first", 6)
    second = await wide.come("second", 4)
    assert (wide.started, wide.admission.running, wide.admission.waiting) == (["first"], 6, 4)
    refused, _ = await wide.come("third", 7)
    with pytest.raises(Overloaded, match="10 answers are before"):
        await refused
    await leave(first)
    assert (wide.started, wide.admission.running) == (["first", "second"], 4)
    await leave(second)
    assert (wide.admission.running, wide.admission.waiting) == (0, 0)


@pytest.mark.parametrize("priority", Priority)
async def test_more_answers_than_slots_take_them_all(priority: Priority) -> None:
    """An idle worker takes any request that is within its bounds; nothing is refused for ever."""
    wide = Wide(Admission(concurrency=2, queue=0))
    await leave(await wide.come("wide", 16, priority))
    assert wide.started == ["wide"]


async def test_bulk_work_does_not_slip_past_an_interactive_request_that_needs_room() -> None:
    """Small bulk requests that fit into every gap would keep it waiting for as long as they come."""
    wide = Wide(Admission(concurrency=4, queue=40))
    first, second = await wide.come("first", 2), await wide.come("second", 1)
    waits = await wide.come("wide", 4)
    bulk = await wide.come("bulk", 1, Priority.BULK)
    assert wide.started == ["first", "second"]
    await leave(first, second)
    assert wide.started == ["first", "second", "wide"]
    await leave(waits, bulk)
