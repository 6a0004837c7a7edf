"""A real worker on a free loopback port, in the test's own event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from pydantic_settings import SettingsConfigDict

from mesh.hop import Hop
from mesh.serving import Capability, Worker
from mesh.settings import WorkerSettings

_START_SECONDS = 10.0
_POLL_SECONDS = 0.01


class _TestSettings(WorkerSettings):
    """Free port, no waiting at the end."""

    model_config = SettingsConfigDict(env_prefix="MESH_TEST_WORKER_")
    port: int = 0
    drain_notice_seconds: float = 0.0
    drain_grace_seconds: float = 0.1


def worker_settings(**settings: float | bool | None) -> WorkerSettings:
    """Settings of a worker under test, whatever this process's environment says."""
    return _TestSettings.load({}, **settings)


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
    worker = Worker(worker_settings(port=port, **settings), capabilities)
    await worker.start()
    try:
        yield RunningWorker(worker, f"127.0.0.1:{worker.port}")
    finally:
        await worker.stop()


async def until_serving(hop: Hop) -> None:
    """Wait until the probe of a client's hop has heard SERVING. Raises TimeoutError.

    An answered call does not tell that: it may overtake the news that the worker was loading a moment ago, and the next
    call is then refused.
    """
    hop.start()
    async with asyncio.timeout(_START_SECONDS):
        while not hop.status().serving:  # noqa: ASYNC110 - a hop tells nobody when its health changes
            await asyncio.sleep(_POLL_SECONDS)


@contextmanager
def serve_in_thread(capabilities: Sequence[Capability]) -> Iterator[str]:
    """Like ``serve``, for tests of the synchronous clients: the process's one grpc.aio loop runs in a thread.

    Yields the target.
    """
    ready = threading.Event()
    target: list[str] = []
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop = asyncio.Event()
        over.append((asyncio.get_running_loop(), stop))
        async with serve(capabilities) as running:
            target.append(running.target)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    if not ready.wait(_START_SECONDS):
        raise TimeoutError("The worker under test did not start.")
    try:
        yield target[0]
    finally:
        loop, stop = over[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(_START_SECONDS)
