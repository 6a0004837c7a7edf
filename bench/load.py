"""The load generator: as many requests in flight as asked, on connections of its own, for as long as asked.

It sends requests that were written beforehand and finds the end of each answer by its Content-Length. Nothing else is
done while the clock runs; what it still costs is measured and told with every series.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from bench.measure import Round
from mesh.clock import Clock

Send = Callable[[int, int], Awaitable[float]]
"""Sends request ``number`` on connection ``lane`` and returns the units that its answer held."""

_SHOWN_BYTES = 300
_IDLE_SECONDS = 2.0


class RequestFailed(Exception):
    """An answer other than 200, or none. A benchmark in which requests fail has measured nothing."""


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection for one request at a time, until either end closes it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._body_start = 0
        self._end = 0
        self._status = 0
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Collect until the answer is whole; asyncio calls this."""
        self._received += data
        if not self._end and not self._read_head():
            return
        if len(self._received) >= self._end and self._answer is not None and not self._answer.done():
            self._answer.set_result(bytes(self._received[self._body_start : self._end]))

    def _read_head(self) -> bool:
        blank = self._received.find(b"\r\n\r\n")
        if blank < 0:
            return False
        lines = bytes(self._received[:blank]).lower().split(b"\r\n")
        self._status = int(lines[0].split(b" ")[1])
        lengths = [line[15:].strip() for line in lines if line.startswith(b"content-length:")]
        self._body_start = blank + 4
        self._end = self._body_start + int(lengths[0] if lengths else b"0")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits; asyncio calls this."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestFailed(f"The connection was closed: {exc or 'no answer'}."))

    async def ask(self, request: bytes) -> bytes:
        """Send a request as it stands and return the answer's body.

        Raises:
            RequestFailed: the status is not 200, or the connection broke.
        """
        if self._transport is None:
            raise RequestFailed("The connection was closed.")
        self._received.clear()
        self._end = 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        body = await self._answer
        if self._status != 200:
            raise RequestFailed(f"HTTP {self._status}: {body[:_SHOWN_BYTES].decode('utf-8', errors='replace')}")
        return body

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()


class Lane:
    """One request at a time to one host, on a connection that is kept while it is in use.

    One that lay idle is replaced, since the server may close it at the very moment of the next request.

    Args:
        dial: opens a connection.
        clock: tells how long one lay idle.
    """

    def __init__(self, dial: Callable[[], Awaitable[Connection]], clock: Clock = time.monotonic) -> None:
        self._dial = dial
        self._clock = clock
        self._connection: Connection | None = None
        self._used = 0.0

    async def ask(self, request: bytes) -> bytes:
        """Send a request as it stands and return the answer's body. Raises RequestFailed."""
        if self._connection is None or self._clock() - self._used > _IDLE_SECONDS:
            await self.open()
        assert self._connection is not None
        body = await self._connection.ask(request)
        self._used = self._clock()
        return body

    async def open(self) -> None:
        """Connect anew."""
        self.close()
        self._connection = await self._dial()
        self._used = self._clock()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


@asynccontextmanager
async def connected(url: str, lanes: int) -> AsyncIterator[Sequence[Lane]]:
    """Lanes to the host of ``url``, each connected."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    loop = asyncio.get_running_loop()

    async def dial() -> Connection:
        return (await loop.create_connection(Connection, parts.hostname or "", port, ssl=secure or None))[1]

    opened = [Lane(dial) for _ in range(lanes)]
    try:
        for lane in opened:
            await lane.open()
        yield opened
    finally:
        for lane in opened:
            lane.close()


def post(url: str, path: str, document: Mapping[str, Any], *, key: str = "") -> bytes:
    """A whole HTTP request with a JSON body, as bytes; ``key`` is the API key where one is asked for."""
    body = json.dumps(document).encode()
    credentials = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: application/json\r\n{credentials}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


async def closed_loop(
    send: Send,
    *,
    concurrency: int,
    seconds: float,
    server_cpu: Callable[[], float | None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> Round:
    """Keep ``concurrency`` requests in flight, begin none after ``seconds``, and wait for those that are under way.

    The wait is part of the round's time: all that was begun counts, over all the time that it took.
    """
    numbers = itertools.count()
    latencies: list[float] = []
    units = 0.0
    server_before, cpu_before, began = server_cpu(), time.process_time(), clock()

    async def lane(index: int) -> None:
        nonlocal units
        while (started := clock()) - began < seconds:
            done = await send(index, next(numbers))
            units += done  # not in one statement, which would read units before the wait and lose what others added
            latencies.append(clock() - started)

    try:
        async with asyncio.TaskGroup() as lanes:
            for index in range(concurrency):
                lanes.create_task(lane(index))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the others say the same
    elapsed, cpu, server_after = clock() - began, time.process_time() - cpu_before, server_cpu()
    served = server_after - server_before if server_after is not None and server_before is not None else None
    return Round(units, elapsed, tuple(latencies), generator_cpu_seconds=cpu, server_cpu_seconds=served)
