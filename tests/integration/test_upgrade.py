"""Upgrading and rolling back as docs/operations.md tells it: the other version beside the running one, behind Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest

from ops.local.testing import LocalMesh
from tests.chaos.balancer import running_envoy

pytestmark = pytest.mark.integration

MakeMesh = Callable[..., LocalMesh]
_CLIENTS = 3
_PAUSE_SECONDS = 0.05


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


async def test_an_upgrade_and_a_rollback_lose_no_request(small_mesh: MakeMesh) -> None:
    """Either mesh is stopped by its script while the other serves, and started anew, in turn: nobody is refused."""
    settings = {"GATEWAY_DRAIN_NOTICE_SECONDS": "2", "EMBEDDING_THREADS": "1"}
    running, other = (small_mesh("embedding", **settings) for _ in range(2))
    for mesh in (running, other):
        started = await asyncio.to_thread(mesh.start)
        assert started.returncode == 0, started.stdout + started.stderr

    load = Load()
    async with running_envoy([Behind(int(mesh.environ["GATEWAY_PORT"])) for mesh in (running, other)]) as url:
        clients = [asyncio.create_task(load.run(url)) for _ in range(_CLIENTS)]
        try:
            for mesh in (running, other):
                before = load.answered
                assert (await asyncio.to_thread(mesh.stop)).returncode == 0
                assert load.answered > before
                assert (await asyncio.to_thread(mesh.start)).returncode == 0
                await asyncio.sleep(2)  # until Envoy has seen it twice
        finally:
            for client in clients:
                client.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*clients)
    assert load.failures == []
    assert load.answered > 50
