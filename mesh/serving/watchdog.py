"""Finds an engine that hangs or fails while the event loop still answers: by progress, by canary, by its own word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from mesh.errors import GpuOutOfMemory, Internal, MeshError, Overloaded, Unavailable
from mesh.serving.capability import Capability
from mesh.serving.health import Readiness
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

POLL_SECONDS = 0.5
CANARY_FAILURES_BEFORE_EXIT = 3


class Watchdog:
    """Watches one started capability for as long as it serves.

    Three signals: work that waits without progress (a hung device call leaves the event loop answering), a canary
    inference while idle (a poisoned CUDA context fails every batch at once), and the capability's own ``unhealthy``.
    The first two end in ``give_up``: no code inside the process can mend a hung device, a supervisor's restart can.
    """

    def __init__(  # noqa: PLR0913 - three signals and three limits, all named
        self,
        capability: Capability,
        readiness: Readiness,
        *,
        limit_seconds: float,
        canary_interval_seconds: float,
        last_traffic: Callable[[], float],
        give_up: Callable[[str], None],
    ) -> None:
        self._capability = capability
        self._readiness = readiness
        self._limit = limit_seconds
        self._canary_interval = canary_interval_seconds
        self._last_traffic = last_traffic
        self._give_up = give_up
        self._last_canary = time.monotonic()
        self._canary_failures = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            waited = self._capability.progress() if self._capability.progress else 0.0
            if waited > self._limit:
                await self._end(f"The engine made no progress for {waited:.1f} s.")
                return
            own = self._capability.unhealthy() if self._capability.unhealthy else None
            if own is not None:
                await self._readiness.set(self._capability.service, own)
                continue
            idle_since = max(self._last_traffic(), self._last_canary)
            if self._capability.canary and time.monotonic() - idle_since >= self._canary_interval:
                await self._run_canary(self._capability.canary)
            elif self._canary_failures == 0:
                await self._readiness.set(self._capability.service, None)

    async def _run_canary(self, canary: Callable[[], Awaitable[None]]) -> None:
        failure: MeshError | None = None
        try:
            async with asyncio.timeout(self._limit):
                await canary()
        except TimeoutError:
            await self._end(f"An idle engine did not answer its canary within {self._limit:.0f} s.")
            return
        except GpuOutOfMemory as error:
            failure = error  # a canary is as small as a request can be
        except Overloaded:
            pass  # busy is not broken: traffic arrived, and traffic proves the engine
        except MeshError as error:
            failure = error
        except Exception:
            log.exception("the canary inference failed", extra=fields(service=self._capability.service))
            failure = Internal("The engine fails its canary inference.")
        self._last_canary = time.monotonic()
        self._canary_failures = self._canary_failures + 1 if failure else 0
        if failure and self._canary_failures >= CANARY_FAILURES_BEFORE_EXIT:
            await self._end(f"The canary inference failed {self._canary_failures} times in a row: {failure.message}")
        elif failure:
            await self._readiness.set(self._capability.service, Unavailable(failure.message, reason="CANARY_FAILED"))
        else:
            await self._readiness.set(self._capability.service, None)

    async def _end(self, why: str) -> None:
        await self._readiness.set(self._capability.service, Unavailable(why, reason="ENGINE_STUCK", retry_after=5.0))
        self._give_up(f"{self._capability.service}: {why}")
