"""A chunking worker whose chunks are numbers: a process for tests that kill one while it answers.

Server and life cycle are the real ones; ``GPU_SERVICES_…`` variables configure it. The document says what is answered:
``COUNT SECONDS [FIRST]`` as in ``llm_worker.py``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from gpu_services.settings import GpuServicesSettings
from mesh.pb.chunking.v1 import chunking_pb2 as pb
from mesh.pb.chunking.v1.chunking_pb2_grpc import ChunkingServiceServicer, add_ChunkingServiceServicer_to_server
from mesh.serving import Capability, run
from mesh.serving.calls import ServicerContext

SERVICE = "chunking.v1.ChunkingService"


class CountingChunks(ChunkingServiceServicer):
    """Counts."""

    async def Chunk(
        self, request_iterator: AsyncIterator[pb.ChunkRequest], context: ServicerContext
    ) -> AsyncIterator[pb.ChunkResponse]:
        """The numbers that the document asks for."""
        document = b"".join([frame.data async for frame in request_iterator])
        count, seconds, *first = map(float, document.split())
        if first:
            await asyncio.sleep(first[0])
        for number in range(int(count)):
            await asyncio.sleep(seconds)
            yield pb.ChunkResponse(chunk=pb.Chunk(index=number, text=str(number)))
        yield pb.ChunkResponse(finish=pb.ChunkFinish(usage=pb.Usage(chunks=int(count))))

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:
        """Little."""
        return pb.InfoResponse(version="test")


async def _ready() -> None:
    """Nothing to load."""


def make_capability() -> Capability:
    """The worker's one capability."""
    servicer = CountingChunks()
    return Capability(
        service=SERVICE,
        register=lambda server: add_ChunkingServiceServicer_to_server(servicer, server),
        start=_ready,
    )


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("gpu-services", GpuServicesSettings, lambda _: [make_capability()])


if __name__ == "__main__":
    sys.exit(main())
