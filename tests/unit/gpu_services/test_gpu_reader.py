"""The driver's blocking calls stay off the event loop and never pile up."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from gpu_services.gpu.reader import GpuReader
from gpu_services.gpu.status import Status
from mesh.errors import InvalidRequest, Unavailable
from mesh.testing import FakeClock


class FakeSource:
    """Counts its readings; each waits for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.readings = 0
        self.closed = False

    def read(self) -> Status:
        """One more reading."""
        self.gate.wait(10)
        self.readings += 1
        return Status(read_at_unix_ms=self.readings, unavailable_reason="none here")

    def version(self) -> tuple[str, str]:
        """A version."""
        return "nvml", "1.0"

    def close(self) -> None:
        """Remember it."""
        self.closed = True


async def test_those_who_ask_at_once_share_one_reading() -> None:
    """A hundred pollers cost the driver what one does."""
    source = FakeSource()
    source.gate.clear()
    reader = GpuReader(source)
    asking = [asyncio.create_task(reader.read()) for _ in range(100)]
    await asyncio.sleep(0)
    source.gate.set()
    assert {status.read_at_unix_ms for status in await asyncio.gather(*asking)} == {1}
    assert (await reader.read()).read_at_unix_ms == 2
    assert (reader.name, reader.library_version) == ("nvml", "1.0")


async def test_a_driver_that_hangs_fails_the_callers_and_holds_one_thread() -> None:
    """Each caller hears of it in time, no second call is piled on, and the answer that comes late is used."""
    source = FakeSource()
    source.gate.clear()
    reader = GpuReader(source, answer_seconds=0.01)
    for _ in range(3):
        with pytest.raises(Unavailable) as refused:
            await reader.read()
        assert refused.value.reason == "GPU_DRIVER_HANGS"
    assert sum(thread.name == "gpu-reader" for thread in threading.enumerate()) == 1
    await reader.stop()
    assert not source.closed
    source.gate.set()
    late = GpuReader(source)
    assert (await late.read()).unavailable_reason == "none here"
    await late.stop()
    assert source.closed


async def test_a_driver_that_hangs_is_told_until_it_answers() -> None:
    """The capability is unhealthy from the time limit on, callers hear so at once, and it mends by itself."""
    source, clock = FakeSource(), FakeClock()
    source.gate.clear()
    reader = GpuReader(source, answer_seconds=3.0, clock=clock)
    asking = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    seen = [reader.unhealthy()]
    clock.advance(3.0)
    seen.append(reader.unhealthy())
    with pytest.raises(Unavailable, match="does not answer"):
        await reader.read()
    source.gate.set()
    assert (await asking).unavailable_reason == "none here"
    seen.append(reader.unhealthy())
    assert seen[0] is seen[2] is None
    assert seen[1] is not None
    assert seen[1].reason == "GPU_DRIVER_HANGS"


async def test_a_start_waits_for_a_driver_that_hangs() -> None:
    """A worker that starts while the driver hangs serves as soon as the driver answers."""
    source = FakeSource()
    source.gate.clear()
    reader = GpuReader(source, answer_seconds=0.0)
    starting = asyncio.create_task(reader.start())
    await asyncio.sleep(0)
    assert not starting.done()
    source.gate.set()
    await starting
    assert reader.unhealthy() is None


async def test_a_source_that_raises_fails_the_reading_only() -> None:
    """The next reading is tried again."""

    class Broken(FakeSource):
        def read(self) -> Status:
            if self.readings == 0:
                self.readings = 1
                raise RuntimeError("no")
            return super().read()

    reader = GpuReader(Broken())
    with pytest.raises(RuntimeError):
        await reader.read()
    assert (await reader.read()).read_at_unix_ms == 2


async def test_watching_reads_at_once_and_after_every_interval() -> None:
    """The first answer does not wait; each pause is the interval."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    seen = []
    async with aclosing(GpuReader(FakeSource()).watch(250, pause)) as states:
        async for state in states:
            seen.append(state.read_at_unix_ms)
            if len(seen) == 3:
                break
    assert seen == [1, 2, 3]
    assert pauses == [0.25, 0.25]


@pytest.mark.parametrize("interval", [0, 99, 3_600_001])
async def test_an_interval_out_of_bounds_is_refused(interval: int) -> None:
    """Neither a busy loop nor a stream that never speaks."""
    with pytest.raises(InvalidRequest):
        await anext(GpuReader(FakeSource()).watch(interval))
