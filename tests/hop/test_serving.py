"""How a worker behaves from its first moment to its last, seen over the wire."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from mesh.clients.embedding import AsyncEmbeddingServiceClient
from mesh.errors import ModelUnusable, Unavailable
from mesh.serving import Capability, worker
from mesh.serving.reflecting import V1_NAME
from mesh.testing import ScriptedEmbedding, serve
from mesh.testing.embedding import HANG, SERVICE

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def checked(target: str, service: str) -> int:
    """One health check."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return int(reply.status)


def starting_with(capability: Capability, gate: asyncio.Event) -> Capability:
    """The capability, whose model is loaded when the gate opens."""

    async def start() -> None:
        await gate.wait()

    return replace(capability, start=start)


async def test_the_port_answers_health_while_the_model_loads() -> None:
    """NOT_SERVING and a typed refusal until the model is there, then SERVING, per capability and overall."""
    gate = asyncio.Event()
    async with serve([starting_with(ScriptedEmbedding().capability(), gate)]) as running:
        assert await checked(running.target, SERVICE) == NOT_SERVING
        assert await checked(running.target, "") == NOT_SERVING
        async with grpc.aio.insecure_channel(running.target) as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/Info")
            with pytest.raises(grpc.aio.AioRpcError, match="still starting"):
                await call(b"", timeout=5)
        gate.set()
        async with asyncio.timeout(5):
            while await checked(running.target, SERVICE) != SERVING:
                await asyncio.sleep(0.01)
        assert await checked(running.target, "") == SERVING


async def test_watch_keeps_watching() -> None:
    """A watcher hears every change without asking again."""
    gate = asyncio.Event()
    async with serve([starting_with(ScriptedEmbedding().capability(), gate)]) as running:
        async with grpc.aio.insecure_channel(running.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            heard = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20).__aiter__()
            assert (await heard.__anext__()).status == NOT_SERVING
            gate.set()
            assert (await heard.__anext__()).status == SERVING
            await running.worker.stop()
            assert (await heard.__anext__()).status == NOT_SERVING


async def test_one_broken_capability_leaves_the_others_serving() -> None:
    """Each has its own health; overall says that not all is well."""

    async def broken() -> None:
        raise ModelUnusable("The path does not exist. Set EMBEDDING_MODEL to one that does.", reason="MODEL_NOT_FOUND")

    bad = Capability(service="bad.v1.BadService", register=lambda _: None, start=broken)
    async with serve([ScriptedEmbedding().capability(), bad]) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            assert (await client.embed(["a"])).rows == 1
        assert await checked(running.target, SERVICE) == SERVING
        assert await checked(running.target, "bad.v1.BadService") == NOT_SERVING
        assert await checked(running.target, "") == NOT_SERVING


async def test_health_answers_at_once_while_every_call_hangs() -> None:
    """A saturated worker is not a dead one."""
    servicer = ScriptedEmbedding([HANG] * 200)
    async with serve([servicer.capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            calls = [asyncio.create_task(client.embed(["a"])) for _ in range(200)]
            async with asyncio.timeout(5):
                while servicer.calls < 200:
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(1):
                assert await checked(running.target, SERVICE) == SERVING
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


async def test_a_drained_worker_finishes_what_it_admitted() -> None:
    """A call under way when the end is asked for is answered; a new one is refused."""
    gate = asyncio.Event()

    class Slow(ScriptedEmbedding):
        async def _step(self) -> None:
            self.calls += 1
            await gate.wait()

    servicer = Slow()
    async with serve([servicer.capability()], drain_grace_seconds=5.0) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            admitted = asyncio.create_task(client.embed(["a"]))
            async with asyncio.timeout(5):
                while not servicer.calls:
                    await asyncio.sleep(0.01)
            ending = asyncio.create_task(running.worker.stop())
            async with asyncio.timeout(5):
                while client.hop.status().serving:
                    await asyncio.sleep(0.01)
            with pytest.raises(Unavailable):
                await client.embed(["too late"])
            gate.set()
            assert (await admitted).rows == 1
            await ending


async def test_an_idle_worker_ends_at_once_however_many_watch_its_health() -> None:
    """A health watch is no work under way: the grace is for calls."""
    async with serve([ScriptedEmbedding().capability()], drain_grace_seconds=30.0) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            async with asyncio.timeout(5):
                while not client.hop.status().serving:
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(2):
                await running.worker.stop()


async def test_a_failed_canary_is_tried_again_while_clients_ask_for_info() -> None:
    """Questions that need no engine are no traffic: the capability comes back by its next canary."""
    tries = 0

    async def canary() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unavailable("once")

    capability = replace(ScriptedEmbedding().capability(), canary=canary)
    async with serve([capability], canary_interval_seconds=0.5, canary_retry_seconds=0.5) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            async with asyncio.timeout(10):
                while tries < 2 or not client.hop.status().serving:
                    await asyncio.sleep(0.02)


async def test_a_capability_that_starts_unhealthy_does_not_serve_for_a_moment() -> None:
    """What it says of itself counts from its first moment, not from the watchdog's first look."""
    down = Unavailable("The engine restarts.", reason="ENGINE_RESTARTING", retry_after=1.0)
    started = asyncio.Event()

    async def start() -> None:
        started.set()

    capability = replace(ScriptedEmbedding().capability(), start=start, unhealthy=lambda: down)
    async with serve([capability]) as running:
        await started.wait()
        for _ in range(20):
            assert await checked(running.target, SERVICE) == NOT_SERVING


async def test_a_capability_that_does_not_stop_holds_up_neither_others_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are stopped side by side and within a limit; one that fails is left behind too."""
    monkeypatch.setattr(worker, "_STOP_SECONDS", 0.2)
    stopped: list[str] = []

    async def nothing() -> None:
        """It starts at once."""

    async def hang() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise RuntimeError("a bug")

    async def stop() -> None:
        stopped.append("well")

    ends = {"test.v1.Hanging": hang, "test.v1.Failing": fail, "test.v1.Well": stop}
    capabilities = [
        Capability(service=service, register=lambda _: None, start=nothing, stop=end) for service, end in ends.items()
    ]
    async with serve(capabilities) as running:
        async with asyncio.timeout(5):
            await running.worker.stop()
    assert stopped[0] == "well"


@pytest.mark.parametrize("name", ["/x", "/", "//", f"/{SERVICE}", f"/{SERVICE}/", f"/{SERVICE}/Embed/x"])
async def test_a_method_name_that_makes_no_sense_is_unimplemented(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Any client may send any name: it is told so, and the log is left alone."""
    async with serve([ScriptedEmbedding().capability()]) as running:
        async with grpc.aio.insecure_channel(running.target) as channel:
            call: Any = channel.unary_unary(name)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"", timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_port_that_is_taken_is_said_so() -> None:
    """The second process on a port fails to start instead of sharing its calls by chance."""
    async with serve([ScriptedEmbedding().capability()]) as running:
        with pytest.raises(OSError, match="another process has the port"):
            async with serve([ScriptedEmbedding().capability()], port=running.worker.port):
                pass


@pytest.mark.parametrize("name", [V1_NAME, "grpc.reflection.v1alpha.ServerReflection"])
async def test_reflection_lists_the_services_under_both_names(name: str) -> None:
    """Old and new tools see what is served."""
    async with serve([ScriptedEmbedding().capability()]) as running:
        async with grpc.aio.insecure_channel(running.target) as channel:
            ask = channel.stream_stream(
                f"/{name}/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
            services = [each.name async for reply in call for each in reply.list_services_response.service]
    assert SERVICE in services
    assert "grpc.health.v1.Health" in services
