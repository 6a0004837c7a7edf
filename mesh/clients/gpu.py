"""The GPU service's client: devices, memory, utilisation, temperature, processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from mesh.clients.base import AsyncClient, SyncClient
from mesh.deadline import Deadline
from mesh.pb.gpu.v1 import gpu_pb2 as pb
from mesh.pb.gpu.v1.gpu_pb2_grpc import GpuServiceStub

A_DAY_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU."""

    pid: int
    name: str
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class MigInstance:
    """One instance of a GPU that is cut into several."""

    uuid: str
    gpu_instance_id: int
    compute_instance_id: int
    memory_total_bytes: int | None
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Mig:
    """Whether a GPU can be, and is, cut into instances."""

    supported: bool
    enabled: bool
    instances: tuple[MigInstance, ...]


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU. None where the device or the driver does not offer a figure; ``warnings`` says why."""

    index: int
    uuid: str
    name: str
    pci_bus_id: str
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    memory_free_bytes: int | None
    utilization_percent: int | None
    memory_utilization_percent: int | None
    temperature_celsius: int | None
    power_watts: float | None
    power_limit_watts: float | None
    sm_clock_mhz: int | None
    ecc_uncorrected_errors: int | None
    processes: tuple[GpuProcess, ...]
    mig: Mig
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """The GPUs of the worker's machine at one moment; no devices means that ``unavailable_reason`` says why."""

    read_at_unix_ms: int
    devices: tuple[GpuDevice, ...]
    driver_version: str
    cuda_version: str
    unavailable_reason: str


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """What reads the GPUs, and its limits."""

    version: str
    source: str
    nvml_version: str
    min_interval_ms: int
    max_interval_ms: int


class AsyncGPUServiceClient(AsyncClient):
    """Tells the state of the GPUs, on an event loop."""

    hop_name = "gpu"
    service = "gpu.v1.GpuService"
    stub_class = GpuServiceStub
    idempotent_methods = ("GetGpuStatus", "Info")

    async def get_gpu_status(self, *, deadline: Deadline | None = None) -> GpuStatus:
        """The state now. Raises MeshError."""
        reply = await self.hop.call(self._stub.GetGpuStatus, pb.GetGpuStatusRequest(), deadline=deadline)
        return _status_from_wire(reply.status)

    async def watch_gpu_status(
        self, *, interval_seconds: float = 1.0, deadline: Deadline | None = None
    ) -> AsyncGenerator[GpuStatus, None]:
        """The state now and again every interval, until you stop reading (at most a day). Raises MeshError."""
        request = pb.WatchGpuStatusRequest(interval_ms=round(interval_seconds * 1000))
        deadline = deadline or Deadline.after(A_DAY_SECONDS)
        async with aclosing(self.hop.stream(self._stub.WatchGpuStatus, request, deadline=deadline)) as replies:
            async for reply in replies:
                yield _status_from_wire(reply.status)

    async def info(self, *, deadline: Deadline | None = None) -> GpuInfo:
        """What reads the GPUs. Raises MeshError."""
        reply = await self.hop.call(self._stub.Info, pb.InfoRequest(), deadline=deadline, evidence=False)
        return GpuInfo(reply.version, reply.source, reply.nvml_version, reply.min_interval_ms, reply.max_interval_ms)


class GPUServiceClient(SyncClient[AsyncGPUServiceClient]):
    """Tells the state of the GPUs, blocking.

    >>> GPUServiceClient("127.0.0.1:50053").get_gpu_status().devices  # doctest: +SKIP
    ()
    """

    async_class = AsyncGPUServiceClient

    def get_gpu_status(self, *, deadline: Deadline | None = None) -> GpuStatus:
        """The state now. Raises MeshError."""
        return self._run(self._client.get_gpu_status(deadline=deadline))

    def watch_gpu_status(
        self, *, interval_seconds: float = 1.0, deadline: Deadline | None = None
    ) -> Iterator[GpuStatus]:
        """The state now and again every interval, until you stop reading. Raises MeshError."""
        return self._iterate(self._client.watch_gpu_status(interval_seconds=interval_seconds, deadline=deadline))

    def info(self, *, deadline: Deadline | None = None) -> GpuInfo:
        """What reads the GPUs. Raises MeshError."""
        return self._run(self._client.info(deadline=deadline))


def _given(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _status_from_wire(status: pb.GpuStatus) -> GpuStatus:
    return GpuStatus(
        read_at_unix_ms=status.read_at_unix_ms,
        devices=tuple(_device_from_wire(device) for device in status.devices),
        driver_version=status.driver_version,
        cuda_version=status.cuda_version,
        unavailable_reason=status.unavailable_reason,
    )


def _device_from_wire(device: pb.Device) -> GpuDevice:
    optional = (
        "memory_total_bytes",
        "memory_used_bytes",
        "memory_free_bytes",
        "utilization_percent",
        "memory_utilization_percent",
        "temperature_celsius",
        "power_watts",
        "power_limit_watts",
        "sm_clock_mhz",
        "ecc_uncorrected_errors",
    )
    return GpuDevice(
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        pci_bus_id=device.pci_bus_id,
        processes=tuple(GpuProcess(p.pid, p.name, _given(p, "memory_used_bytes")) for p in device.processes),
        mig=Mig(
            supported=device.mig.supported,
            enabled=device.mig.enabled,
            instances=tuple(_mig_from_wire(instance) for instance in device.mig.instances),
        ),
        warnings=tuple(device.warnings),
        **{field: _given(device, field) for field in optional},
    )


def _mig_from_wire(instance: pb.MigInstance) -> MigInstance:
    return MigInstance(
        uuid=instance.uuid,
        gpu_instance_id=instance.gpu_instance_id,
        compute_instance_id=instance.compute_instance_id,
        memory_total_bytes=_given(instance, "memory_total_bytes"),
        memory_used_bytes=_given(instance, "memory_used_bytes"),
    )
