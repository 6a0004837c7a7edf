"""Everything is restarted, one process after the other, and nobody notices: no failed request, no broken stream."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from ops.local.layout import Layout
from tests.chaos.balancer import SHIPPED, Gateway, running_envoy
from tests.chaos.bars import Measured
from tests.chaos.mixture import Ask, chat, chunk, embed, look_at_gpus, mixture, rerank
from tests.chaos.processes import EMBEDDING, LLM, REAL_EMBEDDING, Program, Replica, replicas

pytestmark = pytest.mark.chaos

CALLS = 5000
REAL_RERANKING = Program("reranking", "reranking.v1.RerankingService", ("-m", "reranking_service"))
REAL_GPU_SERVICES = Program("gpu-services", "chunking.v1.ChunkingService", ("-m", "gpu_services"))
NOTICE_SECONDS = 2.0
"""As ops/envoy/gateway.yaml says."""


def targets(made: Sequence[Replica]) -> str:
    """Their addresses, as a gateway is told them."""
    return ",".join(each.target for each in made)


def http(url: str) -> httpx.AsyncClient:
    """A client with keep-alive connections and no retries."""
    return httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False, limits=httpx.Limits(max_connections=64))


async def restart(replica: Replica) -> int:
    """End a worker by SIGTERM, start it again, and wait until it serves. Returns the exit code."""
    replica.signal(signal.SIGTERM)
    code = await replica.exit_code()
    await replica.start()
    return code


def test_the_shipped_configuration_is_valid() -> None:
    """Envoy takes it as it is."""
    envoy = Layout.from_environment(os.environ).python("test").with_name("envoy")
    answer = subprocess.run(
        [str(envoy), "--mode", "validate", "-c", str(SHIPPED)], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr


@asynccontextmanager
async def whole_mesh() -> AsyncIterator[tuple[list[Replica], list[Gateway], str]]:
    """Two of each worker, two gateways that know them all, and Envoy before them."""
    async with AsyncExitStack() as stack:
        kinds = (REAL_EMBEDDING, REAL_RERANKING, REAL_GPU_SERVICES, LLM)
        pairs = [await stack.enter_async_context(replicas(kind, 2)) for kind in kinds]
        urls = {
            "EMBEDDING_SERVICE_URL": targets(pairs[0]),
            "RERANKING_SERVICE_URL": targets(pairs[1]),
            "GPU_SERVICE_URL": targets(pairs[2]),
            "LLM_SERVICE_URL": targets(pairs[3]),
        }
        gateways = [Gateway(urls, notice_seconds=NOTICE_SECONDS) for _ in range(2)]
        for gateway in gateways:
            stack.push_async_callback(gateway.close)
            await gateway.start()
        envoy = await stack.enter_async_context(running_envoy(gateways))
        yield [worker for pair in pairs for worker in pair], gateways, envoy


@pytest.mark.slow
async def test_every_worker_and_every_gateway_restarts_unnoticed(measured: Measured) -> None:
    """Under load, behind Envoy: no failed request among thousands, every stream whole, every process ends with 0."""
    async with whole_mesh() as (workers, gateways, envoy), http(envoy) as client:
        lanes: dict[Ask, int] = {embed: 4, rerank: 1, look_at_gpus: 1, chunk: 1, chat: 4}
        async with mixture(client, lanes) as outcomes:
            codes = [await restart(worker) for worker in workers]
            for gateway in gateways:
                codes.append(await gateway.end())
                await gateway.start()
                await asyncio.sleep(NOTICE_SECONDS)  # until Envoy has taken it back
            while outcomes.count < CALLS:
                await asyncio.sleep(0.1)
    for kind, count in outcomes.done.items():
        measured(f"rolling restart: {kind} answered", count, "")
    measured("rolling restart: failed", len(outcomes.failures), f"of {outcomes.count}")
    assert outcomes.failures == []
    assert codes == [0] * 10
    assert min(outcomes.done[kind] for kind in ("embed", "rerank", "look_at_gpus", "chunk", "chat")) > 0


async def test_two_replicas_behind_one_gateway_restart_unnoticed(measured: Measured) -> None:
    """Again and again, until thousands of calls were made: none failed."""
    async with replicas(EMBEDDING, 2) as pair, replicas(LLM, 2) as writers:
        urls = {"EMBEDDING_SERVICE_URL": targets(pair), "LLM_SERVICE_URL": targets(writers)}
        # Both other services are pointed at a worker that does not know them, which costs nothing.
        urls |= {"RERANKING_SERVICE_URL": targets(pair), "GPU_SERVICE_URL": targets(pair)}
        gateway = Gateway(urls, notice_seconds=0.0)
        try:
            await gateway.start("embedding", "llm")
            async with http(gateway.url) as client, mixture(client, {embed: 8, chat: 4}) as outcomes:
                codes = []
                while outcomes.count < CALLS:
                    for worker in (*pair, *writers):
                        codes.append(await restart(worker))
        finally:
            await gateway.close()
    measured("replicas restarted in turn: restarts", len(codes), "")
    measured("replicas restarted in turn: failed", len(outcomes.failures), f"of {outcomes.count}")
    assert outcomes.failures == []
    assert set(codes) == {0}
