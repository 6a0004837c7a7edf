"""An engine that ends is started again, with growing pauses, and callers are told why they wait."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator

import pytest

from llm_service.supervision import LONGEST_PAUSE_SECONDS, SETTLED_SECONDS, START_ATTEMPTS, Supervisor
from llm_service.testing import ScriptedChild
from mesh.errors import Internal, ModelUnusable
from mesh.testing import FakeClock


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


class Stage:
    """A supervisor with children that do as they are told, and pauses that take no time."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.children: list[ScriptedChild] = []
        self.pauses: list[float] = []
        self.fails_to_prove = 0
        self.spawn_failures: list[Exception] = []
        self.prove_failures: list[Exception] = []
        self.hangs = False
        self.pause_over = asyncio.Event()
        self.pause_over.set()
        self.supervisor = Supervisor(
            spawn=self._spawn, prove=self._prove, start_seconds=0.01, clock=self.clock, sleep=self._sleep
        )

    async def _spawn(self) -> ScriptedChild:
        if self.spawn_failures:
            raise self.spawn_failures.pop(0)
        self.children.append(ScriptedChild())
        return self.children[-1]

    async def _prove(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.prove_failures:
            raise self.prove_failures.pop(0)
        if self.fails_to_prove:
            self.fails_to_prove -= 1
            raise Internal("It writes nonsense.")

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.pause_over.wait()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A stage that is cleared afterwards."""
    made = Stage()
    yield made
    await made.supervisor.stop()


async def test_an_engine_that_ends_is_started_again(stage: Stage) -> None:
    """After a crash the reason is told until the next engine has proved itself."""
    await stage.supervisor.start()
    assert stage.supervisor.unhealthy() is None
    stage.pause_over.clear()
    stage.children[0].end("ended with exit code 3")
    await settle()
    reason = stage.supervisor.unhealthy()
    assert reason is not None
    assert (reason.reason, "exit code 3" in reason.message) == ("ENGINE_RESTARTING", True)
    stage.pause_over.set()
    await settle()
    assert (stage.supervisor.unhealthy(), len(stage.children)) == (None, 2)


async def test_pauses_grow_and_stay_bounded(stage: Stage) -> None:
    """An engine that keeps crashing is started ever less often, and never given up."""
    await stage.supervisor.start()
    for _ in range(10):
        stage.children[-1].end()
        await settle()
    assert stage.pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert {LONGEST_PAUSE_SECONDS} == set(stage.pauses[7:])


async def test_a_settled_engine_starts_afresh(stage: Stage) -> None:
    """Long after a crash loop, one crash costs one short pause again."""
    await stage.supervisor.start()
    for _ in range(4):
        stage.children[-1].end()
        await settle()
    stage.clock.advance(SETTLED_SECONDS)
    stage.children[-1].end()
    await settle()
    assert stage.pauses[-1] == 0.5


async def test_an_engine_that_never_comes_up_is_the_models_fault(stage: Stage) -> None:
    """An engine that fails at every start is ModelUnusable, and nothing is left running."""
    stage.fails_to_prove = START_ATTEMPTS
    with pytest.raises(ModelUnusable, match="writes nonsense"):
        await stage.supervisor.start()
    assert all(child.ended.done() for child in stage.children)


async def test_a_second_attempt_may_succeed(stage: Stage) -> None:
    """One failed start, for a port that was taken, is no reason to give up."""
    stage.fails_to_prove = 1
    await stage.supervisor.start()
    assert (stage.supervisor.unhealthy(), len(stage.children)) == (None, 2)


async def test_an_engine_that_never_answers_runs_out_of_time(stage: Stage) -> None:
    """A start that hangs ends after its time."""
    stage.hangs = True
    with pytest.raises(ModelUnusable, match="not ready within"):
        await stage.supervisor.start()


async def test_an_engine_that_ends_while_starting_is_noticed_at_once(stage: Stage) -> None:
    """Nobody waits for an engine that has already ended."""
    stage.hangs = True
    starting = asyncio.create_task(stage.supervisor.start())
    while len(stage.children) < START_ATTEMPTS:
        if stage.children:
            stage.children[-1].end("ended with exit code 1")
        await asyncio.sleep(0)
    stage.children[-1].end("was killed, perhaps for want of memory")
    with pytest.raises(ModelUnusable, match="want of memory"):
        await starting


async def test_a_restart_keeps_its_reason(stage: Stage) -> None:
    """An engine that was ended because it hung is not said to have been killed for want of memory."""
    await stage.supervisor.start()
    stage.pause_over.clear()
    stage.supervisor.restart("its process hangs")
    stage.supervisor.restart("and again")
    await settle()
    reason = stage.supervisor.unhealthy()
    assert reason is not None
    assert "its process hangs" in reason.message
    stage.pause_over.set()
    await settle()
    assert (stage.supervisor.unhealthy(), len(stage.children)) == (None, 2)


def no_process() -> Exception:
    """What the system says when it has no process to spare."""
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


async def test_a_restart_that_cannot_be_spawned_is_tried_again(stage: Stage) -> None:
    """A system without a process to spare, or a fault of our own, delays the next engine and does not prevent it."""
    await stage.supervisor.start()
    stage.spawn_failures = [no_process(), ValueError("a secret")]
    stage.children[0].end()
    await settle()
    assert (stage.supervisor.unhealthy(), len(stage.children)) == (None, 2)
    assert stage.pauses == [0.5, 1.0, 2.0]


async def test_a_failed_spawn_is_told(stage: Stage) -> None:
    """While the engine cannot be spawned, callers hear why, in the system's words."""
    await stage.supervisor.start()
    stage.spawn_failures = [no_process()]
    stage.pause_over.clear()
    stage.children[0].end()
    await settle()
    stage.pause_over.set()  # one pause ends, and the next does not
    stage.pause_over.clear()
    await settle()
    reason = stage.supervisor.unhealthy()
    assert reason is not None
    assert os.strerror(errno.EAGAIN) in reason.message


async def test_a_proof_that_breaks_is_tried_again(stage: Stage) -> None:
    """A fault of our own while an engine is proved ends that engine, not the watch."""
    await stage.supervisor.start()
    stage.prove_failures = [ValueError("a secret")]
    stage.children[0].end()
    await settle()
    assert (stage.supervisor.unhealthy(), len(stage.children)) == (None, 3)
    assert stage.children[1].ended.done()


@pytest.mark.parametrize("where", ["spawn_failures", "prove_failures"])
@pytest.mark.parametrize("failure", [no_process(), ValueError("a secret")])
async def test_a_start_that_cannot_be_made_has_a_typed_end(stage: Stage, where: str, failure: Exception) -> None:
    """Whatever prevents the first engine, the start ends as ModelUnusable, without an exception's own text."""
    setattr(stage, where, [failure] * START_ATTEMPTS)
    with pytest.raises(ModelUnusable) as caught:
        await stage.supervisor.start()
    assert "a secret" not in caught.value.message


async def test_a_second_attempt_forgets_the_first(stage: Stage) -> None:
    """An engine that was restarted while it was proved leaves no reason behind for the one that succeeds it."""
    stage.hangs = True
    starting = asyncio.create_task(stage.supervisor.start())
    while not stage.children:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    stage.hangs = False
    stage.supervisor.restart("it fell silent while it was writing")
    await starting
    assert (stage.supervisor.unhealthy(), len(stage.children)) == (None, 2)


async def test_stop_ends_the_engine_for_good(stage: Stage) -> None:
    """After stop no engine runs and none is started."""
    await stage.supervisor.start()
    await stage.supervisor.stop()
    await settle()
    assert (len(stage.children), stage.children[0].ended.done()) == (1, True)
