"""GPUs for Prometheus: what the driver tells, when it is asked, and nothing in its place where it does not."""

from __future__ import annotations

import asyncio
import threading

from prometheus_client import CollectorRegistry, generate_latest

from gpu_services.gpu.metrics import GpuMetrics
from gpu_services.gpu.reader import GpuReader
from gpu_services.gpu.status import Device, Status

TWO_GPUS = (
    Device(
        index=0,
        uuid="GPU-a",
        name="A card",
        memory_total_bytes=80 * 2**30,
        memory_used_bytes=20 * 2**30,
        utilization_percent=37,
        temperature_celsius=55,
        power_watts=300.5,
        power_limit_watts=700.0,
    ),
    Device(index=1, uuid="GPU-b", name="A card", memory_total_bytes=80 * 2**30),
)


class FakeSource:
    """Tells of these devices; each reading waits for ``gate``."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.gate = threading.Event()
        self.gate.set()

    def read(self) -> Status:
        """Once more."""
        self.gate.wait(10)
        return Status(read_at_unix_ms=0, devices=self.devices, unavailable_reason="" if self.devices else "none here")

    def version(self) -> tuple[str, str]:
        """Some version."""
        return "nvml", "1.0"

    def close(self) -> None:
        """Nothing is open."""


async def scraped(source: FakeSource, *, answer_seconds: float = 3.0) -> str:
    """The exposition, as a scrape on its own thread gets it."""
    registry, metrics = CollectorRegistry(), GpuMetrics()
    registry.register(metrics)
    assert generate_latest(registry) == b""  # before the worker's loop turns there is nothing to ask
    metrics.publish(GpuReader(source, answer_seconds=answer_seconds))
    return (await asyncio.to_thread(generate_latest, registry)).decode()


async def test_each_gpu_has_its_figures_in_base_units() -> None:
    """Bytes, a ratio from 0 to 1, degrees, watts; and a series that says which device an index is."""
    lines = (await scraped(FakeSource(*TWO_GPUS))).splitlines()
    assert [line for line in lines if line.startswith("mesh_") and 'gpu="0"' in line] == [
        'mesh_gpu_memory_used_bytes{gpu="0"} 2.147483648e+10',
        'mesh_gpu_memory_total_bytes{gpu="0"} 8.589934592e+10',
        'mesh_gpu_utilization_ratio{gpu="0"} 0.37',
        'mesh_gpu_temperature_celsius{gpu="0"} 55.0',
        'mesh_gpu_power_watts{gpu="0"} 300.5',
        'mesh_gpu_power_limit_watts{gpu="0"} 700.0',
        'mesh_gpu_info{gpu="0",name="A card",uuid="GPU-a"} 1.0',
    ]


async def test_what_a_gpu_does_not_tell_has_no_series() -> None:
    """No zero, which an alert would believe."""
    lines = (await scraped(FakeSource(*TWO_GPUS))).splitlines()
    assert [line.partition("{")[0] for line in lines if 'gpu="1"' in line] == [
        "mesh_gpu_memory_total_bytes",
        "mesh_gpu_info",
    ]


async def test_a_machine_without_gpus_has_no_series() -> None:
    """Absent, not zero."""
    assert await scraped(FakeSource()) == ""


async def test_a_driver_that_hangs_costs_its_own_series_alone() -> None:
    """The scrape ends when the reader gives up, without the GPUs."""
    source = FakeSource(*TWO_GPUS)
    source.gate.clear()
    assert await scraped(source, answer_seconds=0.01) == ""
    source.gate.set()
