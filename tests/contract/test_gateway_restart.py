"""Gateways as processes: they start, drain and end under load without losing a request."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.testing import ScriptedEmbedding, serve

BODY = json.dumps({"input": "a", "encoding_format": "base64"}).encode()
HEAD = "POST /v1/embeddings HTTP/1.1\r\nHost: mesh\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
REQUEST = HEAD.format(len(BODY)).encode() + BODY
READY = b"GET /health/ready HTTP/1.1\r\nHost: mesh\r\n\r\n"


class Gateway:
    """``python -m gateway`` on a port of its own, again and again."""

    def __init__(self, worker: str, folder: Path, **variables: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._folder = folder
        self._variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
            "GATEWAY_PORT": str(self.port),
            "EMBEDDING_SERVICE_URL": worker,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **variables,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Until it is ready."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", cwd=self._folder, env=self._variables, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(20):
            while await self.ready() != 200:
                assert self.process.returncode is None
                await asyncio.sleep(0.05)

    async def ready(self) -> int | None:
        """The status of its readiness; None where nobody answers."""
        try:
            connection = await Connection.to(self.port)
        except OSError:
            return None
        try:
            return (await connection.ask(READY))[0]
        except OSError:
            return None
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        """Send it one."""
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code."""
        assert self.process is not None
        async with asyncio.timeout(20):
            return await self.process.wait()


class Connection:
    """A kept connection that speaks as little HTTP as is needed, and sees every byte that is missing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_last = False

    @classmethod
    async def to(cls, port: int) -> Connection:
        """A new one."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises OSError where the answer does not come whole."""
        try:
            self._writer.write(request)
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            body = await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("closed before the answer was whole") from None
        self.is_last = b"\r\nconnection: close" in head
        return int(head.split()[1]), body

    async def rest(self) -> bytes:
        """All that still comes until it is closed."""
        return await self._reader.read()

    def send(self, request: bytes) -> None:
        """Begin a request."""
        self._writer.write(request)

    def close(self) -> None:
        """Close it."""
        self._writer.close()


class Client:
    """A load balancer's view: it keeps a connection while it may, and goes elsewhere where it is refused before it sent
    anything. Nothing else is ever tried again.
    """

    def __init__(self, gateways: Sequence[Gateway], first: int) -> None:
        self._ports = [gateway.port for gateway in gateways]
        self._next = first
        self._connection: Connection | None = None
        self.answered = 0
        self.failures: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        """One request after the other."""
        while not stop.is_set():
            try:
                connection = self._connection or await self._connected()
                status, body = await connection.ask(REQUEST)
                if status != 200:
                    self.failures.append(f"{status} {body[:200]!r}")
                self.answered += 1
            except OSError as error:
                self.failures.append(repr(error))
                connection.is_last = True
            if connection.is_last:
                connection.close()
                self._connection = None
            else:
                self._connection = connection
            await asyncio.sleep(0.001)
        if self._connection is not None:
            self._connection.close()

    async def _connected(self) -> Connection:
        for _ in self._ports:
            self._next += 1
            try:
                return await Connection.to(self._ports[self._next % len(self._ports)])
            except ConnectionRefusedError:
                continue
        raise ConnectionRefusedError("no gateway takes connections")


@asynccontextmanager
async def running(*gateways: Gateway) -> AsyncIterator[None]:
    """Start them, and end what is left of them."""
    try:
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        yield
    finally:
        for gateway in gateways:
            if gateway.process is not None and gateway.process.returncode is None:
                gateway.process.kill()
                await gateway.process.wait()


