"""Workers of the benchmark's own, on its own ports: an engine, a model or a setting that the running mesh has not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.processes import DidNotStart, Program, Running, free_port, running
from mesh.deadline import Deadline
from mesh.errors import MeshError, ModelUnusable
from ops.local.layout import Layout

if TYPE_CHECKING:
    from mesh.clients import AsyncEmbeddingServiceClient, AsyncRerankingServiceClient
    from mesh.clients.llm import AsyncLLMServiceClient

    Client = AsyncEmbeddingServiceClient | AsyncRerankingServiceClient | AsyncLLMServiceClient

_LOADS_WITHIN_SECONDS = 180.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that serves.

    Attributes:
        process: to be watched.
        target: where its gRPC is.
    """

    process: Running
    target: str


@asynccontextmanager
async def embedding_worker(layout: Layout, settings: Mapping[str, str]) -> AsyncIterator[Worker]:
    """An embedding worker until the block is left. ``settings`` are named without ``EMBEDDING_``.

    Raises:
        DidNotStart: it ended, or its model cannot be used with these settings; the message says why.
    """
    from mesh.clients import AsyncEmbeddingServiceClient

    program = _program("embedding_service", "EMBEDDING", layout, settings)
    async with running(program) as process, AsyncEmbeddingServiceClient(_target(program)) as client:
        await until_it_serves(program, client)
        yield Worker(process, _target(program))


@asynccontextmanager
async def reranking_worker(layout: Layout, settings: Mapping[str, str]) -> AsyncIterator[Worker]:
    """A reranking worker until the block is left. ``settings`` are named without ``RERANKING_``. Raises DidNotStart."""
    from mesh.clients import AsyncRerankingServiceClient

    program = _program("reranking_service", "RERANKING", layout, settings)
    async with running(program) as process, AsyncRerankingServiceClient(_target(program)) as client:
        await until_it_serves(program, client)
        yield Worker(process, _target(program))


def _program(module: str, prefix: str, layout: Layout, settings: Mapping[str, str]) -> Program:
    port = free_port()
    told = {"PORT": str(port), "MODELS_DIR": str(layout.models), **settings}
    return Program(
        name=f"The worker {module}",
        command=[sys.executable, "-m", module],
        port=port,
        variables={f"{prefix}_{name}": value for name, value in told.items()},
    )


def _target(program: Program) -> str:
    return f"127.0.0.1:{program.port}"


async def until_it_serves(program: Program, client: Client, within: float = _LOADS_WITHIN_SECONDS) -> None:
    """Wait until a worker serves. Raises DidNotStart where it does not, or its model cannot be used."""
    try:
        async with asyncio.timeout(within):
            while not await _serves(client):  # noqa: ASYNC110 - another process loads; nothing here could tell
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise DidNotStart(f"{program.name} did not serve within {within:.0f} s.") from None


async def _serves(client: Client) -> bool:
    try:
        await client.info(deadline=Deadline.after(5.0))
    except ModelUnusable as error:
        raise DidNotStart(error.message) from error
    except MeshError:  # it loads
        return False
    return True
