"""The gateway's own clients and hops, over the real wire: scripted workers behind a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import RawRequest
from mesh.errors import InvalidRequest, NotFound, Overloaded, PayloadTooLarge
from mesh.pb.chunking.v1 import chunking_pb2 as pb
from mesh.pb.chunking.v1.chunking_pb2_grpc import ChunkingServiceServicer, add_ChunkingServiceServicer_to_server
from mesh.pb.embedding.v1 import embedding_pb2
from mesh.serving import Capability
from mesh.serving.calls import ServicerContext
from mesh.testing import ScriptedEmbedding, serve

UPLOAD = {"content-type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
END = b"\r\n--x--\r\n"


class CountingChunker(ChunkingServiceServicer):
    """Answers with the number of bytes that came, as one chunk; refuses more than ``limit``; notices being left."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Chunk(
        self,
        request_iterator: AsyncIterator[pb.ChunkRequest],
        context: ServicerContext,
    ) -> AsyncIterator[pb.ChunkResponse]:
        """One chunk."""
        size = 0
        whole = False
        try:
            async for frame in request_iterator:
                self.began.set()
                size += len(frame.data)
                if size > self.limit:
                    raise PayloadTooLarge("The document is too large.")
            yield pb.ChunkResponse(chunk=pb.Chunk(index=0, text=str(size)))
            yield pb.ChunkResponse(finish=pb.ChunkFinish(document=pb.Document(size_bytes=size)))
            whole = True
        finally:
            if not whole:
                self.cancelled.set()

    def capability(self) -> Capability:
        """As a worker's capability that is ready at once."""
        return Capability(
            service="chunking.v1.ChunkingService",
            register=lambda server: add_ChunkingServiceServicer_to_server(self, server),
            start=_ready,
        )


async def _ready() -> None:
    """Nothing to load."""


