"""A real worker on a free loopback port, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic_settings import SettingsConfigDict

from mesh.serving import Capability, Worker
from mesh.settings import WorkerSettings


class _TestSettings(WorkerSettings):
    """Free port, no waiting at the end."""

    model_config = SettingsConfigDict(env_prefix="MESH_TEST_WORKER_")
    port: int = 0
    drain_notice_seconds: float = 0.0
    drain_grace_seconds: float = 0.1


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker under test."""

    worker: Worker
    target: str


@asynccontextmanager
async def serve(
    capabilities: Sequence[Capability], *, port: int = 0, **settings: float
) -> AsyncIterator[RunningWorker]:
    """Run a worker with these capabilities until the block is left.

    >>> async with serve([ScriptedEmbedding().capability()]) as running:  # doctest: +SKIP
    ...     client = AsyncEmbeddingServiceClient(running.target)
    """
    worker = Worker(_TestSettings.load({}, port=port, **settings), capabilities)
    await worker.start()
    try:
        yield RunningWorker(worker, f"127.0.0.1:{worker.port}")
    finally:
        await worker.stop()
