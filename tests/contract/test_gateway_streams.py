"""Streams over the real wire: what a client reads when the worker dies, at whatever frame it does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import RawRequest
from mesh.pb.chunking.v1 import chunking_pb2
from mesh.pb.chunking.v1.chunking_pb2_grpc import ChunkingServiceServicer, add_ChunkingServiceServicer_to_server
from mesh.pb.llm.v1 import llm_pb2 as pb
from mesh.pb.llm.v1.llm_pb2_grpc import LlmServiceServicer, add_LlmServiceServicer_to_server
from mesh.serving import Capability
from mesh.serving.calls import ServicerContext
from mesh.testing import serve

WORDS = ("one ", "two ", "three")
FRAMES: tuple[dict[str, Any], ...] = (
    {"start": pb.AnswerStart(model="scripted", usage=pb.Usage(prompt_tokens=4))},
    *({"delta": pb.AnswerDelta(text=word)} for word in WORDS),
    {"finish": pb.AnswerFinish(choices=[pb.ChoiceFinish(reason=pb.FINISH_REASON_STOP)])},
)
FIRST_TOKEN = 2
"""With so many frames the first word has left the worker."""


async def _ready() -> None:
    """Nothing to load."""


class ScriptedWriter(LlmServiceServicer):
    """Writes the first ``frames`` of a short answer and then hangs, or fails; a whole answer ends."""

    def __init__(self, frames: int, then: Exception | None = None) -> None:
        self.frames = frames
        self.then = then
        self.paused = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.calls = 0

    async def Chat(self, request: pb.ChatRequest, context: ServicerContext) -> AsyncIterator[pb.ChatResponse]:
        """As scripted."""
        async for frame in self._frames():
            yield pb.ChatResponse(**frame)

    async def Complete(
        self, request: pb.CompleteRequest, context: ServicerContext
    ) -> AsyncIterator[pb.CompleteResponse]:
        """The same."""
        async for frame in self._frames():
            yield pb.CompleteResponse(**frame)

    async def _frames(self) -> AsyncIterator[dict[str, Any]]:
        self.calls += 1
        for frame in FRAMES[: self.frames]:
            yield frame
        if self.frames > len(FRAMES):
            return
        self.paused.set()
        if self.then is not None:
            raise self.then
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    def capability(self) -> Capability:
        """As a worker's capability that is ready at once."""
        return Capability(
            service="llm.v1.LlmService",
            register=lambda server: add_LlmServiceServicer_to_server(self, server),
            start=_ready,
        )


class DyingChunker(ChunkingServiceServicer):
    """Sends one chunk and then nothing any more."""

    async def Chunk(
        self, request_iterator: AsyncIterator[chunking_pb2.ChunkRequest], context: ServicerContext
    ) -> AsyncIterator[chunking_pb2.ChunkResponse]:
        """One chunk."""
        yield chunking_pb2.ChunkResponse(chunk=chunking_pb2.Chunk(index=0, text="good"))
        await asyncio.Event().wait()

    def capability(self) -> Capability:
        """As a worker's capability that is ready at once."""
        return Capability(
            service="chunking.v1.ChunkingService",
            register=lambda server: add_ChunkingServiceServicer_to_server(self, server),
            start=_ready,
        )


class Wire:
    """A way to a worker that can be cut, as when its process is killed: resets, and nobody listens any more."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._server: asyncio.Server | None = None
        self._ends: list[asyncio.StreamWriter] = []

    async def open(self) -> str:
        """Begin to pass bytes on; returns the target to use."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """End every connection at once, and take no more."""
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._ends += [writer, far_writer]
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
    sink.close()


@asynccontextmanager
async def streaming(service: str, *capabilities: Capability) -> AsyncIterator[tuple[FastAPI, list[Wire]]]:
    """A gateway and the ways to its workers, one for each of ``capabilities``: replicas of one service."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(serve([capability])) for capability in capabilities]
        wires = [Wire(worker.target) for worker in workers]
        url = ",".join([await wire.open() for wire in wires])
        app = create_app(GatewaySettings.model_validate({"services": {service: {"url": url}}}))
        async with app.router.lifespan_context(app):
            yield app, wires
        for wire in wires:
            wire.cut()


@dataclass(frozen=True)
class Spoken:
    """One way to ask for text, and how its dialect writes what a stream holds."""

    path: str
    body: dict[str, Any]
    endings: tuple[bytes, ...]

    def ask(self, app: FastAPI, *, stream: bool) -> tuple[RawRequest, asyncio.Task[None]]:
        """A request on its way, and the task that ends with its answer."""
        request = RawRequest("POST", self.path, {"content-type": "application/json"})
        task = request.start(app)
        request.say(json.dumps({**self.body, "stream": stream}).encode())
        return request, task


MESSAGES = [{"role": "user", "content": "Hi"}]
DIALECTS = [
    Spoken("/v1/chat/completions", {"messages": MESSAGES}, (b"[DONE]", b'"finish_reason":"')),
    Spoken("/v1/completions", {"prompt": "Hi"}, (b"[DONE]", b'"finish_reason":"')),
    Spoken(
        "/v1/messages",
        {"model": "", "max_tokens": 9, "messages": MESSAGES},
        (b"message_stop", b"message_delta", b"content_block_stop", b'"stop_reason":"'),
    ),
]
every_dialect = pytest.mark.parametrize("spoken", DIALECTS, ids=lambda spoken: spoken.path.removeprefix("/v1/"))


