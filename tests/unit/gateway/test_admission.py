"""Requests that are turned away before anything is spent on them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from gateway.app import create_app
from gateway.journal import REFUSALS_LOGGED_PER_SECOND, Journal
from gateway.lifecycle import Lifecycle
from gateway.middleware import Account, Admission, UnreadLimits
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest
from mesh.context import Priority
from mesh.errors import CircuitOpen, Overloaded
from mesh.testing import FakeClock

JSON = {"content-type": "application/json"}
FULL = Overloaded("Full.", reason="HOP_LIMIT", hop="x", retry_after=0.25)
INFERENCE = [
    ("/v1/embeddings", "embedder", "error"),
    ("/v1/chat/completions", "writer", "error"),
    ("/v1/completions", "writer", "error"),
    ("/v2/rerank", "reranker", "message"),
    ("/v1/rerank", "reranker", "detail"),
    ("/embed", "embedder", "error_type"),
    ("/rerank", "reranker", "error_type"),
    ("/v1/chunk", "chunker", "title"),
]


def names_of(line: logging.LogRecord) -> dict[str, Any]:
    """A log line's fields."""
    found: dict[str, Any] = line.fields  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("path", "peer", "key"), INFERENCE)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
async def test_a_full_hop_refuses_before_the_body_is_read(
    app: FastAPI, peers: FakePeers, path: str, peer: str, key: str, *, kind: str
) -> None:
    """Not a byte was sent, and the answer is there, in the shape that the path's client reads."""
    getattr(peers, peer).hop.refusal = FULL
    request = RawRequest("POST", path, {"content-type": kind, "content-length": "1000"})
    await request.start(app)
    headers = dict(request.sent[0]["headers"])
    assert request.status == 429
    assert key in json.loads(request.body)
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"1", b"250")
    assert getattr(peers, peer).calls == []


async def test_an_open_breaker_refuses_before_the_body_is_read(app: FastAPI, peers: FakePeers) -> None:
    """As a full hop does, with its own status."""
    peers.embedder.hop.refusal = CircuitOpen("Open.", hop="embedding", retry_after=7)
    request = RawRequest("POST", "/v1/embeddings", JSON)
    request.leave()
    await request.start(app)
    assert (request.status, json.loads(request.body)["error"]["code"]) == (503, "circuit_open")


