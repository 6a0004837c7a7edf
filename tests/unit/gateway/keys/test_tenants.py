"""What one tenant sent tells another nothing, not even that it was sent."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client import REGISTRY

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from gateway.testing.keys import KeyFile, bearer
from gateway.testing.vectors import TellingEmbedder


@pytest.fixture
def client(book: KeyFile, keys: tuple[str, str, str]) -> httpx.AsyncClient:
    """Talks to a gateway with these keys and a cache."""
    settings = GatewaySettings.model_validate({"keys": {"file": book.path}, "vector_cache": {"enabled": True}})
    app = create_app(settings, peers=FakePeers(embedder=TellingEmbedder()).as_peers())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


@pytest.fixture
def keys(book: KeyFile) -> tuple[str, str, str]:
    """Two keys of one tenant, and another tenant's."""
    return book.add(tenant="a"), book.add(tenant="a"), book.add(tenant="b")


async def hits(client: httpx.AsyncClient, key: str, text: str) -> int:
    """How many inputs were kept for whoever has this key, when it asks for the text's vector."""
    answer = await client.post("/v1/embeddings", json={"input": text}, headers=bearer(key))
    return int(answer.json()["usage"]["cache_hits"])


async def test_kept_vectors_are_a_tenants_own(keys: tuple[str, str, str], client: httpx.AsyncClient) -> None:
    """All keys of a tenant share them; to another one the text is new."""
    one, two, other = keys
    assert [await hits(client, key, "a secret text") for key in (one, one, two)] == [0, 1, 1]
    assert [await hits(client, key, "a secret text") for key in (other, other)] == [0, 1]


async def test_a_computation_under_way_is_a_tenants_own(keys: tuple[str, str, str], client: httpx.AsyncClient) -> None:
    """Who asks for the same text at the same moment learns nothing by the time that it takes."""
    one, two, other = keys
    await hits(client, one, "known model")
    await hits(client, other, "known model")

    def shared() -> float:
        return REGISTRY.get_sample_value("mesh_vector_cache_inputs_total", {"outcome": "shared"}) or 0.0

    before = shared()
    await asyncio.gather(hits(client, one, "at once"), hits(client, other, "at once"))
    assert shared() == before
    await asyncio.gather(hits(client, one, "once more"), hits(client, two, "once more"))
    assert shared() == before + 1
