"""An engine that hangs, fails or is slow, in a worker process of its own: what callers and the supervisor see of it.

The worker is the real one; its engine does what a file says (`embedding_service.testing`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedding_service.servicer import SERVICE
from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.pb.embedding.v1 import embedding_pb2_grpc

STUCK = 70
TEXTS = ("the cat sat", "the dog ran")


@dataclass
class FaultyWorker:
    """A worker process and how to hurt it."""

    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    fault_file: Path

    def __post_init__(self) -> None:
        self.embedding: Any = embedding_pb2_grpc.EmbeddingServiceStub(self.channel)
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    def fault(self, what: str) -> None:
        """From the next batch on the engine does this."""
        fresh = self.fault_file.with_suffix(".new")
        fresh.write_text(what, encoding="utf-8")
        fresh.replace(self.fault_file)

    async def serves(self) -> bool:
        """What the health check says; False while nobody answers."""
        try:
            reply = await self._health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=1)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def embed(self, *texts: str, seconds: float = 20.0) -> pb.EmbedResponse:
        """One call."""
        reply: pb.EmbedResponse = await self.embedding.Embed(pb.EmbedRequest(texts=texts or TEXTS), timeout=seconds)
        return reply

    async def seconds_until(self, *, serving: bool) -> float:
        """How long it takes until health says so."""
        started = time.monotonic()
        async with asyncio.timeout(20):
            while await self.serves() is not serving:
                await asyncio.sleep(0.02)
        return time.monotonic() - started

    async def exit_code(self, seconds: float = 20.0) -> int:
        """How the process ends."""
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@asynccontextmanager
async def faulty_worker(directory: Path, port: int, **settings: float) -> AsyncIterator[FaultyWorker]:
    """A worker that serves, with ``EMBEDDING_…`` settings; killed at the end if it still runs."""
    fault_file = directory / "fault"
    environ = {
        **os.environ,
        "MESH_FAULT_FILE": str(fault_file),
        "EMBEDDING_PORT": str(port),
        **{f"EMBEDDING_{name.upper()}": str(value) for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "embedding_service.testing", env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            worker = FaultyWorker(process, channel, fault_file)
            await worker.seconds_until(serving=True)
            yield worker
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
async def test_a_batch_that_never_ends_is_found_within_ten_seconds_and_the_process_exits(
    tmp_path: Path, port: int
) -> None:
    """With the settings as shipped: NOT_SERVING, the reason for new calls, and the exit code for the supervisor."""
    async with faulty_worker(tmp_path, port) as worker:
        worker.fault("hang")
        stuck = asyncio.create_task(worker.embed())
        assert await worker.seconds_until(serving=False) <= 10.0
        with pytest.raises(grpc.aio.AioRpcError, match=r"no progress|did not answer its canary"):
            await worker.embed()
        assert await worker.exit_code() == STUCK
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await stuck
        assert lost.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
async def test_an_idle_engine_that_hangs_is_found_within_ten_seconds(tmp_path: Path, port: int) -> None:
    """The canary finds it before a request does."""
    async with faulty_worker(tmp_path, port) as worker:
        worker.fault("hang")
        assert await worker.seconds_until(serving=False) <= 10.0
        assert await worker.exit_code() == STUCK


async def test_an_engine_that_fails_every_batch_is_found_by_its_failures(tmp_path: Path, port: int) -> None:
    """A poisoned engine is NOT_SERVING in about a second, also under load, and the process exits soon after."""
    async with faulty_worker(tmp_path, port, canary_interval_seconds=3600) as worker:
        calls = [asyncio.create_task(worker.embed()) for _ in range(50)]
        await asyncio.gather(*calls)
        worker.fault("fail")
        calls = [asyncio.create_task(worker.embed()) for _ in range(50)]
        assert await worker.seconds_until(serving=False) <= 2.0
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, grpc.aio.AioRpcError) for each in failures)
        assert await worker.exit_code() == STUCK


async def test_an_engine_that_recovers_serves_again(tmp_path: Path, port: int) -> None:
    """One failed canary is not the end: the next one that succeeds brings the capability back."""
    async with faulty_worker(tmp_path, port, canary_retry_seconds=1.0) as worker:
        worker.fault("fail")
        with pytest.raises(grpc.aio.AioRpcError):
            await worker.embed()
        await worker.seconds_until(serving=False)
        worker.fault("healthy")
        assert await worker.seconds_until(serving=True) <= 2.5
        assert (await worker.embed()).rows == 2


async def test_a_poisonous_request_fails_alone_however_often_it_comes(tmp_path: Path, port: int) -> None:
    """Who repeats a request that makes the engine raise takes down neither others nor the worker."""
    async with faulty_worker(tmp_path, port) as worker:
        worker.fault("fail:red")
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            poison = [asyncio.create_task(worker.embed("the red dog")) for _ in range(4)]
            innocent = [asyncio.create_task(worker.embed("the blue cat")) for _ in range(4)]
            assert all(reply.rows == 1 for reply in await asyncio.gather(*innocent))
            for failed in await asyncio.gather(*poison, return_exceptions=True):
                assert isinstance(failed, grpc.aio.AioRpcError)
                assert failed.code() is grpc.StatusCode.INTERNAL
            assert await worker.serves()
        assert worker.process.returncode is None


async def test_sigterm_finishes_what_was_admitted_and_exits_0(tmp_path: Path, port: int) -> None:
    """Admitted calls are answered; later ones are refused with the reason that sends them elsewhere."""
    async with faulty_worker(tmp_path, port, drain_notice_seconds=0.1) as worker:
        worker.fault("slow:0.2")
        admitted = asyncio.create_task(worker.embed("the cat"))
        await asyncio.sleep(0.2)
        worker.process.send_signal(signal.SIGTERM)
        await worker.seconds_until(serving=False)
        await asyncio.sleep(0.2)
        with pytest.raises(grpc.aio.AioRpcError, match="draining") as refused:
            await worker.embed()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await admitted).rows == 1
        assert await worker.exit_code() == 0


async def test_calls_beyond_the_grace_end_typed(tmp_path: Path, port: int) -> None:
    """A drain ends after its grace, and who is cut off hears that another worker may answer."""
    async with faulty_worker(tmp_path, port, drain_notice_seconds=0, drain_grace_seconds=0.3) as worker:
        worker.fault("slow:0.5")
        cut = asyncio.create_task(worker.embed("the cat sat on the mat"))
        await asyncio.sleep(0.2)
        worker.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError, match="ended before the call was done") as refused:
            await cut
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await worker.exit_code() == 0


async def test_a_second_sigterm_ends_the_process_at_once(tmp_path: Path, port: int) -> None:
    """Whoever asks twice does not wait for the grace."""
    async with faulty_worker(tmp_path, port) as worker:
        worker.fault("hang")
        stuck = asyncio.create_task(worker.embed())
        await asyncio.sleep(0.2)
        worker.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert worker.process.returncode is None
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.exit_code(seconds=1.0) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await stuck


async def test_a_drain_under_load_leaves_no_call_without_its_reason(tmp_path: Path, port: int) -> None:
    """Callers that ignore health and never pause are answered or told UNAVAILABLE, never CANCELLED."""
    outcomes: set[grpc.StatusCode] = set()
    async with faulty_worker(tmp_path, port, drain_notice_seconds=0.1) as worker:

        async def keep_calling() -> None:
            while True:
                try:
                    await worker.embed("the cat")
                    outcomes.add(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    outcomes.add(error.code())
                    await asyncio.sleep(0.001)

        callers = [asyncio.create_task(keep_calling()) for _ in range(16)]
        await asyncio.sleep(0.3)
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
        await asyncio.sleep(0.1)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    assert outcomes == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
