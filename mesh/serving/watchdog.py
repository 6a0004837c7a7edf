"""Finds an engine that hangs or fails while the event loop still answers: by progress, by canary, by its own word."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.clock import Clock, monotonic
from mesh.errors import GpuOutOfMemory, Internal, MeshError, Overloaded, Unavailable
from mesh.serving.capability import Capability
from mesh.serving.health import Readiness
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

POLL_SECONDS = 0.25
CANARY_FAILURES_BEFORE_EXIT = 3
SUSPICION_PAUSE_SECONDS = 1.0
"""Between two canaries that failing batches ask for: a client that repeats a poisonous request costs one a second."""
_LONGEST_TURN_SECONDS = 1.0
"""A longer gap between two looks means that this process itself stood still (a stopped process, a busy machine): what
the engine did meanwhile is not known, so no more than this of it counts as waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogLimits:
    """When an engine counts as stuck.

    Attributes:
        stuck_seconds: admitted work without any progress for longer is the end.
        canary_interval_seconds: an idle engine runs a canary this often.
        canary_seconds: a canary that takes longer is the end, not counting what it waits for another batch's end.
        canary_retry_seconds: pause after a failed canary.
    """

    stuck_seconds: float
    canary_interval_seconds: float
    canary_seconds: float
    canary_retry_seconds: float


class Watchdog:
    """Watches one started capability for as long as it serves.

    Three signals: work that waits without progress (a hung device call leaves the event loop answering); a canary
    inference, while idle and at once when batches fail (a poisoned CUDA context fails every batch); and the
    capability's own ``unhealthy``. The first two end in ``give_up``: no code inside the process can mend a hung
    device, a supervisor's restart can.

    Failing batches alone never end anything, since a client's input may be what the engine fails on: they ask for a
    canary, and the canary decides.
    """

    def __init__(  # noqa: PLR0913 - whom to watch, by which limits, and whom to tell, all named
        self,
        capability: Capability,
        readiness: Readiness,
        *,
        limits: WatchdogLimits,
        last_traffic: Callable[[], float],
        give_up: Callable[[str], None],
        clock: Clock = monotonic,
    ) -> None:
        self._capability = capability
        self._readiness = readiness
        self._limits = limits
        self._last_traffic = last_traffic
        self._give_up = give_up
        self._clock = clock
        self._looked_at = clock()
        self._stuck_seconds = 0.0
        self._canary: asyncio.Task[MeshError | None] | None = None
        self._canary_seconds = 0.0
        self._canary_ended_at = clock()
        self._canary_failures = 0

    async def run(self) -> None:
        """Watch until cancelled, or until the capability is given up."""
        try:
            why: str | None = None
            while why is None:
                await self._pause()
                why = await self._look()
        except Exception:
            log.exception("the watchdog cannot watch", extra=fields(service=self._capability.service))
            why = "The watchdog failed; the worker's log has the traceback."
        finally:
            if self._canary is not None:
                self._canary.cancel()
        service = self._capability.service
        await self._readiness.set(service, Unavailable(why, reason="ENGINE_STUCK", retry_after=5.0))
        self._give_up(f"{service}: {why}")

    async def _pause(self) -> None:
        """Until the next look is due, or a canary has ended."""
        if self._canary is None:
            await asyncio.sleep(POLL_SECONDS)
        else:
            await asyncio.wait([self._canary], timeout=POLL_SECONDS)

    async def _look(self) -> str | None:
        """One look at all signals. Returns why the capability is to be given up, or None."""
        now = self._clock()
        seen_seconds = min(now - self._looked_at, _LONGEST_TURN_SECONDS)
        self._looked_at = now
        waited = self._capability.progress() if self._capability.progress else 0.0
        self._stuck_seconds = min(waited, self._stuck_seconds + seen_seconds)
        if self._stuck_seconds > self._limits.stuck_seconds:
            return f"The engine made no progress for {waited:.1f} s."
        if self._canary is not None:
            return await self._follow_canary(self._canary, seen_seconds)
        own = self._capability.unhealthy() if self._capability.unhealthy else None
        if own is not None:
            await self._readiness.set(self._capability.service, own)
        elif self._capability.canary and now >= self._canary_due():
            self._canary_seconds = 0.0
            self._canary = asyncio.create_task(self._failure_of(self._capability.canary))
        elif self._canary_failures == 0:
            await self._readiness.set(self._capability.service, None)
        return None

    def _canary_due(self) -> float:
        if self._canary_failures:
            return self._canary_ended_at + self._limits.canary_retry_seconds
        if self._capability.failures and self._capability.failures():
            return self._canary_ended_at + min(SUSPICION_PAUSE_SECONDS, self._limits.canary_interval_seconds)
        return max(self._last_traffic(), self._canary_ended_at) + self._limits.canary_interval_seconds

    async def _follow_canary(self, canary: asyncio.Task[MeshError | None], seen_seconds: float) -> str | None:
        if not canary.done():
            occupied = self._capability.occupied
            if occupied is None or not occupied():
                self._canary_seconds += seen_seconds
            if self._canary_seconds <= self._limits.canary_seconds:
                return None
            return f"The engine did not answer its canary within {self._limits.canary_seconds:g} s."
        self._canary, self._canary_ended_at = None, self._clock()
        failure = canary.result()
        self._canary_failures = self._canary_failures + 1 if failure else 0
        if failure and self._canary_failures >= CANARY_FAILURES_BEFORE_EXIT:
            return f"The canary inference failed {self._canary_failures} times in a row: {failure.message}"
        reason = Unavailable(failure.message, reason="CANARY_FAILED", retry_after=1.0) if failure else None
        await self._readiness.set(self._capability.service, reason)
        return None

    async def _failure_of(self, canary: Callable[[], Awaitable[None]]) -> MeshError | None:
        """Run one canary. Returns how the engine failed it, or None."""
        try:
            await canary()
        except GpuOutOfMemory as error:
            return error  # a canary is as small as a request can be
        except Overloaded:
            return None  # busy is not broken: traffic arrived, and traffic proves the engine
        except MeshError as error:
            return error
        except Exception:
            log.exception("the canary inference failed", extra=fields(service=self._capability.service))
            return Internal("The engine fails its canary inference.")
        return None
