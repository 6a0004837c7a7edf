"""Keeps the driver's blocking calls off the event loop: one reading at a time, shared by all who ask meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable

from gpu_services.gpu.nvml import GpuSource
from gpu_services.gpu.status import Status
from mesh.errors import InvalidRequest, Unavailable

_Outcome = tuple[Status | None, str, str, Exception | None]

MIN_INTERVAL_MS = 100
MAX_INTERVAL_MS = 3_600_000
DEFAULT_INTERVAL_MS = 1000


class GpuReader:
    """Reads GPUs for any number of callers.

    Args:
        source: what is read; only one of its calls runs at a time.
        answer_seconds: time that the driver has for one reading. A driver that hangs holds one thread, not the worker.
    """

    def __init__(self, source: GpuSource, *, answer_seconds: float = 5.0) -> None:
        self._source = source
        self._answer_seconds = answer_seconds
        self._reading: asyncio.Future[Status] | None = None
        self.name = "none"
        self.library_version = ""

    async def start(self) -> None:
        """Read once. A machine without GPUs serves as well: it says so."""
        await self.read()

    async def canary(self) -> None:
        """Read once more; raise Unavailable where the driver hangs."""
        await self.read()

    async def stop(self) -> None:
        """Let go of the driver, unless it hangs."""
        if self._reading is None:
            self._source.close()

    async def read(self) -> Status:
        """The state now.

        Raises:
            Unavailable: GPU_DRIVER_HANGS: the driver does not answer in time.
        """
        if self._reading is None:
            self._reading = self._begin()
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await asyncio.shield(self._reading)
        except TimeoutError:
            raise Unavailable(
                "The GPU driver does not answer; see the machine's kernel log.",
                reason="GPU_DRIVER_HANGS",
                retry_after=10.0,
            ) from None

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
