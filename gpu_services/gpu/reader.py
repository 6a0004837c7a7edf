"""Keeps the driver's blocking calls off the event loop: one reading at a time, shared by all who ask meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable

from gpu_services.gpu.nvml import GpuSource
from gpu_services.gpu.status import Status
from mesh.clock import Clock, monotonic
from mesh.errors import InvalidRequest, MeshError, Unavailable

_Outcome = tuple[Status | None, str, str, Exception | None]

MIN_INTERVAL_MS = 100
MAX_INTERVAL_MS = 3_600_000
DEFAULT_INTERVAL_MS = 1000


class GpuReader:
    """Reads GPUs for any number of callers.

    Args:
        source: what is read; only one of its calls runs at a time.
        answer_seconds: time that the driver has for one reading. A driver that hangs holds one thread, not the worker.
        clock: source of time.
    """

    def __init__(self, source: GpuSource, *, answer_seconds: float = 3.0, clock: Clock = monotonic) -> None:
        self._source = source
        self._answer_seconds = answer_seconds
        self._clock = clock
        self._reading: asyncio.Future[Status] | None = None
        self._asked_at = clock()
        self.name = "none"
        self.library_version = ""

    async def start(self) -> None:
        """Read once, however long the driver takes. A machine without GPUs serves as well: it says so."""
        self._reading = self._reading or self._begin()
        await asyncio.shield(self._reading)

    async def canary(self) -> None:
        """Read once more. A driver that hangs is told by ``unhealthy``, and is no failure for a restart to mend."""
        try:
            await self.read()
        except Unavailable:
            if self.unhealthy() is None:
                raise

    async def stop(self) -> None:
        """Let go of the driver, unless it hangs."""
        if self._reading is None:
            self._source.close()

    def unhealthy(self) -> MeshError | None:
        """Why nothing can be read: the driver owes an answer for too long. None as soon as it has given it.

        A fresh process would meet the same driver, so this one stays, and with it the worker's other capability.
        """
        late = self._reading is not None and self._clock() - self._asked_at >= self._answer_seconds
        return _driver_hangs() if late else None

    async def read(self) -> Status:
        """The state now.

        Raises:
            Unavailable: GPU_DRIVER_HANGS: the driver does not answer in time.
        """
        if (failure := self.unhealthy()) is not None:
            raise failure  # who asks a driver that hangs need not wait to hear it
        if self._reading is None:
            self._reading = self._begin()
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await asyncio.shield(self._reading)
        except TimeoutError:
            raise _driver_hangs() from None

    async def watch(
        self, interval_ms: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> AsyncGenerator[Status, None]:
        """The state now and again every interval, for ever; raise InvalidRequest for an interval out of bounds."""
        if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
            raise InvalidRequest(
                f"interval_ms must be from {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}; it is {interval_ms}.",
                param="interval_ms",
            )
        while True:
            yield await self.read()
            await sleep(interval_ms / 1000)

    def _begin(self) -> asyncio.Future[Status]:
        """Read in a thread that the interpreter does not wait for at its end: a hung driver must not keep it alive."""
        loop = asyncio.get_running_loop()
        reading: asyncio.Future[Status] = loop.create_future()
        self._asked_at = self._clock()

        def settle(status: Status | None, name: str, version: str, error: Exception | None) -> None:
            self._reading = None
            self.name, self.library_version = name, version
            if reading.done():
                return
            if error is not None:
                reading.set_exception(error)
            elif status is not None:
                reading.set_result(status)

        def work() -> None:
            try:
                outcome: _Outcome = (self._source.read(), *self._source.version(), None)
            except Exception as error:
                outcome = (None, "none", "", error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, *outcome)

        threading.Thread(target=work, name="gpu-reader", daemon=True).start()
        return reading


def _driver_hangs() -> Unavailable:
    return Unavailable(
        "The GPU driver does not answer; see the machine's kernel log.", reason="GPU_DRIVER_HANGS", retry_after=10.0
    )
