"""The canary proves an idle engine, and gets in nobody's way."""

from __future__ import annotations

import asyncio

import pytest

from llm_service.generation import Accepted, Event, Generation
from llm_service.testing import ScriptedEngine, written
from llm_service.writer import Limits, Writer
from mesh.deadline import Deadline
from mesh.errors import Overloaded, Unavailable


async def started(engine: ScriptedEngine, **limits: int) -> Writer:
    """A writer that has started."""
    writer = Writer(engine, limits=Limits(**limits))
    await writer.start()
    return writer


async def collect(writer: Writer) -> list[Event]:
    """All events of one request."""
    return [event async for event in writer.generate(Generation(prompt="Once"), Deadline.after(60.0))]


async def test_the_canary_leaves_a_busy_engine_alone() -> None:
    """An idle engine proves itself; a busy one is not disturbed."""
    engine = ScriptedEngine([Accepted(), ScriptedEngine.HOLD, *written("done")[1:]])
    writer = await started(engine)
    await writer.canary()
    assert engine.proofs == 1
    busy = asyncio.create_task(collect(writer))
    await engine.busy.wait()
    with pytest.raises(Overloaded):
        await writer.canary()
    assert engine.proofs == 1
    engine.release.set()
    await busy


async def test_no_request_runs_beside_the_canary() -> None:
    """A request that arrives during the canary waits for its end, so it cannot die with the canary's engine."""
    engine = ScriptedEngine()
    engine.proof_may_end.clear()
    writer = await started(engine)
    canary = asyncio.create_task(writer.canary())
    await asyncio.sleep(0)
    asked = asyncio.create_task(collect(writer))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (engine.proofs, engine.requests) == (1, [])
    engine.proof_may_end.set()
    await canary
    assert await asked


async def test_a_failed_canary_frees_its_slot() -> None:
    """After a canary that failed, requests are admitted as before."""
    engine = ScriptedEngine()
    writer = await started(engine, queued=0)
    engine.proof_failure = Unavailable("failed")
    with pytest.raises(Unavailable):
        await writer.canary()
    assert await collect(writer)


async def test_an_engine_that_mends_itself_fails_no_canary() -> None:
    """Where the engine is being restarted over its canary, the reason to be unhealthy says it all."""
    engine = ScriptedEngine()
    writer = await started(engine)
    engine.proof_may_end.clear()
    engine.proof_failure = Unavailable("It failed its canary.", reason="ENGINE_RESTARTING")
    canary = asyncio.create_task(writer.canary())
    await asyncio.sleep(0)
    engine.broken = engine.proof_failure
    engine.proof_may_end.set()
    await canary
    assert writer.unhealthy() is engine.broken
