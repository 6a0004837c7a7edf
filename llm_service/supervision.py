"""Keeps an engine running: brings it up, proves it, watches it, and starts it again with growing pauses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from llm_service.metrics import ENGINE_RESTARTS
from mesh.clock import Clock
from mesh.errors import MeshError, ModelUnusable, Unavailable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

START_ATTEMPTS = 2
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SETTLED_SECONDS = 60.0
"""An engine that ran this long is not in a crash loop: its next restart comes without a long pause."""


class Child(Protocol):
    """A running engine, as `EngineProcess` is one."""

    @property
    def last_words(self) -> str:
        """The end of its output."""
        ...

    async def cpu_seconds(self) -> float | None:
        """Processor time that it has used so far; None where the system does not say."""
        ...

    async def wait(self) -> str:
        """Wait for its end; says how it ended."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """End it, politely for as long as the grace."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class Supervisor:
    """Runs one engine at a time.

    Args:
        spawn: starts an engine.
        prove: waits until the engine just started answers and has done real work; raises a MeshError if it cannot.
        start_seconds: how long ``prove`` may take.
        grace_seconds: how long an engine may take to end before it is killed.
    """

    def __init__(  # noqa: PLR0913 - two seams and two times for the tests, all by name
        self,
        *,
        spawn: Callable[[], Awaitable[Child]],
        prove: Callable[[], Awaitable[None]],
        start_seconds: float,
        grace_seconds: float = 5.0,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._spawn = spawn
        self._prove = prove
        self._start_seconds = start_seconds
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._sleep = sleep
        self._child: Child | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._reason: MeshError | None = None
        self._ended_because: str | None = None

    async def start(self) -> None:
        """Bring the first engine up.

        Raises:
            ModelUnusable: it cannot be brought up; trying further would not help.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            failure = await self._bring_up()
            if failure is None:
                break
            if attempt == START_ATTEMPTS:
                raise ModelUnusable(
                    f"The engine cannot serve this model: {failure}. The worker's log has its last words.",
                    reason="ENGINE_DOES_NOT_START",
                )
            await self._sleep(FIRST_PAUSE_SECONDS)
        # A failed attempt may have asked for a restart; the engine that came up is proved.
        self._reason = self._ended_because = None
        self._watcher = asyncio.create_task(self._watch())

    def unhealthy(self) -> MeshError | None:
        """None while the engine is up and proved, otherwise why not."""
        return self._reason

    async def cpu_seconds(self) -> float | None:
        """Processor time that the engine has used so far; None where there is none, or the system does not say."""
        return None if self._child is None else await self._child.cpu_seconds()

    def restart(self, why: str) -> None:
        """End an engine that no longer works; the watch brings up the next. Does nothing while one is on its way."""
        if self._child is None or self._reason is not None:
            return
        log.error("ending the engine", extra=fields(reason=why))
        self._ended_because = why
        self._reason = _restarting(why, FIRST_PAUSE_SECONDS)
        self._child.kill()

    async def stop(self) -> None:
        """End the engine and the watch over it."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._child is not None:
            await self._child.stop(self._grace_seconds)
            self._child = None

    async def _watch(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while self._child is not None:
            up_since = self._clock()
            how = await self._child.wait()
            log.error("the engine is gone", extra=fields(how=how, last_words=self._child.last_words))
            if self._clock() - up_since >= SETTLED_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            failure: str | None = self._ended_because or f"it {how}"
            self._ended_because = None
            while failure is not None:
                self._reason = _restarting(failure, pause)
                await self._sleep(pause)
                pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
                ENGINE_RESTARTS.inc()
                failure = await self._bring_up()
            self._reason = None

    async def _bring_up(self) -> str | None:
        """Start an engine and prove it. Returns what went wrong, or None; it raises nothing, or the watch would end."""
        try:
            self._child = child = await self._spawn()
        except OSError as error:
            log.error("the engine's process could not be started", extra=fields(error=repr(error)))
            return f"its process could not be started ({error.strerror or type(error).__name__})"
        except Exception:
            log.exception("the engine's process could not be started")
            return "its process could not be started; the worker's log says why"
        failure = await self._failure_of(child)
        if failure is not None:
            await child.stop(self._grace_seconds)
            log.error("the engine did not come up", extra=fields(reason=failure, last_words=child.last_words))
        return failure

    async def _failure_of(self, child: Child) -> str | None:
        """Prove an engine just started. Returns what is wrong with it, or None."""
        ended = asyncio.create_task(child.wait())
        proved = asyncio.ensure_future(self._prove())
        try:
            await asyncio.wait({ended, proved}, timeout=self._start_seconds, return_when=asyncio.FIRST_COMPLETED)
            if proved.done():
                proved.result()
                return None
            if ended.done():
                return f"it {ended.result()}"
            return f"it was not ready within {self._start_seconds:.0f} s"
        except MeshError as error:
            return error.message.rstrip(".")
        except Exception:
            log.exception("the engine could not be proved")
            return "it could not be proved; the worker's log says why"
        finally:
            for task in (proved, ended):
                task.cancel()
            await asyncio.gather(proved, ended, return_exceptions=True)


def _restarting(why: str, pause: float) -> Unavailable:
    return Unavailable(
        f"The language model's engine is being restarted: {why.rstrip('.')}.",
        reason="ENGINE_RESTARTING",
        retry_after=max(1.0, pause),
    )