@asynccontextmanager
async def gateway_to(
    *capabilities: Capability, settings: dict[str, Any] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway whose services all lead to one worker with these capabilities."""
    async with serve(capabilities) as worker:
        url = {"url": worker.target}
        # The others lead nowhere, whatever runs on this machine's default ports.
        nowhere = {"url": "127.0.0.1:1"}
        services = {"embedding": url, "gpu": url, "reranking": nowhere, "llm": nowhere}
        app = create_app(GatewaySettings.model_validate({"services": services, **(settings or {})}))
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            yield client


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a scripted worker counts."""
    while not condition():
        await asyncio.sleep(0.005)


async def test_embeddings_and_the_request_id_cross_the_wire() -> None:
    """Vectors come back in order, and the worker saw the caller's id."""
    worker = ScriptedEmbedding()
    async with gateway_to(worker.capability()) as client:
        body = {"input": ["aeiou", "xyz"]}
        answer = await client.post("/v1/embeddings", json=body, headers={"x-request-id": "mine-7"})
        status = (await client.get("/status")).json()
        # The probe may not have heard of the worker yet, while a call already got through.
        async with asyncio.timeout(5):
            while not status["hops"][0]["serving"]:
                status = (await client.get("/status")).json()
    assert [item["embedding"] for item in answer.json()["data"]] == [[5.0, 5.0], [3.0, 0.0]]
    assert worker.request_ids == ["mine-7"]
    embedding, *others = status["hops"]
    assert (embedding["serving"], embedding["serves"]["models"][0]["name"]) == (True, "scripted")
    assert not any(hop["serving"] for hop in others)
    assert status["status"] == "degraded"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("No.", reason="TOO_LONG", param="texts"), 400, "too_long"),
        (NotFound("No."), 404, "model_not_found"),
        (PayloadTooLarge("No."), 413, "payload_too_large"),
        (Overloaded("No.", retry_after=4.0), 429, "overloaded"),
        (ValueError("secret"), 500, "internal"),
    ],
)
async def test_a_workers_error_keeps_its_meaning(error: Exception, status: int, code: str) -> None:
    """Through gRPC and into OpenAI's shape, without an unknown exception's text."""
    async with gateway_to(ScriptedEmbedding([error]).capability()) as client:
        answer = await client.post("/v1/embeddings", json={"input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text
    if status == 429:
        assert answer.headers["retry-after"] == "4"


async def test_an_upload_reaches_the_worker_whole() -> None:
    """Three megabytes, in frames that gRPC takes."""
    async with gateway_to(CountingChunker().capability()) as client:
        answer = await client.post("/v1/chunk", files={"file": ("a.txt", b"x" * 3_000_000)})
    assert answer.json()["chunks"][0]["text"] == "3000000"


async def test_an_upload_that_breaks_off_is_its_own_error() -> None:
    """The client reads what is wrong with its upload, not what gRPC made of it."""
    worker = CountingChunker()
    async with gateway_to(worker.capability()) as client:
        broken = await client.post("/v1/chunk", content=HEAD + b"abc", headers=UPLOAD)
        late = END[:-4] + b'\r\nContent-Disposition: form-data; name="max_tokens"\r\n\r\n9' + END
        after = await client.post("/v1/chunk", content=HEAD + b"abc" + late, headers=UPLOAD)
        async with asyncio.timeout(5):
            await worker.cancelled.wait()
    assert (broken.status_code, broken.json()["reason"]) == (422, "UPLOAD_INCOMPLETE")
    assert (after.status_code, after.json()["reason"]) == (422, "FIELD_AFTER_DOCUMENT")


async def test_a_worker_that_refuses_early_is_heard_while_the_upload_goes_on() -> None:
    """The refusal comes back at once, although the client has not finished."""
    async with serve([CountingChunker(limit=100_000).capability()]) as worker:
        settings = GatewaySettings.model_validate({"services": {"gpu": {"url": worker.target}}})
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            request = RawRequest("POST", "/v1/chunk", UPLOAD)
            task = request.start(app)
            request.say(HEAD + b"x" * 1_000_000, more=True)
            async with asyncio.timeout(5):
                await task
            request.leave()
    assert request.status == 413


async def test_a_client_that_leaves_while_uploading_frees_the_worker() -> None:
    """The worker's call is cancelled."""
    chunker = CountingChunker()
    async with serve([chunker.capability()]) as worker:
        settings = GatewaySettings.model_validate({"services": {"gpu": {"url": worker.target}}})
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            request = RawRequest("POST", "/v1/chunk", UPLOAD)
            task = request.start(app)
            request.say(HEAD + b"x" * 1_000_000, more=True)
            async with asyncio.timeout(5):
                await chunker.began.wait()
                request.leave()
                await task
                await chunker.cancelled.wait()
    assert request.sent == []


async def test_a_client_that_leaves_cancels_the_workers_call() -> None:
    """What nobody waits for is not computed."""
    embedding = ScriptedEmbedding(["hang"])
    async with serve([embedding.capability()]) as worker:
        settings = GatewaySettings.model_validate({"services": {"embedding": {"url": worker.target}}})
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            request = RawRequest("POST", "/v1/embeddings", {"content-type": "application/json"})
            task = request.start(app)
            request.say(b'{"input": "a"}')
            async with asyncio.timeout(5):
                await until(lambda: embedding.calls == 1)
                request.leave()
                await task
                await until(lambda: embedding.cancelled == 1)
    assert request.sent == []


class TimedEmbedding(ScriptedEmbedding):
    """Remembers how long each call may take, as the worker sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.remaining: list[float] = []

    async def Embed(self, request: embedding_pb2.EmbedRequest, context: ServicerContext) -> embedding_pb2.EmbedResponse:
        """As ever."""
        self.remaining.append(context.time_remaining() or 0.0)
        return await super().Embed(request, context)


@pytest.mark.parametrize(
    ("headers", "at_least", "at_most"),
    [
        ({"x-request-timeout-ms": "1500"}, 1.0, 1.5),
        ({"x-stainless-read-timeout": "2"}, 1.5, 2.0),
        ({"x-request-timeout-ms": "900000"}, 20.0, 30.0),
        ({}, 20.0, 30.0),
    ],
)
async def test_the_clients_time_reaches_the_worker(headers: dict[str, str], at_least: float, at_most: float) -> None:
    """What the client allows, or the gateway's default where it allows more or says nothing; less the time it took."""
    worker = TimedEmbedding()
    timeouts = {"timeouts": {"embedding_seconds": 30}}
    async with gateway_to(worker.capability(), settings=timeouts) as client:
        answer = await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
    assert answer.status_code == 200
    [remaining] = worker.remaining
    assert at_least < remaining <= at_most


async def test_time_that_is_up_ends_the_workers_call_too() -> None:
    """A typed 504 when the client's time is over, and no work for nobody."""
    worker = ScriptedEmbedding(["hang"])
    async with gateway_to(worker.capability()) as client, asyncio.timeout(5):
        answer = await client.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-timeout-ms": "200"})
        await until(lambda: worker.cancelled == 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
