"""Certificates change while calls are under way: none is lost, on either face of the client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mesh.clients import AsyncEmbeddingServiceClient, EmbeddingServiceClient
from mesh.errors import Unavailable
from mesh.testing import ScriptedEmbedding
from mesh.testing.server import until_serving
from mesh.tls.problems import TlsProblem
from ops.tls.testing import Office
from tests.hop.tls_stand import SERVER, client_tls, client_to, rotate, serve_tls

ROTATIONS = 4


class Count:
    """How many calls were answered, and what the others ended with."""

    def __init__(self) -> None:
        self.answered = 0
        self.failures: list[Exception] = []


async def test_no_call_is_lost_while_both_sides_rotate(tmp_path: Path) -> None:
    """Sixteen callers, a rotation every second, the last with a new authority: every call is answered."""
    office = Office.open(tmp_path)
    tls = client_tls(office.issue("gateway"))
    count, over = Count(), asyncio.Event()

    async def call(client: AsyncEmbeddingServiceClient) -> None:
        while not over.is_set():
            try:
                await client.embed(["a"])
                count.answered += 1
            except Exception as error:
                count.failures.append(error)

    async with serve_tls(office.issue(SERVER)) as worker, client_to(worker.port, tls) as client:
        await until_serving(client.hop)
        async with asyncio.TaskGroup() as group:
            for _ in range(16):
                group.create_task(call(client))
            for number in range(ROTATIONS):
                await asyncio.sleep(1.0)
                rotate(office if number < ROTATIONS - 1 else Office.open(tmp_path, "successor"), SERVER, "gateway")
            await asyncio.sleep(2.0)
            over.set()
        assert client.hop.status().serving
    assert count.failures == []
    assert count.answered > 100
    assert tls.identity.version >= ROTATIONS


def test_no_call_of_a_sync_client_is_lost_either(tmp_path: Path) -> None:
    """The same in threads, with a worker on another thread's loop."""
    office = Office.open(tmp_path)
    tls = client_tls(office.issue("client"))
    count, over = Count(), threading.Event()

    def call(client: EmbeddingServiceClient) -> None:
        while not over.is_set():
            try:
                client.embed(["a"])
                count.answered += 1
            except Exception as error:
                count.failures.append(error)

    with in_thread(office) as port, EmbeddingServiceClient(f"127.0.0.1:{port}", tls=tls) as client:
        client.embed(["a"])
        threads = [threading.Thread(target=call, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(ROTATIONS):
            time.sleep(1.0)
            rotate(office, SERVER, "client")
        time.sleep(2.0)
        over.set()
        for thread in threads:
            thread.join(10)
    assert count.failures == []
    assert count.answered > 100
    assert tls.identity.version >= ROTATIONS


async def test_a_stream_outlives_the_rotation_and_its_connection_ends_with_it(tmp_path: Path) -> None:
    """What is under way stays on the old connection; nothing keeps that open afterwards."""
    office = Office.open(tmp_path)
    tls = client_tls(office.issue("gateway"))
    rotated = asyncio.Event()

    async def batches() -> AsyncIterator[list[str]]:
        yield ["a"]
        await rotated.wait()
        yield ["bb"]

    async with serve_tls(office.issue(SERVER)) as worker, client_to(worker.port, tls) as client:
        await until_serving(client.hop)
        answers = client.embed_stream(batches())
        assert (await anext(answers)).array()[0][0] == 1.0
        before = connections(client)
        rotate(office, SERVER, "gateway")
        while tls.identity.version == 1:
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)
        await client.embed(["meanwhile"])
        assert connections(client) != before
        assert len(client.hop._balancer._leaving) == 1  # type: ignore[union-attr]
        rotated.set()
        assert (await anext(answers)).array()[0][0] == 2.0
        await answers.aclose()
        await asyncio.sleep(1.5)
        assert client.hop._balancer._leaving == []  # type: ignore[union-attr]


async def test_an_endpoint_that_is_ejected_stays_so_until_its_calls_are_answered(tmp_path: Path) -> None:
    """Its worker is no better for a new certificate; and the time series ends up where the endpoint does."""
    office = Office.open(tmp_path)
    async with (
        serve_tls(office.issue(SERVER)) as worker,
        client_to(worker.port, client_tls(office.issue("gateway"))) as client,
    ):
        await until_serving(client.hop)
        endpoint = client.hop._balancer.endpoints[0]  # type: ignore[union-attr]
        for _ in range(client.hop.settings.failure_threshold):
            with suppress(Unavailable), endpoint.breaker.guard():
                raise Unavailable("as its calls were answered")
        labels = {"hop": "embedding", "endpoint": f"127.0.0.1:{worker.port}"}
        before = connections(client)
        rotate(office, "gateway")
        async with asyncio.timeout(10):
            while connections(client) == before:
                await asyncio.sleep(0.02)
        assert client.hop.status().endpoints[0].ejected
        assert REGISTRY.get_sample_value("mesh_endpoint_ejected", labels) == 1
        await client.embed(["a"])
        assert not client.hop.status().endpoints[0].ejected
        assert REGISTRY.get_sample_value("mesh_endpoint_ejected", labels) == 0


async def test_a_new_certificate_that_the_worker_refuses_costs_nothing(tmp_path: Path) -> None:
    """The old connection goes on, calls and all, and the next rotation mends it."""
    office = Office.open(tmp_path)
    files = office.issue("gateway")
    tls = client_tls(files)
    strange = Office.open(tmp_path / "strange").issue("gateway")
    async with serve_tls(office.issue(SERVER)) as worker, client_to(worker.port, tls) as client:
        await until_serving(client.hop)
        before = connections(client)
        files.key.write_bytes(strange.key.read_bytes())
        files.certificate.write_bytes(strange.certificate.read_bytes())
        while tls.identity.version == 1:
            await asyncio.sleep(0.02)
        for _ in range(20):
            await asyncio.sleep(0.1)
            await client.embed(["a"])
        assert connections(client) == before
        office.issue("gateway")
        async with asyncio.timeout(15):
            while connections(client) == before:
                await asyncio.sleep(0.05)
        await client.embed(["a"])
        assert client.hop.status().serving


async def test_an_endpoint_that_hangs_does_not_hold_up_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While one answers no new connection, the next already has its own with the new certificate."""
    office = Office.open(tmp_path)
    tls = client_tls(office.issue("gateway"))
    async with (
        serve_tls(office.issue(SERVER)) as one,
        serve_tls(office.issue(SERVER)) as two,
        way_to(one.port) as way,
        AsyncEmbeddingServiceClient((f"127.0.0.1:{way.port}", f"127.0.0.1:{two.port}"), tls=tls) as client,
    ):
        async with asyncio.timeout(10):
            client.hop.start()
            while {each.health for each in client.hop.status().endpoints} != {"SERVING"}:
                await asyncio.sleep(0.02)
        first, second = connections(client)
        way.is_shut = True
        rotate(office, "gateway")
        async with asyncio.timeout(10):
            while connections(client)[1] == second:
                await asyncio.sleep(0.02)
        assert connections(client)[0] == first
        assert "no connection with the new certificate; the old connection goes on" not in caplog.messages
        assert client.hop.status().endpoints[0].health == "SERVING"


async def test_a_rotation_that_is_half_written_costs_nothing(tmp_path: Path) -> None:
    """The worker's new key is there before its certificate: new clients meet the old pair meanwhile."""
    office = Office.open(tmp_path)
    files = office.issue(SERVER)
    gateway = office.issue("gateway")
    async with serve_tls(files) as worker:
        certificate = files.certificate.read_bytes()
        office.issue(SERVER)
        fresh, files_now = files.certificate.read_bytes(), files.certificate
        files_now.write_bytes(certificate)
        await asyncio.sleep(0.2)
        for content in (certificate, fresh[:100], fresh):
            files_now.write_bytes(content)
            await asyncio.sleep(0.2)
            async with client_to(worker.port, client_tls(gateway)) as client:
                await until_serving(client.hop)
                await client.embed(["a"])


@pytest.mark.parametrize("ended", ["gateway", SERVER])
async def test_the_status_names_a_rotation_that_never_fits(ended: str, tmp_path: Path) -> None:
    """A key that does not fit stays where it is, and the certificate's owner says so for ever."""
    office = Office.open(tmp_path)
    files = office.issue(ended)
    tls = client_tls(files, server_name="")
    files.key.write_bytes(office.issue("other").key.read_bytes())
    async with asyncio.timeout(10):
        while tls.identity.finding() is None:
            tls.refresh()
            await asyncio.sleep(0.05)
    assert tls.status()["problem"] == TlsProblem.KEY_MISMATCH
    assert tls.status()["days_left"] > 29


def connections(client: AsyncEmbeddingServiceClient) -> tuple[int, ...]:
    """Which connections calls go to now."""
    balancer = client.hop._balancer
    assert balancer is not None
    return tuple(id(endpoint.channel) for endpoint in balancer.endpoints)


class Way:
    """Leads to a worker; once it is shut, further connections are taken and left without an answer."""

    def __init__(self, leads_to: int) -> None:
        self.port = 0
        self.is_shut = False
        self._leads_to = leads_to
        self._open: list[asyncio.StreamWriter] = []

    async def go(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._open.append(writer)
        if self.is_shut:
            return
        onward, back = await asyncio.open_connection("127.0.0.1", self._leads_to)
        self._open.append(back)
        await asyncio.gather(self._carry(reader, back), self._carry(onward, writer))

    def end(self) -> None:
        """End its connections."""
        for each in self._open:
            each.close()

    @staticmethod
    async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def way_to(port: int) -> AsyncIterator[Way]:
    """A way to the worker at ``port``, with a port of its own."""
    way = Way(port)
    server = await asyncio.start_server(way.go, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    async with server:
        yield way
        way.end()


@contextmanager
def in_thread(office: Office) -> Iterator[int]:
    """A worker on the loop of another thread; yields its port."""
    ready, ports = threading.Event(), list[int]()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop.append((asyncio.get_running_loop(), asyncio.Event()))
        scripted = [ScriptedEmbedding().capability()]
        async with serve_tls(office.issue(SERVER), capabilities=scripted, rules={"client": ["*"]}) as worker:
            ports.append(worker.port)
            ready.set()
            await stop[0][1].wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        stop[0][0].call_soon_threadsafe(stop[0][1].set)
        thread.join(10)
