"""A TCP proxy that hurts what passes through it: silence, delay, a narrow pipe, resets, refusals; changed at run time.

It stands between a gateway and a worker and knows nothing of gRPC, so what is hurt is what a network hurts: bytes and
connections. It shares its test's event loop.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto

_CHUNK_BYTES = 64 * 1024
_LOOPBACK = "127.0.0.1"


class Way(Enum):
    """A direction through the proxy."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to everything that passes, from now on.

    Attributes:
        silent: directions in which nothing arrives, and nothing is ever answered. Sent bytes are lost to the peer's
            application and held for the connection: TCP would send them again once the network heals.
        delay_seconds: how much later everything arrives, in each direction.
        bytes_per_second: width of each direction of each connection; 0 is unlimited.
        refuse: new connections are reset.
    """

    silent: frozenset[Way] = frozenset()
    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    refuse: bool = False


HEALTHY = Faults()
BLACK_HOLE = Faults(silent=frozenset(Way))


class FaultsProxy:
    """Forwards to ``127.0.0.1:port``. Use as ``async with FaultsProxy.before(port) as proxy``.

    Args:
        port: the server's.
        seed: of the choice of connections to reset.
    """

    def __init__(self, port: int, *, seed: int = 20_240) -> None:
        self._server_port = port
        self._faults = HEALTHY
        self._changed = asyncio.Condition()
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rng = random.Random(seed)
        self.port = 0
        self.accepted = 0

    @classmethod
    @asynccontextmanager
    async def before(cls, port: int) -> AsyncIterator[FaultsProxy]:
        """A listening proxy before a server; everything is closed when the block is left."""
        proxy = cls(port)
        server = await asyncio.start_server(proxy._serve, _LOOPBACK, 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            proxy.reset()
            for task in list(proxy._tasks):
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)
            await server.wait_closed()

    @property
    def target(self) -> str:
        """Where clients reach it."""
        return f"{_LOOPBACK}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections that pass through it now."""
        return len(self._pairs)

    @property
    def faults(self) -> Faults:
        """What happens to what passes."""
        return self._faults

    async def become(self, faults: Faults) -> None:
        """Change what happens. What a silence has held back arrives when it ends, as TCP's repeats would."""
        async with self._changed:
            self._faults = faults
            self._changed.notify_all()

    async def heal(self) -> None:
        """Let everything pass."""
        await self.become(HEALTHY)

    def reset(self, share: float = 1.0) -> int:
        """Reset (RST) a share of the connections, at random; returns how many."""
        chosen = [pair for pair in list(self._pairs) if self._rng.random() < share]
        for pair in chosen:
            pair.reset()
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pair = _Pair([writer])
        self._pairs.add(pair)
        try:
            if self._faults.refuse:
                return
            await self._until_heard(Way.TO_SERVER)  # a SYN into silence is answered by nobody
            there_reader, there_writer = await asyncio.open_connection(_LOOPBACK, self._server_port)
            pair.writers.append(there_writer)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._forward(reader, there_writer, Way.TO_SERVER))
                ways.create_task(self._forward(there_reader, writer, Way.TO_CLIENT))
        except* OSError:
            pass  # a connection's end, whichever way it came
        finally:
            pair.reset()
            self._pairs.discard(pair)
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """One direction, until its end is closed; then the other direction ends too.

        A queue between reading and writing lets any number of bytes be late at once.
        """
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)
        async with asyncio.TaskGroup() as halves:
            halves.create_task(self._take_in(reader, late))
            halves.create_task(self._let_out(late, writer, way))

    async def _take_in(self, reader: asyncio.StreamReader, late: asyncio.Queue[tuple[float, bytes]]) -> None:
        now = asyncio.get_running_loop().time
        data = b"begin"
        while data:
            data = await reader.read(_CHUNK_BYTES)
            await late.put((now() + self._faults.delay_seconds, data))

    async def _let_out(self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: Way) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, data = await late.get()
            await asyncio.sleep(max(0.0, due - now()))
            await self._until_heard(way)
            if not data:
                raise ConnectionResetError("One end closed; the other follows.")
            writer.write(data)
            await writer.drain()
            if self._faults.bytes_per_second:
                await asyncio.sleep(len(data) / self._faults.bytes_per_second)

    async def _until_heard(self, way: Way) -> None:
        if way in self._faults.silent:
            async with self._changed:
                await self._changed.wait_for(lambda: way not in self._faults.silent)


class _Pair:
    """The two sockets of one connection through the proxy."""

    def __init__(self, writers: list[asyncio.StreamWriter]) -> None:
        self.writers = writers

    def reset(self) -> None:
        """Close both at once; the peers read a reset, not an end."""
        for writer in self.writers:
            connection = writer.get_extra_info("socket")
            if connection is not None and connection.fileno() >= 0:
                # Linger for 0 seconds: the kernel sends RST in place of FIN.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


def delayed(seconds: float) -> Faults:
    """Everything arrives later by ``seconds``."""
    return replace(HEALTHY, delay_seconds=seconds)