@asynccontextmanager
async def connections(gateway: Gateway, count: int) -> AsyncIterator[Sequence[Connection]]:
    """So many of them to one gateway."""
    opened = [await Connection.to(gateway.port) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


@pytest.mark.parametrize("notice", ["0", "0.5"])
async def test_a_rolling_restart_under_load_fails_no_request(tmp_path: Path, notice: str) -> None:
    """Two gateways restart in turn under kept connections; all that was sent is answered, and both exit with 0."""
    async with serve([ScriptedEmbedding().capability()]) as worker:
        pair = [Gateway(worker.target, tmp_path, GATEWAY_DRAIN_NOTICE_SECONDS=notice) for _ in range(2)]
        async with running(*pair):
            stop = asyncio.Event()
            clients = [Client(pair, first) for first in range(8)]
            tasks = [asyncio.create_task(client.run(stop)) for client in clients]
            codes = []
            for gateway in pair:
                await asyncio.sleep(0.3)
                gateway.signal(signal.SIGTERM)
                codes.append(await gateway.ended())
                await gateway.start()
            await asyncio.sleep(0.3)
            stop.set()
            await asyncio.gather(*tasks)
    assert [failure for client in clients for failure in client.failures] == []
    assert codes == [0, 0]
    assert sum(client.answered for client in clients) > 500


async def test_a_draining_gateway_says_so_finishes_what_it_took_and_takes_leave(tmp_path: Path) -> None:
    """Unready at once, answers on kept connections end them, what is under way is finished, the exit code is 0."""
    embedding = ScriptedEmbedding(["hang"])
    async with serve([embedding.capability()]) as worker:
        gateway = Gateway(worker.target, tmp_path, GATEWAY_DRAIN_NOTICE_SECONDS="1")
        async with running(gateway), asyncio.timeout(20), connections(gateway, 3) as (idle, busy, health):
            await health.ask(READY)
            limited = REQUEST.replace(b"Host:", b"x-request-timeout-ms: 1500\r\nHost:")
            begun = asyncio.create_task(busy.ask(limited))
            while embedding.calls == 0:
                await asyncio.sleep(0.01)
            await idle.ask(REQUEST)
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            unready, _ = await health.ask(READY)
            late, _ = await idle.ask(REQUEST)
            status, _ = await begun
            code = await gateway.ended()
    assert (unready, late, status, code) == (503, 200, 504, 0)
    assert (health.is_last, idle.is_last, busy.is_last) == (True, True, True)


async def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """They are closed after a moment, and with nobody connected there is no moment to wait for."""
    async with serve([ScriptedEmbedding().capability()]) as worker:
        gateway = Gateway(worker.target, tmp_path)
        async with running(gateway), asyncio.timeout(20), connections(gateway, 1) as [idle]:
            await idle.ask(REQUEST)
            loop = asyncio.get_running_loop()
            began = loop.time()
            gateway.signal(signal.SIGTERM)
            assert await idle.rest() == b""
            assert await gateway.ended() == 0
    assert loop.time() - began < 3


async def test_what_outlasts_the_grace_ends_typed(tmp_path: Path) -> None:
    """A request that is still under way when the time is up is told so in its client's shape."""
    async with serve([ScriptedEmbedding(["hang"] * 2).capability()]) as worker:
        gateway = Gateway(worker.target, tmp_path, GATEWAY_DRAIN_GRACE_SECONDS="1")
        async with running(gateway), asyncio.timeout(20), connections(gateway, 1) as [busy]:
            begun = asyncio.create_task(busy.ask(REQUEST))
            await asyncio.sleep(0.3)
            gateway.signal(signal.SIGTERM)
            status, body = await begun
            code = await gateway.ended()
    assert (status, json.loads(body)["error"]["code"], code) == (503, "gateway_draining", 0)


async def test_a_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    """Whoever asks twice does not want to wait; the exit code tells that something was left undone."""
    async with serve([ScriptedEmbedding(["hang"]).capability()]) as worker:
        gateway = Gateway(worker.target, tmp_path, GATEWAY_DRAIN_GRACE_SECONDS="60")
        async with running(gateway), asyncio.timeout(20), connections(gateway, 1) as [busy]:
            busy.send(REQUEST)
            await asyncio.sleep(0.3)
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            asked = loop.time()
            gateway.signal(signal.SIGTERM)
            code = await gateway.ended()
    assert code == 128 + signal.SIGTERM
    assert loop.time() - asked < 1


_SIGNALLED_EARLY = """
import os, signal, uvicorn
from gateway.__main__ import main
run = uvicorn.Server.run
def signalled(server):
    os.kill(os.getpid(), signal.SIGTERM)
    run(server)
uvicorn.Server.run = signalled
raise SystemExit(main())
"""


async def test_a_sigterm_before_the_server_runs_is_not_lost(tmp_path: Path) -> None:
    """One that comes between the gateway's own handlers and the server's ends it as soon as it has started."""
    variables = Gateway("127.0.0.1:1", tmp_path)._variables
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SIGNALLED_EARLY, cwd=tmp_path, env=variables, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(15):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