def payloads(body: bytes) -> list[dict[str, Any]]:
    """What the events of a stream carry."""
    lines = (line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]


def words_of(events: list[dict[str, Any]]) -> list[str]:
    """The pieces of text that a stream holds, in their order."""
    found = []
    for event in events:
        if event.get("type") == "content_block_delta":
            found.append(event["delta"]["text"])
        for choice in event.get("choices", []):
            found.append(choice["delta"].get("content", "") if "delta" in choice else choice["text"])
    return [word for word in found if word]


@every_dialect
@pytest.mark.parametrize("position", range(len(FRAMES) + 1))
async def test_a_worker_killed_at_any_frame_never_leaves_an_answer_that_looks_whole(
    spoken: Spoken, position: int
) -> None:
    """Before the first word it is a 503; after it, exactly the words that came, an error event, and no proper end."""
    writer = ScriptedWriter(position)
    async with streaming("llm", writer.capability()) as (app, (wire,)):
        request, task = spoken.ask(app, stream=True)
        await writer.paused.wait()
        if position >= FIRST_TOKEN:
            await request.until(WORDS[min(position, len(FRAMES) - 1) - FIRST_TOKEN].encode())
        # A frame that shows nothing reaches the gateway too before the worker dies.
        await asyncio.sleep(0.1)
        wire.cut()
        async with asyncio.timeout(1):
            await task
    assert not any(ending in request.body for ending in spoken.endings)
    assert request.is_whole
    if position < FIRST_TOKEN:
        assert (request.status, set(json.loads(request.body)) >= {"error"}) == (503, True)
        assert int(dict(request.sent[0]["headers"])[b"retry-after"]) >= 1
        return
    *events, error = payloads(request.body)
    assert words_of(events) == list(WORDS[: position - 1])
    assert error["error"]["type"] in {"server_error", "api_error"}
    assert all("error" not in event for event in events)


@every_dialect
@pytest.mark.parametrize("position", [0, FIRST_TOKEN, len(FRAMES)])
async def test_half_an_answer_in_one_piece_is_a_503(spoken: Spoken, position: int) -> None:
    """However much was written: whoever asked for the whole gets it or nothing."""
    writer = ScriptedWriter(position)
    async with streaming("llm", writer.capability()) as (app, (wire,)):
        request, task = spoken.ask(app, stream=False)
        await writer.paused.wait()
        wire.cut()
        async with asyncio.timeout(1):
            await task
    assert request.status == 503
    assert not any(word.encode() in request.body for word in WORDS)


@every_dialect
async def test_a_dead_replica_is_nobodys_business(spoken: Spoken) -> None:
    """The other one answers every request, each once and whole."""
    first, second = ScriptedWriter(len(FRAMES) + 1), ScriptedWriter(len(FRAMES) + 1)
    async with streaming("llm", first.capability(), second.capability()) as (app, (wire, _)):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            for _ in range(2):
                assert (await client.post(spoken.path, json=spoken.body)).status_code == 200
            wire.cut()
            # A request that is under way while it dies may have been begun, so it fails. These come later.
            await asyncio.sleep(0.2)
            before = second.calls
            answers = [await client.post(spoken.path, json={**spoken.body, "stream": True}) for _ in range(6)]
    assert [words_of(payloads(answer.content)) for answer in answers] == [list(WORDS)] * 6
    assert all(ending in answer.content for answer in answers for ending in spoken.endings)
    assert second.calls == before + 6


@every_dialect
async def test_a_client_that_leaves_a_stream_cancels_the_workers_call(spoken: Spoken) -> None:
    """The writing ends in the worker, not only on the way."""
    writer = ScriptedWriter(FIRST_TOKEN)
    async with streaming("llm", writer.capability()) as (app, _):
        request, task = spoken.ask(app, stream=True)
        await request.until(b"one")
        request.leave()
        async with asyncio.timeout(5):
            await task
            await writer.cancelled.wait()
    assert not request.is_whole


@every_dialect
async def test_a_worker_that_fails_in_mid_stream_is_a_typed_error_event(spoken: Spoken) -> None:
    """In the shape that the SDKs raise on, and nothing of an unknown exception's text."""
    async with streaming("llm", ScriptedWriter(FIRST_TOKEN, ValueError("secret")).capability()) as (app, _):
        request, task = spoken.ask(app, stream=True)
        await task
    *events, error = payloads(request.body)
    assert words_of(events) == ["one "]
    assert error["error"]["type"] in {"server_error", "api_error"}
    assert b"secret" not in request.body
    assert not any(ending in request.body for ending in spoken.endings)


async def test_a_worker_that_dies_in_mid_document_is_a_typed_last_line() -> None:
    """The chunks that came are good, and the last line says that they are not all."""
    async with streaming("gpu", DyingChunker().capability()) as (app, (wire,)):
        headers = {"content-type": "application/json", "accept": "application/x-ndjson"}
        request = RawRequest("POST", "/v1/chunk", headers)
        task = request.start(app)
        request.say(b'{"text": "a"}')
        await request.until(b"chunk")
        wire.cut()
        async with asyncio.timeout(1):
            await task
    first, last = [json.loads(line) for line in request.body.splitlines() if line]
    assert first["chunk"]["text"] == "good"
    assert (last["error"]["code"], last["error"]["hop"]) == ("unavailable", "chunking")
