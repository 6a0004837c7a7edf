"""A thousand clients of one worker leave at once: the engine is free of them within a second."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from llm_service.__main__ import make_capability
from llm_service.settings import LlmSettings
from mesh.pb.llm.v1 import llm_pb2 as pb
from mesh.pb.llm.v1.llm_pb2_grpc import LlmServiceStub
from mesh.testing import serve

CLIENTS = 1000
CHANNELS = 8
"""As from several gateways."""
CHAT = pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER, content="Never end.")])
CHUNK = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
MODELS = json.dumps({"data": [{"id": "endless"}]}).encode()


class EndlessEngine:
    """An OpenAI-compatible server that writes one piece for each request, and stops when the connection closes."""

    def __init__(self) -> None:
        self.running = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    await self._write(reader, writer)
                    return
                status = b"200 OK" if head.startswith(b"GET /v1/models") else b"404 Not Found"
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(MODELS), MODELS))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _write(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        try:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
            while await reader.read(65_536):
                pass
        finally:
            self.running -= 1


@pytest.fixture
async def engine() -> AsyncIterator[tuple[EndlessEngine, str]]:
    """The engine and its base URL."""
    endless = EndlessEngine()
    server = await asyncio.start_server(endless.talk, "127.0.0.1", 0, backlog=2 * CLIENTS)
    async with server:
        yield endless, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def serving(channel: grpc.aio.Channel) -> None:
    """Wait until the worker has found its engine. Raises TimeoutError."""
    health: Any = HealthStub(channel)
    asked = HealthCheckRequest(service="llm.v1.LlmService")
    async with asyncio.timeout(10):
        while (await health.Check(asked, wait_for_ready=True)).status != HealthCheckResponse.SERVING:
            await asyncio.sleep(0.02)


async def test_a_thousand_clients_that_leave_at_once_free_the_engine_within_a_second(
    engine: tuple[EndlessEngine, str],
) -> None:
    """All of them are being written for; none is at the engine a second after they left, and the next is served."""
    endless, url = engine
    settings = LlmSettings(engine="openai", engine_url=url, max_concurrent_requests=CLIENTS + 1, max_queued_requests=0)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with serve([make_capability(settings)]) as running:
        channels = [grpc.aio.insecure_channel(running.target, options=options) for _ in range(CHANNELS)]
        stubs = [LlmServiceStub(channel) for channel in channels]
        await serving(channels[0])
        await asyncio.gather(*(stub.Info(pb.InfoRequest(), wait_for_ready=True) for stub in stubs))
        calls = [stubs[number % CHANNELS].Chat(CHAT) for number in range(CLIENTS)]
        await asyncio.gather(*(call.read() for call in calls))
        assert endless.running == CLIENTS
        left = time.monotonic()
        for call in calls:
            call.cancel()
        while endless.running and time.monotonic() - left < 5:
            await asyncio.sleep(0.01)
        assert time.monotonic() - left < 1.0
        load = await stubs[0].GetLoad(pb.GetLoadRequest())
        assert (load.running_requests, load.waiting_requests) == (0, 0)
        again = stubs[0].Chat(CHAT)
        assert (await again.read()).HasField("start")
        again.cancel()
        for channel in channels:
            await channel.close()