async def test_the_hop_is_asked_for_the_callers_lane(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Bulk work finds less room than interactive work."""
    for priority in ("bulk", "interactive"):
        await client.post("/v1/embeddings", json={"input": "a"}, headers={"x-mesh-priority": priority})
    assert peers.embedder.hop.asked_for == [Priority.BULK, Priority.INTERACTIVE]


def test_every_path_that_takes_a_body_asks_a_hop_first(app: FastAPI) -> None:
    """A new inference route that forgets it would be the one that an overload enters by."""
    asking = {
        getattr(route, "path", ""): getattr(getattr(route, "app", None), "hop", None)
        for route in app.router.routes
        if "POST" in (getattr(route, "methods", None) or ())
    }
    assert set(asking) == {path for path, _, _ in INFERENCE}
    assert None not in asking.values()


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ({"content-length": "100000"}, False),
        ({"content-length": "2000000"}, True),
        ({"transfer-encoding": "chunked"}, True),
        ({"content-length": "100", "expect": "100-continue"}, True),
    ],
)
async def test_a_connection_is_kept_where_little_is_left_to_read(
    app: FastAPI, peers: FakePeers, headers: dict[str, str], *, closes: bool
) -> None:
    """The server drops a small rest by itself; a long or unknown one ends the connection."""
    peers.embedder.hop.refusal = FULL
    request = RawRequest("POST", "/v1/embeddings", {**JSON, **headers})
    request.leave()
    await request.start(app)
    assert ((b"connection", b"close") in request.sent[0]["headers"]) is closes
    assert request.is_whole


async def test_a_long_rest_is_dropped_up_to_a_bound(peers: FakePeers, settings: GatewaySettings) -> None:
    """The client has its whole answer at once, may go on sending for a while, and is then cut off."""
    peers.embedder.hop.refusal = FULL
    inner = create_app(settings, peers=peers.as_peers()).middleware_stack
    assert isinstance(inner, Account)
    app = Account(inner._app, journal=Journal(), lifecycle=Lifecycle(), unread=UnreadLimits(lingering_bytes=3000))
    request = RawRequest("POST", "/v1/embeddings", {**JSON, "content-length": "2000000"})
    for _ in range(10):
        request.say(b" " * 1000, more=True)
    await request.start(app)
    assert request.status == 429
    assert request.is_whole
    assert request.unheard == 7


@pytest.mark.parametrize(
    ("path", "key"), [("/v1/embeddings", "error"), ("/v1/chat/completions", "error"), ("/embed", "error_type")]
)
async def test_a_body_that_comes_too_slowly_is_given_up(peers: FakePeers, path: str, key: str) -> None:
    """It must not hold a place for as long as its sender likes."""
    app = create_app(GatewaySettings.model_validate({"timeouts": {"body_seconds": 0.01}}), peers=peers.as_peers())
    request = RawRequest("POST", path, JSON)
    request.say(b'{"input', more=True)
    task = request.start(app)
    await request.until(b"did not arrive")
    request.leave()
    await task
    assert (request.status, key in json.loads(request.body)) == (408, True)


async def test_slow_work_is_no_slow_body(peers: FakePeers) -> None:
    """The time counts for the body alone: once that is there, only the request's deadline counts."""
    app = create_app(GatewaySettings.model_validate({"timeouts": {"body_seconds": 0.01}}), peers=peers.as_peers())
    peers.writer.gate = asyncio.Semaphore(0)
    request = RawRequest("POST", "/v1/chat/completions", JSON)
    request.say(b'{"messages": [{"role": "user", "content": "Hi"}]}')
    task = request.start(app)
    await asyncio.wait({task}, timeout=0.05)
    for _ in range(3):
        peers.writer.gate.release()
    await task
    assert request.status == 200


async def test_over_the_most_requests_in_progress_the_next_is_refused_at_once(peers: FakePeers) -> None:
    """In the path's dialect; a place is free again when a request ends; health, metrics and status take none."""
    app = create_app(GatewaySettings.model_validate({"limits": {"max_concurrent_requests": 2}}), peers=peers.as_peers())
    slow = [RawRequest("POST", "/v1/embeddings", JSON) for _ in range(2)]
    tasks = [request.start(app) for request in slow]
    for _ in range(5):
        await asyncio.sleep(0)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        refused = await client.post("/embed", json={"inputs": "a"})
        for path in ("/health", "/health/live", "/metrics", "/status"):
            assert (await client.get(path)).status_code == 200, path
        for request in slow:
            request.say(b'{"input": "a"}')
        await asyncio.gather(*tasks)
        again = await client.post("/embed", json={"inputs": "a"})
    assert (refused.status_code, refused.json()["error_type"], refused.headers["retry-after"]) == (
        429,
        "Overloaded",
        "1",
    )
    assert [request.status for request in slow] == [200, 200]
    assert again.status_code == 200


async def test_those_who_are_refused_are_told_different_times() -> None:
    """They come back one after another, as fast as requests are done, instead of all in one moment."""
    clock = FakeClock()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await go_on.wait()

    async def nothing() -> Message:
        raise AssertionError("nobody reads")

    async def nobody(message: Message) -> None:
        raise AssertionError("nobody writes")

    admission = Admission(route, most=1, clock=clock)
    scope = {"type": "http", "path": "/v1/embeddings"}
    task = asyncio.create_task(admission(scope, nothing, nobody))
    await begun.wait()
    times = []
    for _ in range(4):
        with pytest.raises(Overloaded) as refused:
            await admission(scope, nothing, nobody)
        times.append(refused.value.retry_after)
    go_on.set()
    await task
    assert times == pytest.approx([0.1, 0.1, 0.2, 0.3])
    assert refused.value.reason == "GATEWAY_LIMIT"


async def test_a_flood_of_refusals_is_logged_as_a_sum(
    peers: FakePeers, settings: GatewaySettings, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of a second have lines of their own; one line says how many were left out, and of which kind."""
    second_over: list[Any] = []
    inner = create_app(settings, peers=peers.as_peers()).middleware_stack
    assert isinstance(inner, Account)
    journal = Journal(later=lambda seconds, act: second_over.append((seconds, act)))
    app = Account(inner._app, journal=journal, lifecycle=Lifecycle())
    peers.embedder.hop.refusal = FULL
    with caplog.at_level(logging.INFO, logger="gateway.journal"):
        for _ in range(REFUSALS_LOGGED_PER_SECOND + 7):
            request = RawRequest("POST", "/v1/embeddings", JSON)
            request.leave()
            await request.start(app)
        [(seconds, end)] = second_over
        end()
        lines = [names_of(record) for record in caplog.records]
    assert seconds == 1.0
    assert [line["status"] for line in lines[:-1]] == [429] * REFUSALS_LOGGED_PER_SECOND
    assert lines[-1] == {"path": "/v1/embeddings", "outcome": "hop_limit", "n": 7}
