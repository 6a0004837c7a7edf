"""The machine's GPUs for Prometheus, read from the driver when they are scraped.

What a device does not tell has no series, and a machine without GPUs has none at all: a zero would be a lie, which an
alert would believe.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpu_services.gpu.reader import GpuReader
from gpu_services.gpu.status import Device, Status
from mesh.errors import MeshError

_SCRAPE_SECONDS = 5.0
"""Longer than the reader waits for a driver, and shorter than Prometheus waits for a scrape."""

_FIGURES: tuple[tuple[str, str, Callable[[Device], float | None]], ...] = (
    ("mesh_gpu_memory_used_bytes", "Memory of the GPU that is in use.", lambda gpu: gpu.memory_used_bytes),
    ("mesh_gpu_memory_total_bytes", "Memory that the GPU has.", lambda gpu: gpu.memory_total_bytes),
    (
        "mesh_gpu_utilization_ratio",
        "Share of the driver's latest sampling period in which a kernel ran.",
        lambda gpu: _ratio(gpu.utilization_percent),
    ),
    ("mesh_gpu_temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temperature_celsius),
    ("mesh_gpu_power_watts", "Power that the GPU draws.", lambda gpu: gpu.power_watts),
    ("mesh_gpu_power_limit_watts", "Power that the GPU may draw.", lambda gpu: gpu.power_limit_watts),
)


class GpuMetrics(Collector):
    """One series per GPU and figure, labelled with the GPU's index; ``mesh_gpu_info`` tells which device that is."""

    def __init__(self) -> None:
        self._read: Callable[[], Status | None] | None = None

    def publish(self, reader: GpuReader) -> None:
        """Ask ``reader`` at every scrape. Call on the event loop that it belongs to; scrapes come on other threads."""
        loop = asyncio.get_running_loop()
        self._read = lambda: _status(reader, loop)

    def describe(self) -> Iterable[Metric]:
        """Nothing: which GPUs there are is known when they are read."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The GPUs now; nothing where there are none, or where the driver does not answer in time."""
        status = self._read() if self._read is not None else None
        return families(status) if status is not None else ()


def families(status: Status) -> list[Metric]:
    """A reading as metrics; those of which no device tells a figure are left out."""
    found: list[Metric] = []
    for name, text, figure in _FIGURES:
        family = GaugeMetricFamily(name, text, labels=["gpu"])
        for device in status.devices:
            if (value := figure(device)) is not None:
                family.add_metric([str(device.index)], value)
        if family.samples:
            found.append(family)
    if status.devices:
        info = GaugeMetricFamily(
            "mesh_gpu_info", "Always 1; says which device an index is.", labels=["gpu", "uuid", "name"]
        )
        for device in status.devices:
            info.add_metric([str(device.index), device.uuid, device.name], 1)
        found.append(info)
    return found


def _ratio(percent: int | None) -> float | None:
    return None if percent is None else percent / 100


def _status(reader: GpuReader, loop: asyncio.AbstractEventLoop) -> Status | None:
    try:
        return asyncio.run_coroutine_threadsafe(reader.read(), loop).result(_SCRAPE_SECONDS)
    except (MeshError, TimeoutError, concurrent.futures.CancelledError, RuntimeError):
        return None  # the driver hangs, or the loop is ending: the health of the capability says so


GPUS = GpuMetrics()
REGISTRY.register(GPUS)
