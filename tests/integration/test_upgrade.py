"""Upgrading and rolling back as docs/operations.md tells it: workers side by side, gateways in turn."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import httpx
import pytest

from ops.local.testing import LocalMesh
from tests.chaos.balancer import running_envoy

pytestmark = pytest.mark.integration

MakeMesh = Callable[..., LocalMesh]
_CLIENTS = 3
_PAUSE_SECONDS = 0.05
_SEEN_SECONDS = 3.0
"""Envoy has asked a gateway twice whether it is ready."""


@dataclass(frozen=True)
class Behind:
    """A mesh's gateway, as the load balancer knows it."""

    port: int


@dataclass
class Load:
    """Requests all the time, and how they ended."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self, url: str) -> None:
        """One client, one request after the other, until it is cancelled; nothing is sent again."""
        async with httpx.AsyncClient(base_url=url, timeout=60.0, trust_env=False) as http:
            while True:
                await asyncio.sleep(_PAUSE_SECONDS)
                try:
                    answer = await http.post("/v1/embeddings", json={"input": "an upgrade"})
                except httpx.HTTPError as error:
                    self.failures.append(type(error).__name__)
                    continue
                if answer.status_code == 200:
                    self.answered += 1
                else:
                    self.failures.append(answer.text)


async def run(command: Callable[[], subprocess.CompletedProcess[str]]) -> None:
    """Run a script to its end; it must succeed."""
    result = await asyncio.to_thread(command)
    assert result.returncode == 0, result.stdout + result.stderr


async def test_an_upgrade_and_a_rollback_lose_no_request(small_mesh: MakeMesh) -> None:
    """New workers beside the old, one gateway after the other to them, then the old ones' end; and all of it back."""
    # The second mesh stands for the other version: what differs between versions is not what loses requests.
    old = small_mesh("embedding", EMBEDDING_THREADS="1")
    await run(old.start)
    gateways = []
    for _ in range(2):
        gateways.append(small_mesh(EMBEDDING_SERVICE_URL=old.target("embedding"), GATEWAY_DRAIN_NOTICE_SECONDS="2"))
        await run(gateways[-1].start)
    new = small_mesh("embedding", EMBEDDING_THREADS="1")

    load = Load()
    async with running_envoy([Behind(int(mesh.environ["GATEWAY_PORT"])) for mesh in gateways]) as url:
        clients = [asyncio.create_task(load.run(url)) for _ in range(_CLIENTS)]
        try:
            for leaving, coming in ((old, new), (new, old)):
                before = load.answered
                await run(coming.start)
                await run(coming.health)
                for gateway in gateways:
                    await run(gateway.stop)
                    moved = {**gateway.environ, "EMBEDDING_SERVICE_URL": coming.target("embedding")}
                    await run(replace(gateway, environ=moved).start)
                    await asyncio.sleep(_SEEN_SECONDS)
                await run(leaving.stop)
                assert load.answered > before
        finally:
            for client in clients:
                client.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*clients)
    assert load.failures == []
    assert load.answered > 50
