"""Clients who leave free the engine's slots at once, however many they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import openai
import pytest

from bench.load import post
from tests.chaos.bars import Bars, Measured
from tests.chaos.stand import Gateway, running_gateway, until_serving
from tests.vllm.stand import CROWD, MODEL, PAGE, VllmMesh

pytestmark = pytest.mark.asyncio(loop_scope="session")

EACH_GATEWAY = 250
"""A gateway begins with 256 calls in flight on a hop."""
COMING_SECONDS = 240.0
WAVE = 50
"""So many come at once: a gateway refuses what it would be late with."""
ENDLESS = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 100_000}},
    "required": ["text"],
    "additionalProperties": False,
}
"""No model can end this within its context, not even one whose own answers are short."""
BODY = {
    "model": "",
    "messages": [{"role": "user", "content": "Who are you?"}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 3500,
    "response_format": {"type": "json_schema", "json_schema": {"name": "endless", "schema": ENDLESS}},
}


def batched(clients: Sequence[Client], size: int) -> Iterator[Sequence[Client]]:
    """So many at a time."""
    return (clients[start : start + size] for start in range(0, len(clients), size))


class Client:
    """Someone who reads a stream until they have enough."""

    def __init__(self, gateway: Gateway) -> None:
        self._url = gateway.url
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.over = False

    async def come(self) -> None:
        """Ask until it is this one's turn, and return with the first piece of the answer."""
        parts = urlsplit(self._url)
        while True:
            reader, self._writer = await asyncio.open_connection(parts.hostname, parts.port)
            self._writer.write(post(self._url, "/v1/chat/completions", BODY))
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200"):
                break
            assert head.startswith(b"HTTP/1.1 429"), head + await reader.read(500)
            self._writer.close()
            await asyncio.sleep(0.5)
        await reader.readuntil(b'"content":"{')
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass
        self.over = True

    def leave(self) -> None:
        """Hang up."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.transport.abort()


@pytest.mark.parametrize("crowd", [32, CROWD])
async def test_all_leave_at_once(mesh: VllmMesh, client: openai.AsyncOpenAI, measured: Measured, crowd: int) -> None:
    """The engine's own count of running requests falls to none within a second, and the next client is answered."""
    bars = Bars(f"{crowd} clients leave a real vLLM", measured)
    async with AsyncExitStack() as stack:
        gateways = [mesh.gateway]
        while len(gateways) * EACH_GATEWAY < crowd:
            gateways.append(await stack.enter_async_context(running_gateway({"llm": mesh.worker.target})))
            await until_serving(gateways[-1], "llm")
        clients = [Client(gateways[number % len(gateways)]) for number in range(crowd)]
        try:
            async with asyncio.timeout(COMING_SECONDS):
                for wave in batched(clients, WAVE):
                    await asyncio.gather(*(each.come() for each in wave))
                await mesh.runs(at_least=crowd, within=COMING_SECONDS)
            assert not any(each.over for each in clients)
        finally:
            for each in clients:
                each.leave()
        bars.at_most("none of them runs after", await mesh.runs(at_most=0, within=30.0), "s", promise=1.0, noisy=6.0)
        done = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": PAGE[0]["question"]}], temperature=0
        )
        assert done.choices[0].message.content == PAGE[0]["answer"]
    bars.hold()
