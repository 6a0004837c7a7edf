"""Deadlines on their way: no call leaves without one, and work that nobody waits for is never computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from embedding_service.embedder import Embedder
from embedding_service.servicer import SERVICE, EmbeddingServicer
from inference.life import ModelLife
from inference.runner import RunnerLimits
from inference.testing import GatedEngine
from mesh.clients.base import AsyncClient
from mesh.clients.chunking import AsyncChunkingServiceClient
from mesh.clients.embedding import AsyncEmbeddingServiceClient, EmbedInputs
from mesh.clients.gpu import AsyncGPUServiceClient
from mesh.clients.llm import AsyncLLMServiceClient, ChatMessage, Generation, Role
from mesh.clients.reranking import AsyncRerankingServiceClient
from mesh.deadline import Deadline
from mesh.errors import AttemptTimedOut, DeadlineExceeded, MeshError
from mesh.serving import Capability
from mesh.testing import serve

LIMITS = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=1000, batch_tokens=3)
"""Batches of one "cat": with its two special tokens it fills the budget."""


@asynccontextmanager
async def gated_worker(
    directory: Path,
) -> AsyncIterator[tuple[GatedEngine, AsyncEmbeddingServiceClient, ModelLife[Embedder]]]:
    """A worker whose engine is inside its first batch and stays there until its gate is opened."""
    loaded, engine = GatedEngine.loaded(directory)
    life = ModelLife(lambda: Embedder(loaded, LIMITS), capability="embedding")
    servicer = EmbeddingServicer(life, max_request_bytes=1024, max_stream_requests=2)
    capability = Capability(service=SERVICE, register=servicer.register, start=life.start, stop=life.stop)
    async with serve([capability]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        await until(lambda: client.hop.status().serving)
        engine.batches.clear()
        engine.gate.clear()
        first = asyncio.create_task(client.embed(["cat"]))
        try:
            await until(lambda: len(engine.batches) == 1)
            yield engine, client, life
            await first
        finally:
            engine.gate.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state that the worker brings about."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_was_cancelled_or_expired_in_the_queue_is_never_computed(tmp_path: Path) -> None:
    """Of five queued calls three leave and one's time runs out: the engine computes the one that is left."""
    async with gated_worker(tmp_path) as (engine, client, life):
        queued = life.served.runner
        leaving = [asyncio.create_task(client.embed(["dog"])) for _ in range(3)]
        expiring = asyncio.create_task(client.embed(["sat"], deadline=Deadline.after(0.3)))
        staying = asyncio.create_task(client.embed(["mat"]))
        await until(lambda: queued.queued_tokens == 5 * 3)
        for call in leaving:
            call.cancel()
        with pytest.raises((DeadlineExceeded, AttemptTimedOut)):
            await expiring
        await until(lambda: queued.queued_tokens == 3)
        engine.gate.set()
        assert (await staying).rows == 1
        await asyncio.gather(*leaving, return_exceptions=True)
    assert engine.words() == ["cat", "mat"]


async def test_the_rest_of_a_call_that_is_half_computed_is_dropped_with_it(tmp_path: Path) -> None:
    """A caller that leaves while its first item is computed costs no second one."""
    async with gated_worker(tmp_path) as (engine, client, life):
        leaving = asyncio.create_task(client.embed(["dog"] * 10))
        staying = asyncio.create_task(client.embed(["mat"]))
        await until(lambda: life.served.runner.queued_tokens == 11 * 3)
        engine.let_through(1)
        await until(lambda: len(engine.batches) == 2)
        leaving.cancel()
        await until(lambda: life.served.runner.queued_tokens == 3)
        engine.gate.set()
        assert (await staying).rows == 1
        await asyncio.gather(leaving, return_exceptions=True)
    assert engine.words() == ["cat", "dog", "mat"]


async def batches() -> AsyncIterator[EmbedInputs]:
    """The requests of one stream."""
    yield ["cat"]


async def drained(replies: Any) -> None:
    """Read a stream to its end."""
    async for _ in replies:
        pass


