"""The watchdog's signals, with its pauses made short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from mesh.clock import Clock
from mesh.errors import MeshError, Overloaded, Unavailable
from mesh.serving import Capability, watchdog
from mesh.serving.health import Readiness
from mesh.serving.watchdog import Watchdog, WatchdogLimits
from mesh.testing import FakeClock

LIMITS = WatchdogLimits(
    stuck_seconds=0.05, canary_interval_seconds=0.02, canary_seconds=0.05, canary_retry_seconds=0.02
)
PATIENT = WatchdogLimits(
    stuck_seconds=3600, canary_interval_seconds=3600, canary_seconds=3600, canary_retry_seconds=0.02
)
SERVICE = "test.v1.Service"


@dataclass
class Engine:
    """What the watched capability says of itself, as the test sets it."""

    waited: float = 0.0
    reason: MeshError | None = None
    canary_result: Exception | None = None
    canaries: int = 0
    failed_batches: int = 0
    hang: bool = False
    busy_elsewhere: bool = False
    bug: Exception | None = None
    ended: list[str] = field(default_factory=list)

    def progress(self) -> float:
        """Seconds for which work has waited; ``bug`` where the capability cannot tell."""
        if self.bug is not None:
            raise self.bug
        return self.waited

    async def canary(self) -> None:
        """One inference."""
        self.canaries += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.canary_result is not None:
            raise self.canary_result


async def nothing() -> None:
    """A start that needs nothing."""


@asynccontextmanager
async def watched(
    engine: Engine, *, idle: bool = True, limits: WatchdogLimits = LIMITS, clock: Clock = time.monotonic
) -> AsyncIterator[Readiness]:
    """The engine under a watchdog, serving."""
    readiness = Readiness([SERVICE])
    await readiness.set(SERVICE, None)
    capability = Capability(
        service=SERVICE, register=lambda _: None, start=nothing, canary=engine.canary,
        failures=lambda: engine.failed_batches, progress=engine.progress, unhealthy=lambda: engine.reason,
        occupied=lambda: engine.busy_elsewhere,
    )  # fmt: skip
    dog = Watchdog(
        capability, readiness, limits=limits, clock=clock,
        last_traffic=(lambda: 0.0) if idle else time.monotonic, give_up=engine.ended.append,
    )  # fmt: skip
    task = asyncio.create_task(dog.run())
    try:
        yield readiness
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state that the watchdog brings about."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second between looks is a long time in a test."""
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(watchdog, "SUSPICION_PAUSE_SECONDS", 0.02)


async def test_an_engine_without_progress_ends_the_process() -> None:
    """Work that waits too long turns the capability NOT_SERVING and asks for the end."""
    engine = Engine(waited=1.0)
    async with watched(engine) as readiness:
        await until(lambda: bool(engine.ended))
        assert not readiness.serving(SERVICE)
        assert "no progress" in engine.ended[0]


async def test_a_hung_canary_ends_the_process() -> None:
    """An idle engine that does not answer is as stuck as a busy one."""
    engine = Engine(hang=True)
    async with watched(engine) as readiness:
        await until(lambda: bool(engine.ended))
        assert not readiness.serving(SERVICE)


async def test_a_watchdog_that_cannot_watch_ends_the_process() -> None:
    """A capability that cannot be asked is not left serving unwatched, and nobody is told of the bug's text."""
    engine = Engine(bug=KeyError("secret"))
    async with watched(engine) as readiness:
        await until(lambda: bool(engine.ended))
        assert not readiness.serving(SERVICE)
        assert "secret" not in engine.ended[0]


async def test_a_canary_that_keeps_failing_ends_the_process() -> None:
    """Three failures in a row: a poisoned device context is cured by a new process only."""
    engine = Engine(canary_result=RuntimeError("device-side assert"))
    async with watched(engine) as readiness:
        await until(lambda: engine.canaries == 1 and not readiness.serving(SERVICE))
        refusal = readiness.refusal(SERVICE)
        assert refusal is not None
        assert "device-side" not in refusal.message
        await until(lambda: bool(engine.ended))
        assert engine.canaries == watchdog.CANARY_FAILURES_BEFORE_EXIT


