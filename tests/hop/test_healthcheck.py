"""The health probe of a container, against real servers."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mesh.healthcheck import ask_gateway, ask_worker, main
from ops.tls.testing import Office
from tests.hop.tls_stand import serve_tls

State = health_pb2.HealthCheckResponse


@asynccontextmanager
async def worker(state: int) -> AsyncIterator[str]:
    """A server whose process as a whole is in that state."""
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await servicer.set("", state)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def gateway(status: str) -> AsyncIterator[str]:
    """A server that answers every request so."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health/ready"


async def _exit_code(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh.healthcheck", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_worker_that_serves_is_healthy() -> None:
    """The probe, as a process of its own, ends with 0."""
    async with worker(State.SERVING) as target:
        assert await _exit_code(target) == (0, "serving\n")


async def test_a_worker_that_loads_or_drains_is_not() -> None:
    """It answers, and says that it does not serve: exit code 1, and a reason for the operator."""
    async with worker(State.NOT_SERVING) as target:
        code, words = await _exit_code(target)
    assert code == 1
    assert "NOT_SERVING" in words


async def test_a_worker_behind_tls_is_asked_with_its_own_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the probe has the worker's variables. A probe without them, or with wrong ones, says so."""
    files = Office.open(tmp_path).issue("embedding-services")
    async with serve_tls(files) as worker_:
        target = f"127.0.0.1:{worker_.port}"
        plaintext = await asyncio.to_thread(ask_worker, target, 1.0)
        for name, path in (("CA", files.ca), ("CERTIFICATE", files.certificate), ("KEY", files.key)):
            monkeypatch.setenv(f"MESH_TLS_{name}", str(path))
        assert await _exit_code(target) == (0, "serving\n")
        monkeypatch.setenv("MESH_TLS_KEY", str(tmp_path / "nowhere.key"))
        assert "nowhere.key" in await asyncio.to_thread(ask_worker, target)
    assert "does not answer" in plaintext


async def test_a_worker_that_is_silent_is_not_waited_for() -> None:
    """One whose port is open and who says nothing fails the probe before the engine ends it."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts; nobody reads
        reason = await asyncio.to_thread(ask_worker, f"127.0.0.1:{server.getsockname()[1]}", 0.3)
    assert "does not answer" in reason


@pytest.mark.parametrize(("status", "reason"), [("200 OK", ""), ("503 Service Unavailable", "answers 503")])
async def test_the_gateway_is_healthy_when_it_takes_requests(status: str, reason: str) -> None:
    """/health/ready decides; while it drains the container is not healthy."""
    async with gateway(status) as url:
        told = await asyncio.to_thread(ask_gateway, url)
    assert told == (f"{url} {reason}" if reason else "")


async def test_nobody_there_is_unhealthy() -> None:
    """Neither a worker nor a gateway is where nothing listens."""
    asks: list[Callable[[], Coroutine[None, None, str]]] = [
        lambda: asyncio.to_thread(ask_worker, "127.0.0.1:9", 0.5),
        lambda: asyncio.to_thread(ask_gateway, "http://127.0.0.1:9/health/ready", 0.5),
    ]
    for ask in asks:
        assert "does not answer" in await ask()


def test_it_says_how_it_is_used() -> None:
    """Without a target there is nothing to ask."""
    assert main([]) == 2