GENERATION = Generation(messages=(ChatMessage(Role.USER, "hi"),))
CALLS: dict[type[AsyncClient], dict[str, Callable[[Any], Awaitable[Any]]]] = {
    AsyncEmbeddingServiceClient: {
        "generate_embeddings": lambda client: client.generate_embeddings(["cat"]),
        "embed": lambda client: client.embed(["cat"]),
        "embed_stream": lambda client: drained(client.embed_stream(batches())),
        "info": lambda client: client.info(),
    },
    AsyncRerankingServiceClient: {
        "rerank": lambda client: client.rerank("cat", ["dog"]),
        "score": lambda client: client.score("cat", ["dog"]),
        "info": lambda client: client.info(),
    },
    AsyncLLMServiceClient: {
        "generate": lambda client: drained(client.generate(GENERATION)),
        "generate_text": lambda client: drained(client.generate_text(GENERATION)),
        "complete": lambda client: client.complete(GENERATION),
        "count_tokens": lambda client: client.count_tokens(GENERATION),
        "load": lambda client: client.load(),
        "info": lambda client: client.info(),
    },
    AsyncChunkingServiceClient: {
        "chunk": lambda client: drained(client.chunk(b"text")),
        "convert": lambda client: drained(client.convert(b"text")),
        "info": lambda client: client.info(),
    },
    AsyncGPUServiceClient: {
        "get_gpu_status": lambda client: client.get_gpu_status(),
        "watch_gpu_status": lambda client: drained(client.watch_gpu_status()),
        "info": lambda client: client.info(),
    },
}
LONGEST_SECONDS = 25 * 3600.0
"""A watch may last a day, and gRPC rounds long timeouts up."""
NOT_CALLS = {"start", "close"}


class Recorder(grpc.GenericRpcHandler):
    """Refuses every call of every service and keeps how much time each one brought along."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float | None]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler for any method: on the wire, all four kinds are streams."""

        async def refuse(_requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self.heard.append((details.method, context.time_remaining()))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
            yield b""

        return grpc.stream_stream_rpc_method_handler(refuse)


class RecordingHealth(health.aio.HealthServicer):
    """Health that keeps how much time its callers brought along."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # type: ignore[override]
        """See HealthServicer."""
        self._recorder.heard.append(("Check", context.time_remaining()))
        await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """See HealthServicer."""
        self._recorder.heard.append(("Watch", context.time_remaining()))
        await super().Watch(request, context)


@asynccontextmanager
async def recorded(service: str, status: int) -> AsyncIterator[Any]:
    """A server that refuses and records; yields its recorder and its address."""
    recorder = Recorder()
    servicer = RecordingHealth(recorder)
    server = grpc.aio.server(handlers=[recorder])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await servicer.set(service, status)
    await server.start()
    try:
        yield recorder, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def test_the_table_names_every_client_method() -> None:
    """A new way to call a worker has to be listed here."""
    for client, calls in CALLS.items():
        public = {name for name in vars(client) if not name.startswith("_") and callable(getattr(client, name))}
        assert public - NOT_CALLS - {"stub_class"} == set(calls), client


@pytest.mark.parametrize("client_class", CALLS)
async def test_no_call_leaves_without_a_deadline(client_class: type[AsyncClient]) -> None:
    """Every method of every client, called without one, and the health probe beside it, tell the worker a time."""
    async with recorded(client_class.service, health_pb2.HealthCheckResponse.SERVING) as (recorder, target):
        async with client_class(target) as client:
            for name, call in CALLS[client_class].items():
                before = len(recorder.heard)
                with pytest.raises(MeshError):
                    await call(client)
                called = [method for method, _ in recorder.heard[before:] if method.startswith("/")]
                assert called, f"{name} called nothing"
    assert "Watch" in {method for method, _ in recorder.heard}
    assert [method for method, seconds in recorder.heard if seconds is None or seconds > LONGEST_SECONDS] == []


async def test_the_probe_asks_why_within_a_deadline() -> None:
    """Also the questions to a worker that does not serve are bounded."""
    service = AsyncEmbeddingServiceClient.service
    async with recorded(service, health_pb2.HealthCheckResponse.NOT_SERVING) as (recorder, target):
        async with AsyncEmbeddingServiceClient(target):
            await until(lambda: len(recorder.heard) >= 2)
    assert [method for method, seconds in recorder.heard if seconds is None or seconds > LONGEST_SECONDS] == []
