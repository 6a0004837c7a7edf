"""GPU status behind a real gRPC server while the driver hangs: nobody waits for it, and nothing else suffers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpu_services.gpu.reader import GpuReader
from gpu_services.gpu.servicer import NAME, GpuServicer
from gpu_services.gpu.status import Status
from mesh.clients.gpu import AsyncGPUServiceClient
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Unavailable
from mesh.serving import Capability
from mesh.testing import serve

ANSWER_SECONDS = 0.3


class HangingSource:
    """A driver whose calls block while ``gate`` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def read(self) -> Status:
        """One reading."""
        self.gate.wait(30)
        return Status(read_at_unix_ms=1, unavailable_reason="none here")

    def version(self) -> tuple[str, str]:
        """A version."""
        return "nvml", "1.0"

    def close(self) -> None:
        """Nothing to let go of."""


@asynccontextmanager
async def served(source: HangingSource) -> AsyncIterator[tuple[AsyncGPUServiceClient, str]]:
    """The capability as the worker offers it, with a client."""
    reader = GpuReader(source, answer_seconds=ANSWER_SECONDS)
    capability = Capability(
        service=NAME,
        register=GpuServicer(reader).register,
        start=reader.start,
        canary=reader.canary,
        unhealthy=reader.unhealthy,
        stop=reader.stop,
    )
    try:
        async with (
            serve([capability], canary_interval_seconds=0.5) as running,
            AsyncGPUServiceClient(running.target) as client,
        ):
            await until(running.target, serving=True)
            yield client, running.target
    finally:
        source.gate.set()


async def until(target: str, *, serving: bool) -> None:
    """Wait until health says so."""
    async with asyncio.timeout(10), grpc.aio.insecure_channel(target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=1)
            if (answer.status == health_pb2.HealthCheckResponse.SERVING) is serving:
                return
            await asyncio.sleep(0.02)


async def test_a_driver_that_hangs_under_a_call_is_typed_and_told_and_mends_by_itself() -> None:
    """The caller hears why within the driver's time, health says NOT_SERVING, and both are well when it answers."""
    source = HangingSource()
    async with served(source) as (client, target):
        source.gate.clear()
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await client.get_gpu_status(deadline=Deadline.after(5.0))
        assert time.monotonic() - began < ANSWER_SECONDS + 1.0
        assert caught.value.reason == "GPU_DRIVER_HANGS"
        await until(target, serving=False)
        source.gate.set()
        await until(target, serving=True)
        assert (await client.get_gpu_status()).unavailable_reason == "none here"


async def test_a_driver_that_hangs_while_nobody_asks_is_found() -> None:
    """The canary asks it, and the worker lives on: a fresh process would meet the same driver."""
    source = HangingSource()
    async with served(source) as (client, target):
        source.gate.clear()
        await until(target, serving=False)
        await asyncio.sleep(2.0)  # time for the canaries that would end the worker, were they run
        source.gate.set()
        await until(target, serving=True)
        assert (await client.get_gpu_status()).read_at_unix_ms == 1


async def test_a_callers_own_deadline_is_kept_while_the_driver_hangs() -> None:
    """Who has less time than the driver gets is told so in that time."""
    source = HangingSource()
    async with served(source) as (client, _):
        source.gate.clear()
        began = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await client.get_gpu_status(deadline=Deadline.after(0.1))
        assert time.monotonic() - began < ANSWER_SECONDS


async def test_a_watch_ends_typed_when_the_driver_hangs() -> None:
    """A stream that watched hears why it ends instead of falling silent."""
    source = HangingSource()
    async with served(source) as (client, _):
        seen = 0

        async def watch() -> None:
            nonlocal seen
            async for _ in client.watch_gpu_status(interval_seconds=0.1):
                seen += 1
                source.gate.clear()

        with pytest.raises(Unavailable) as caught:
            async with asyncio.timeout(5):
                await watch()
        assert (seen, caught.value.reason) == (1, "GPU_DRIVER_HANGS")
