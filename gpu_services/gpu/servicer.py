"""gpu.v1.GpuService: between the wire and `GpuReader`, and nothing else."""

# ruff: noqa: ARG002 - gRPC calls every method with a request and a context
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from gpu_services.gpu.reader import DEFAULT_INTERVAL_MS, MAX_INTERVAL_MS, MIN_INTERVAL_MS, GpuReader
from gpu_services.gpu.status import Device, Mig, Status
from mesh.pb.gpu.v1 import gpu_pb2 as pb
from mesh.pb.gpu.v1 import gpu_pb2_grpc
from mesh.serving.calls import ServicerContext
from mesh.version import VERSION

NAME = "gpu.v1.GpuService"


class GpuServicer(gpu_pb2_grpc.GpuServiceServicer):
    """Serves the state of the GPUs."""

    def __init__(self, reader: GpuReader) -> None:
        self._reader = reader

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        gpu_pb2_grpc.add_GpuServiceServicer_to_server(self, server)

    async def GetGpuStatus(self, request: pb.GetGpuStatusRequest, context: ServicerContext) -> pb.GetGpuStatusResponse:
        """The state now."""
        return pb.GetGpuStatusResponse(status=_status(await self._reader.read()))

    async def WatchGpuStatus(
        self, request: pb.WatchGpuStatusRequest, context: ServicerContext
    ) -> AsyncIterator[pb.WatchGpuStatusResponse]:
        """The state now and again, until the client cancels."""
        interval = request.interval_ms if request.HasField("interval_ms") else DEFAULT_INTERVAL_MS
        async with aclosing(self._reader.watch(interval)) as states:
            async for state in states:
                yield pb.WatchGpuStatusResponse(status=_status(state))

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:
        """What reads the GPUs."""
        return pb.InfoResponse(
            version=VERSION,
            source=self._reader.name,
            nvml_version=self._reader.library_version,
            min_interval_ms=MIN_INTERVAL_MS,
            max_interval_ms=MAX_INTERVAL_MS,
        )


def _status(status: Status) -> pb.GpuStatus:
    return pb.GpuStatus(
        read_at_unix_ms=status.read_at_unix_ms,
        devices=[_device(device) for device in status.devices],
        driver_version=status.driver_version,
        cuda_version=status.cuda_version,
        unavailable_reason=status.unavailable_reason,
    )


def _device(device: Device) -> pb.Device:
    """None leaves an optional field unset: protobuf's constructor takes it so."""
    return pb.Device(
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        memory_total_bytes=device.memory_total_bytes,
        memory_used_bytes=device.memory_used_bytes,
        memory_free_bytes=device.memory_free_bytes,
        utilization_percent=device.utilization_percent,
        memory_utilization_percent=device.memory_utilization_percent,
        temperature_celsius=device.temperature_celsius,
        power_watts=device.power_watts,
        power_limit_watts=device.power_limit_watts,
        sm_clock_mhz=device.sm_clock_mhz,
        processes=[
            pb.Process(pid=process.pid, name=process.name, memory_used_bytes=process.memory_used_bytes)
            for process in device.processes
        ],
        mig=_mig(device.mig),
        pci_bus_id=device.pci_bus_id,
        warnings=device.warnings,
        ecc_uncorrected_errors=device.ecc_uncorrected_errors,
    )


def _mig(mig: Mig) -> pb.Mig:
    return pb.Mig(
        supported=mig.supported,
        enabled=mig.enabled,
        instances=[
            pb.MigInstance(
                uuid=instance.uuid,
                gpu_instance_id=instance.gpu_instance_id,
                compute_instance_id=instance.compute_instance_id,
                memory_total_bytes=instance.memory_total_bytes,
                memory_used_bytes=instance.memory_used_bytes,
            )
            for instance in mig.instances
        ],
    )
