"""What is served, and how the hops are."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.testing import CHAT_MODEL, EMBEDDING_MODEL, RERANKING_MODEL, FakePeers
from mesh.errors import ModelUnusable, Overloaded, Unavailable
from mesh.resilience import BreakerSnapshot, BreakerState, Cause


async def test_models_of_all_workers_are_listed_with_their_capability(client: httpx.AsyncClient) -> None:
    """Canonical names, the workers' aliases and ours; each says what it is for and what stands behind it."""
    answer = (await client.get("/v1/models")).json()
    assert answer["object"] == "list"
    listed = {card["id"]: (card["capability"], card["root"]) for card in answer["data"]}
    assert listed == {
        EMBEDDING_MODEL: ("embedding", EMBEDDING_MODEL),
        "all-MiniLM-L6-v2": ("embedding", EMBEDDING_MODEL),
        "text-embedding-3-small": ("embedding", EMBEDDING_MODEL),
        RERANKING_MODEL: ("rerank", RERANKING_MODEL),
        "maxsim": ("rerank", RERANKING_MODEL),
        "docling-hybrid": ("chunking", "docling-hybrid"),
        "docling": ("chunking", "docling-hybrid"),
        "docling-hierarchical": ("chunking", "docling-hierarchical"),
        CHAT_MODEL: ("chat", CHAT_MODEL),
    }
    assert all(card["object"] == "model" and card["created"] > 0 for card in answer["data"])


async def test_a_worker_that_is_down_is_left_out(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """One dead worker does not hide what the others serve."""
    peers.embedder.error = Unavailable("Down.")
    data = (await client.get("/v1/models")).json()["data"]
    assert {card["capability"] for card in data} == {"rerank", "chunking", "chat"}


@pytest.mark.parametrize("name", [EMBEDDING_MODEL, "text-embedding-3-small", "maxsim"])
async def test_one_model_is_found_by_any_of_its_names(client: httpx.AsyncClient, name: str) -> None:
    """Names with a slash are paths, too."""
    assert (await client.get(f"/v1/models/{name}")).json()["id"] == name


async def test_one_model_that_is_not_there_is_404(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """The refusal names what there is, or says that nothing answers."""
    answer = await client.get("/v1/models/gpt-9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert CHAT_MODEL in answer.json()["error"]["message"]
    peers.fail(Unavailable("Down."))
    assert "no worker answers" in (await client.get("/v1/models/gpt-9")).json()["error"]["message"]


async def test_status_tells_every_hop(client: httpx.AsyncClient) -> None:
    """Endpoints, health, breaker, load, latency, models and how to choose others."""
    report = (await client.get("/status")).json()
    assert report["status"] == "ok"
    assert [hop["name"] for hop in report["hops"]] == ["embedding", "reranking", "chunking", "gpu", "llm"]
    embedding = report["hops"][0]
    assert embedding["breaker"]["state"] == "closed"
    assert embedding["endpoints"][0]["health"] == "SERVING"
    assert embedding["serves"]["models"][0]["engine"] == "onnxruntime"
    assert (embedding["p50_ms"], embedding["p99_ms"], embedding["target"]) == (4.0, None, "127.0.0.1:50051")
    assert "EMBEDDING_MODEL" in embedding["choose_another"]
    assert report["gateway"]["version"]


async def test_status_says_why_a_worker_does_not_serve(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """The worker's own reason; it is not asked again, so that looking does not open its breaker."""
    peers.embedder.hop.health = "NOT_SERVING"
    peers.embedder.hop.reason = "The model file is truncated."
    peers.reranker.error = ModelUnusable("The model is pickled.")
    report = (await client.get("/status")).json()
    assert report["status"] == "degraded"
    embedding, reranking = report["hops"][:2]
    assert (embedding["serving"], embedding["reason"]) == (False, "The model file is truncated.")
    assert peers.embedder.calls == []
    assert reranking["reason"] == "The model is pickled."


async def test_status_tells_of_load_and_of_what_was_taken_out(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Why a breaker moved, what each endpoint is working on, which one is left out, how many calls were repeated."""
    hop = peers.embedder.hop
    hop.ejected = True
    hop.breaker = BreakerSnapshot(BreakerState.OPEN, 1.0, 5, 1.0, 1, 4.5, "5 failures", Cause.CONSECUTIVE_FAILURES)
    embedding, reranking = (await client.get("/status")).json()["hops"][:2]
    assert embedding["retries"] == 2
    assert embedding["reason"] == "The circuit breaker is open: 5 failures."
    assert (embedding["breaker"]["cause"], embedding["breaker"]["retry_after"]) == ("consecutive_failures", 4.5)
    assert (embedding["endpoints"][0]["in_flight"], embedding["endpoints"][0]["ejected"]) == (3, True)
    assert (reranking["breaker"]["cause"], reranking["endpoints"][0]["ejected"]) == (None, False)


async def test_a_busy_worker_does_not_make_the_status_slow(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Once it was heard, what it said then is shown while it is asked again, and it is asked once for all who look."""
    first = (await client.get("/status")).json()["hops"][0]
    asked = len(peers.embedder.calls)
    answer = asyncio.Event()

    class Busy(type(peers.embedder)):  # type: ignore[misc]
        async def info(self, **keywords: Any) -> Any:
            self.asked(None)
            await answer.wait()
            raise Overloaded("Busy.")

    peers.embedder.__class__ = Busy
    started = time.monotonic()
    looks = await asyncio.gather(*(client.get("/status") for _ in range(5)))
    assert time.monotonic() - started < 1.0
    assert [look.json()["hops"][0]["serves"] for look in looks] == [first["serves"]] * 5
    assert len(peers.embedder.calls) == asked + 1
    answer.set()
    await asyncio.sleep(0)
    refused = (await client.get("/status")).json()["hops"][0]
    assert (refused["serves"], refused["reason"]) == (first["serves"], "Busy.")


async def test_readiness_does_not_depend_on_the_workers(
    app: FastAPI, client: httpx.AsyncClient, peers: FakePeers
) -> None:
    """One dead worker must not empty the load balancer; a gateway that has not started does."""
    peers.fail(Unavailable("Down."))
    before = await client.get("/health/ready")
    async with app.router.lifespan_context(app):
        assert peers.embedder.is_open
        during = await client.get("/health/ready")
    after = await client.get("/health/ready")
    assert [answer.status_code for answer in (before, during, after)] == [503, 200, 503]
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert not peers.embedder.is_open


async def test_gpu_without_a_gpu_is_an_empty_list_and_the_reason(client: httpx.AsyncClient) -> None:
    """No GPU is no error."""
    answer = (await client.get("/v1/gpu")).json()
    assert answer["devices"] == []
    assert "driver" in answer["unavailable_reason"]


async def test_gpu_stream_sends_events(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """One event per reading, at the interval that was asked for."""
    answer = await client.get("/v1/gpu/stream?interval_ms=250")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.count("data: {") == 3
    assert peers.gpu.calls[0].arguments == (0.25,)


@pytest.mark.parametrize("interval", ["", "0", "99", "3600001", "1e3", "-100", "nan", "9" * 40, "١٠٠٠"])
async def test_gpu_stream_refuses_an_interval_out_of_bounds(client: httpx.AsyncClient, interval: str) -> None:
    """In our own shape."""
    answer = await client.get("/v1/gpu/stream", params={"interval_ms": interval})
    assert (answer.status_code, answer.json()["param"]) == (400, "interval_ms")
