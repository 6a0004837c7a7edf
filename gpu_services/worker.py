"""What the worker is made of: two capabilities, each with its own health."""

from __future__ import annotations

from gpu_services.chunking.service import ChunkingService
from gpu_services.chunking.servicer import NAME as CHUNKING
from gpu_services.chunking.servicer import ChunkingServicer
from gpu_services.gpu.metrics import GPUS
from gpu_services.gpu.nvml import Nvml
from gpu_services.gpu.reader import GpuReader
from gpu_services.gpu.servicer import NAME as GPU
from gpu_services.gpu.servicer import GpuServicer
from gpu_services.settings import GpuServicesSettings
from mesh.serving import Capability


def capabilities(settings: GpuServicesSettings) -> tuple[Capability, Capability]:
    """Chunking and GPU status, each with its own health."""
    chunking = ChunkingService(settings.chunking())
    reader = GpuReader(Nvml())
    chunks = ChunkingServicer(chunking, default_seconds=settings.default_deadline_seconds)
    gpus = GpuServicer(reader)

    async def start_gpus() -> None:
        GPUS.publish(reader)
        await reader.start()

    return (
        Capability(
            service=CHUNKING,
            register=chunks.register,
            start=chunking.start,
            canary=chunking.canary,
            unhealthy=chunking.unhealthy,
            stop=chunking.stop,
        ),
        Capability(
            service=GPU,
            register=gpus.register,
            start=start_gpus,
            canary=reader.canary,
            unhealthy=reader.unhealthy,
            stop=reader.stop,
        ),
    )