async def test_failing_batches_have_the_canary_run_at_once_though_traffic_flows() -> None:
    """A poisoned engine is found by its failures: no interval is waited for, and traffic takes nobody's place."""
    engine = Engine(failed_batches=1, canary_result=RuntimeError("poisoned"))
    async with watched(engine, idle=False, limits=PATIENT) as readiness:
        await until(lambda: not readiness.serving(SERVICE))
        await until(lambda: bool(engine.ended))
        assert engine.canaries == watchdog.CANARY_FAILURES_BEFORE_EXIT


async def test_failing_batches_alone_end_nothing() -> None:
    """Where the canary succeeds, it was the requests' fault: a client that repeats one costs a canary now and then."""
    engine = Engine(failed_batches=1000)
    async with watched(engine, idle=False, limits=PATIENT) as readiness:
        await until(lambda: engine.canaries >= 5)
        assert readiness.serving(SERVICE)
        assert not engine.ended


async def test_a_hung_engine_is_found_while_its_canary_runs() -> None:
    """The canary's patience does not keep the other signals from being looked at."""
    engine = Engine(hang=True)
    async with watched(engine, limits=replace(LIMITS, canary_seconds=3600)) as readiness:
        await until(lambda: engine.canaries == 1)
        engine.waited = 1.0
        await until(lambda: bool(engine.ended))
        assert not readiness.serving(SERVICE)


async def test_a_canary_that_waits_for_another_batch_is_not_late() -> None:
    """A healthy worker that computes one long item is not ended; once the item is done, the canary's time counts."""
    clock = FakeClock()
    engine = Engine(hang=True, busy_elsewhere=True)
    limits = WatchdogLimits(stuck_seconds=7, canary_interval_seconds=0.0, canary_seconds=4, canary_retry_seconds=1)
    async with watched(engine, limits=limits, clock=clock) as readiness:
        await until(lambda: engine.canaries == 1)
        for _ in range(20):
            clock.advance(1)
            await asyncio.sleep(0.01)
        assert not engine.ended
        assert readiness.serving(SERVICE)
        engine.busy_elsewhere = False
        for _ in range(6):
            clock.advance(1)
            await asyncio.sleep(0.01)
        await until(lambda: bool(engine.ended))
        assert "canary" in engine.ended[0]


async def test_time_in_which_the_process_itself_stood_still_does_not_count() -> None:
    """After SIGSTOP and SIGCONT a batch looks as old as the pause; the engine gets the time to go on."""
    clock = FakeClock()
    engine = Engine(waited=0.1)
    limits = WatchdogLimits(stuck_seconds=8, canary_interval_seconds=3600, canary_seconds=4, canary_retry_seconds=1)
    async with watched(engine, limits=limits, clock=clock) as readiness:
        await asyncio.sleep(0.02)
        clock.advance(600)
        engine.waited = 600.1
        await asyncio.sleep(0.05)
        assert not engine.ended
        assert readiness.serving(SERVICE)
        for _ in range(8):
            clock.advance(1)
            engine.waited += 1
            await asyncio.sleep(0.02)
        await until(lambda: bool(engine.ended))


async def test_a_canary_that_recovers_brings_the_capability_back() -> None:
    """One bad answer is not the end."""
    engine = Engine(canary_result=RuntimeError("once"))
    async with watched(engine) as readiness:
        await until(lambda: not readiness.serving(SERVICE))
        engine.canary_result = None
        await until(lambda: readiness.serving(SERVICE))
        assert not engine.ended


async def test_traffic_and_a_full_queue_take_the_canarys_place() -> None:
    """A busy engine is proved by its traffic; busy is never broken."""
    busy = Engine(canary_result=Overloaded("busy"))
    async with watched(busy) as readiness:
        await until(lambda: busy.canaries >= 5)
        assert readiness.serving(SERVICE)
    with_traffic = Engine()
    async with watched(with_traffic, idle=False):
        await asyncio.sleep(0.05)
    assert with_traffic.canaries == 0


async def test_a_capability_that_calls_itself_unhealthy_is_believed_until_it_is_well() -> None:
    """An engine that restarts is NOT_SERVING with its own reason, and serves again by itself."""
    engine = Engine(reason=Unavailable("The engine restarts.", reason="ENGINE_RESTARTING"))
    async with watched(engine) as readiness:
        await until(lambda: not readiness.serving(SERVICE))
        refusal = readiness.refusal(SERVICE)
        assert refusal is not None
        assert refusal.reason == "ENGINE_RESTARTING"
        engine.reason = None
        await until(lambda: readiness.serving(SERVICE))
