"""Answers that are written while they come into being.

The first frame leaves at once; silence is filled with comments; an error becomes a last frame of its own kind, so that
a broken stream never looks whole; and a client that leaves or stops reading ends the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.exchange import Exchange
from gateway.problems import as_mesh_error, document, out_of_time
from gateway.settings import StreamsSettings
from mesh.errors import Cancelled, MeshError
from mesh.telemetry import get_logger

_LOG = get_logger(__name__)

Frames = AsyncGenerator[bytes, None]


def sse(payload: Any) -> bytes:
    """One server-sent event with a JSON payload."""
    return b"data: " + to_json(payload) + b"\n\n"


SSE_DONE = b"data: [DONE]\n\n"
_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


@dataclass(frozen=True, slots=True)
class StreamKind:
    """How a kind of stream looks on the wire."""

    media_type: str
    keep_alive: bytes | None
    error: Callable[[dict[str, Any]], bytes]


EVENTS = StreamKind("text/event-stream; charset=utf-8", b": keep-alive\n\n", sse)
# JSON lines know no comments, and every reader skips a blank line.
LINES = StreamKind("application/x-ndjson", b"\n", lambda problem: to_json({"error": problem}) + b"\n")


async def live(frames: Frames, kind: StreamKind, *, exchange: Exchange, settings: StreamsSettings) -> LiveAnswer:
    """An answer that writes ``frames`` as they come.

    Waits for the first frame, so that a request that fails at once gets a proper status; but not longer than the
    keep-alive interval, after which the answer begins without it.

    Raises:
        MeshError: what ``frames`` raised before its first frame.
    """
    first: asyncio.Task[bytes] = asyncio.get_running_loop().create_task(_next(frames))
    try:
        await asyncio.wait({first}, timeout=settings.keep_alive_seconds)
        if first.done():
            first.result()
    except BaseException:
        await _abandon(first, frames)
        raise
    return LiveAnswer(first, frames, kind, exchange=exchange, settings=settings)


def _next(frames: Frames) -> Coroutine[Any, Any, bytes]:
    return frames.__anext__()


async def _abandon(first: asyncio.Task[bytes], frames: Frames) -> None:
    if not first.done():
        first.cancel()
        await asyncio.wait({first})
    await frames.aclose()


class LiveAnswer(Response):
    """Writes frames as they come; see `live`."""

    def __init__(
        self,
        first: asyncio.Task[bytes],
        frames: Frames,
        kind: StreamKind,
        *,
        exchange: Exchange,
        settings: StreamsSettings,
    ) -> None:
        self._first = first
        self._frames = frames
        self._kind = kind
        self._exchange = exchange
        self._settings = settings
        self._last_write = 0.0
        self.status_code = 200
        self.background = None
        # Proxies that collect an answer before they pass it on would hold back every token.
        self.init_headers({"content-type": kind.media_type, "cache-control": "no-store", "x-accel-buffering": "no"})

    def init_headers(self, headers: Any = None) -> None:
        """As given: the length of a stream is not known."""
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Serve the answer."""
        beat = asyncio.get_running_loop().create_task(self._beat(send))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await self._write(send, await self._first)
                async for frame in self._frames:
                    await self._write(send, frame)
            except StopAsyncIteration:
                pass  # not even a first frame
            except Cancelled:
                raise
            except asyncio.CancelledError:
                if not self._exchange.abandoned:
                    # Not the client's leaving, so the gateway's own end: the reader learns that there is no more.
                    await self._write(send, self._broken(out_of_time()))
                    await send(_END)
                raise
            except Exception as error:
                await self._write(send, self._broken(error))
            beat.cancel()
            await send(_END)
        finally:
            beat.cancel()
            await _abandon(self._first, self._frames)

    async def _write(self, send: Send, frame: bytes) -> None:
        self._last_write = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._settings.stalled_client_seconds):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except TimeoutError:
            raise Cancelled("The client stopped reading.") from None

    async def _beat(self, send: Send) -> None:
        if self._kind.keep_alive is None:
            return
        interval = self._settings.keep_alive_seconds
        loop = asyncio.get_running_loop()
        self._last_write = loop.time()
        while True:
            await asyncio.sleep(max(0.01, self._last_write + interval - loop.time()))
            if loop.time() - self._last_write >= interval:
                await self._write(send, self._kind.keep_alive)

    def _broken(self, error: Exception) -> bytes:
        if not isinstance(error, MeshError):
            _LOG.exception("A stream failed in a way nobody foresaw.")
        known = as_mesh_error(error)
        exchange = self._exchange
        exchange.failed(known)
        shape = document(known, dialect=exchange.dialect, call=exchange.call, path=exchange.path)
        return self._kind.error(shape)
