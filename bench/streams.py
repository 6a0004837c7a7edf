"""Streamed answers, read as cheaply as can be: while the clock runs, what arrives is kept with its time and no more."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import cast

from bench.load import RequestFailed
from llm_service.sse import EventParser

_SHOWN_BYTES = 300
_END = b"\r\n0\r\n\r\n"
_TEXT = re.compile(rb'"(?:content|text)": ?"[^"]')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Streamed:
    """One answer.

    Attributes:
        tokens: as its usage tells.
        first_seconds: from the request to its first text.
        gaps: seconds between the arrivals of its text; what arrived together is one.
    """

    tokens: int
    first_seconds: float
    gaps: tuple[float, ...]

    @classmethod
    def of(cls, began: float, texts: Sequence[float], tokens: int) -> Streamed:
        """From the times at which its text arrived.

        Raises:
            RequestFailed: it has no text or no usage.
        """
        if not texts or not tokens:
            raise RequestFailed("An answer came without text or without usage.")
        gaps = tuple(later - earlier for earlier, later in itertools.pairwise(texts))
        return cls(tokens, texts[0] - began, gaps)


class StreamConnection(asyncio.Protocol):
    """An HTTP/1.1 connection for one streamed answer at a time. The server writes each event in one chunk."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._arrivals: list[tuple[float, bytes]] = []
        self._began = 0.0
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Keep it, and see whether that was all; asyncio calls this."""
        self._arrivals.append((time.perf_counter(), data))
        if self._answer is None or self._answer.done():
            return
        if not self._arrivals[0][1].startswith(b"HTTP/1.1 200"):
            self._answer.set_exception(RequestFailed(data[:_SHOWN_BYTES].decode("utf-8", errors="replace")))
        elif (data if len(data) >= len(_END) else self._tail()).endswith(_END):
            self._answer.set_result(None)

    def _tail(self) -> bytes:
        return b"".join(data for _, data in self._arrivals[-len(_END) :])

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the answer that is awaited; asyncio calls this."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestFailed(f"The connection was closed: {exc or 'in the middle'}."))

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._transport is not None

    async def ask(self, request: bytes) -> Streamed:
        """Send a request as it stands, and read its answer.

        Raises:
            RequestFailed: the status is not 200, the connection broke, or the answer has no text or usage.
        """
        if self._transport is None:
            raise RequestFailed("The connection was closed.")
        self._arrivals = []
        self._answer = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(request)
        await self._answer
        found = _TOKENS.findall(b"".join(data for _, data in self._arrivals[-8:]))
        texts = [at for at, data in self._arrivals if _TEXT.search(data)]
        return Streamed.of(self._began, texts, int(found[-1]) if found else 0)

    def text(self) -> str:
        """All text of the latest answer."""
        parser = EventParser()
        events = [event for _, data in self._arrivals for event in parser.feed(data)]
        chunks = [json.loads(event) for event in events if event != "[DONE]"]
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()


Dial = Callable[[], Awaitable[StreamConnection]]
"""Opens a connection."""
