"""The cache as the gateway's clients and operators see it."""

from __future__ import annotations

import subprocess
import sys
import time

import httpx
import pytest
from prometheus_client import REGISTRY

from gateway.answers import base64_rows
from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from gateway.testing.vectors import TellingEmbedder
from gateway.vector_cache.building import make_store, with_vector_cache
from gateway.vector_cache.embedder import CachedEmbedder
from gateway.vector_cache.settings import VectorCacheSettings
from mesh.settings import SettingsError
from ops.local.layout import CHECKOUT

SETTINGS = GatewaySettings.model_validate({"vector_cache": {"enabled": True}})
OUTCOMES = ("hit", "miss", "shared", "bypassed")


def counted() -> dict[str, float]:
    """Inputs so far, by what became of them."""
    name = "mesh_vector_cache_inputs_total"
    return {each: REGISTRY.get_sample_value(name, {"outcome": each}) or 0.0 for each in OUTCOMES}


@pytest.fixture
def peers() -> FakePeers:
    """Workers whose vectors can be told apart."""
    return FakePeers(embedder=TellingEmbedder())


@pytest.fixture
def client(peers: FakePeers) -> httpx.AsyncClient:
    """Talks to a gateway with a cache in memory."""
    app = create_app(SETTINGS, peers=peers.as_peers())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_openais_usage_tells_the_hits_and_counts_all_tokens(client: httpx.AsyncClient) -> None:
    """The same vectors and tokens as before, and beside OpenAI's figures how many inputs were kept."""
    first = (await client.post("/v1/embeddings", json={"input": ["a", "bc"]})).json()
    again = (await client.post("/v1/embeddings", json={"input": ["bc", "a", "a"]})).json()
    assert first["usage"] == {"prompt_tokens": 7, "total_tokens": 7, "cache_hits": 0}
    assert again["usage"] == {"prompt_tokens": 10, "total_tokens": 10, "cache_hits": 3}
    vectors = [item["embedding"] for item in first["data"]]
    assert [item["embedding"] for item in again["data"]] == [vectors[1], vectors[0], vectors[0]]
    assert again["model"] == first["model"]


async def test_teis_answer_keeps_its_shape(client: httpx.AsyncClient) -> None:
    """A bare array, and TEI's headers with the whole request's figures."""
    first = await client.post("/embed", json={"inputs": ["a", "a text that is cut"]})
    again = await client.post("/embed", json={"inputs": ["a", "a text that is cut"]})
    assert again.json() == first.json()
    for header in ("x-compute-tokens", "x-compute-characters", "x-truncated-inputs"):
        assert again.headers[header] == first.headers[header]


async def test_without_a_cache_nothing_is_said_of_one(peers: FakePeers) -> None:
    """Off is the default: OpenAI's usage is OpenAI's."""
    app = create_app(GatewaySettings(), peers=peers.as_peers())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.post("/v1/embeddings", json={"input": "a"})
    assert answer.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_metrics_count_every_input_once(client: httpx.AsyncClient) -> None:
    """A hit, a miss, or shared with an equal input; and the bytes that are kept."""
    before = counted()
    await client.post("/v1/embeddings", json={"input": ["new", "new", "other"]})
    await client.post("/v1/embeddings", json={"input": ["new", "third", "new"]})
    after = counted()
    assert [after[each] - before[each] for each in OUTCOMES] == [2, 3, 1, 0]
    shown = (await client.get("/metrics")).text
    assert "mesh_vector_cache_bytes " in shown
    assert (REGISTRY.get_sample_value("mesh_vector_cache_bytes") or 0) > 3 * 32


async def test_a_hit_for_32_texts_is_cheap() -> None:
    """At most 2 ms, base64 included, in the best of many tries: the others belong to whoever shares the machine."""
    worker = TellingEmbedder(dimensions=384)
    cached = with_vector_cache(worker, SETTINGS)
    assert isinstance(cached, CachedEmbedder)
    texts = [f"{number} " + "a text of a common length, as texts are " * 4 for number in range(32)]
    await cached.embed(texts)
    best = float("inf")
    for _ in range(100):
        started = time.perf_counter()
        base64_rows(await cached.embed(texts))
        best = min(best, time.perf_counter() - started)
    await cached.close()
    assert worker.finished == 1
    print(f"a hit for 32 texts in memory: {best * 1000:.2f} ms")
    assert best <= 0.002


def test_redis_that_is_not_installed_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match=r"pip install .*redis"):
        make_store(VectorCacheSettings(enabled=True, type="redis"))


def test_the_share_of_hits_is_known_before_the_first_hit() -> None:
    """Every outcome is a series from the start: a cache that never hits is what the alert is for."""
    code = (
        "import gateway.vector_cache.metrics; from prometheus_client import generate_latest\n"
        "print(generate_latest().decode())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=30
    )
    for outcome in OUTCOMES:
        assert f'mesh_vector_cache_inputs_total{{outcome="{outcome}"}} 0.0' in run.stdout
