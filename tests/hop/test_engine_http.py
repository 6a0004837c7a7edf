"""HTTP to an engine's server over real sockets: what arrives is read at once, and every failure has httpx's name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from llm_service.engine_http import EngineTransport
from llm_service.engines.completions import http_client

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(content: bytes) -> bytes:
    """As it is framed."""
    return b"%x\r\n%s\r\n" % (len(content), content)


class Server:
    """Reads one request after the other on each connection and answers as it is told."""

    def __init__(self, answer: Serve) -> None:
        self._answer = answer
        self.connections = 0
        self.bodies: list[bytes] = []
        self.left = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.bodies.append(await reader.readexactly(int(length or b"0")))
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Serve, socket: Path) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server on a Unix socket, and a client of it that takes half a second of silence."""
    server = Server(answer)
    async with await asyncio.start_unix_server(server, socket):
        async with http_client(stall_seconds=0.5, transport=EngineTransport(socket)) as client:
            yield server, client


async def test_what_is_written_arrives_at_once_and_together(tmp_path: Path) -> None:
    """Each part as soon as it is there, without waiting for more; what came meanwhile, in one read."""
    go_on = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b"first"))
        await go_on.wait()
        writer.write(chunk(b"second") + chunk(b"third") + END)

    async with serving(answer, tmp_path / "s") as (_, client):
        async with client.stream("POST", "http://engine/v1", json={"n": 1}) as response:
            parts = response.aiter_bytes()
            assert await anext(parts) == b"first"
            go_on.set()
            assert [part async for part in parts] == [b"secondthird"]


async def test_a_body_that_was_read_leaves_its_connection_to_the_next(tmp_path: Path) -> None:
    """Also a large one in the other direction arrives whole."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    large = b"x" * 3_000_000
    async with serving(answer, tmp_path / "s") as (server, client):
        for content in (b"one", large):
            assert (await client.post("http://engine/v1", content=content)).text == "ok"
    assert server.bodies == [b"one", large]
    assert server.connections == 1


async def test_who_leaves_closes_the_connection(tmp_path: Path) -> None:
    """The server learns it at once, while it still writes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b"first"))
        assert await reader.read(1) == b""
        raise ConnectionResetError

    async with serving(answer, tmp_path / "s") as (server, client):
        async with client.stream("POST", "http://engine/v1", json={}) as response:
            assert await anext(response.aiter_bytes()) == b"first"
        async with asyncio.timeout(1):
            await server.left.wait()


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def _silent_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(b"first"))
    await reader.read(1)


async def _gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise ConnectionResetError


async def _gone_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(b"first"))
    raise ConnectionResetError


async def _nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")


async def _nonsense_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(b"first") + b"no number\r\n")
    await reader.read(1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_silent, httpx.ReadTimeout),
        (_silent_in_the_middle, httpx.ReadTimeout),
        (_gone, httpx.TransportError),
        (_gone_in_the_middle, httpx.TransportError),
        (_nonsense, httpx.TransportError),
        (_nonsense_in_the_middle, httpx.TransportError),
    ],
)
async def test_a_failure_has_httpxs_name(tmp_path: Path, answer: Serve, error: type[Exception]) -> None:
    """Silence is a timeout, and whatever else breaks is an error of the transport, before the head and behind it."""
    async with serving(answer, tmp_path / "s") as (_, client):
        with pytest.raises(error):
            async with client.stream("POST", "http://engine/v1", json={}) as response:
                async for _ in response.aiter_bytes():
                    pass


@pytest.mark.parametrize("socket", [True, False], ids=["Unix", "TCP"])
async def test_nobody_there_is_no_connection(tmp_path: Path, socket: bool) -> None:
    """On a Unix socket and over TCP alike."""
    transport = EngineTransport(tmp_path / "none") if socket else EngineTransport()
    async with http_client(stall_seconds=1.0, transport=transport) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:1/health")
