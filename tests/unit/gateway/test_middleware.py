"""The layers around every route: ids, time, caps, leaving clients, logs and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from starlette.types import Message, Receive, Scope, Send

from gateway.app import create_app
from gateway.attention import Attention
from gateway.exchange import Exchange
from gateway.lifecycle import Lifecycle
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest
from mesh.context import Priority

URL = "/v1/embeddings"
JSON = {"content-type": "application/json"}
CHAT_BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()


async def test_a_request_id_is_accepted_returned_and_carried(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """The caller's id is the one that the workers see."""
    answer = await client.post(URL, json={"input": "a"}, headers={"x-request-id": "mine-7", "x-mesh-priority": "bulk"})
    context = peers.embedder.calls[-1].context
    assert answer.headers["x-request-id"] == "mine-7"
    assert context is not None
    assert (context.request_id, context.priority) == ("mine-7", Priority.BULK)


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "a\tb", "é"])
async def test_an_id_that_is_none_is_replaced(client: httpx.AsyncClient, bad: str) -> None:
    """What ends up in logs and headers is never the caller's free text."""
    answer = await client.get("/health/live", headers=[(b"x-request-id", bad.encode("latin-1"))])
    assert answer.headers["x-request-id"] != bad
    assert len(answer.headers["x-request-id"]) == 32


async def test_server_timing_tells_total_and_parts(client: httpx.AsyncClient) -> None:
    """The worker's own times are told in milliseconds, errors tell the total."""
    timing = (await client.post(URL, json={"input": "a"})).headers["server-timing"]
    assert timing.startswith("total;dur=")
    assert "queue;dur=1.00, inference;dur=2.00" in timing
    assert "total;dur=" in (await client.get("/nowhere")).headers["server-timing"]


async def test_one_line_is_logged_per_request_without_content(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Status, outcome, time, model and counts; never the text."""
    with caplog.at_level(logging.INFO, logger="gateway.journal"):
        await client.post(URL, json={"input": "a canary text"})
    [record] = [record for record in caplog.records if record.message == "request"]
    logged: dict[str, Any] = record.fields  # type: ignore[attr-defined]
    assert (logged["status"], logged["outcome"], logged["inputs"], logged["tokens"]) == (200, "ok", 1, 13)
    assert "canary" not in str(logged)


async def test_metrics_know_templates_and_not_paths(client: httpx.AsyncClient) -> None:
    """A path that a client made up must not become a time series."""
    await client.get("/v1/models/made-up-name")
    await client.get("/made/up")
    routes = {
        sample.labels["route"] for metric in REGISTRY.collect() for sample in metric.samples if "route" in sample.labels
    }
    assert "/v1/models/{id:path}" in routes
    assert "unmatched" in routes
    assert not any("made" in route for route in routes)
    assert "mesh_http_requests_total" in (await client.get("/metrics")).text


async def test_a_declared_body_over_the_cap_is_refused_unread(app: FastAPI) -> None:
    """50 MB are refused by their Content-Length, before a byte of them was taken."""
    request = RawRequest("POST", URL, {**JSON, "content-length": str(50_000_000)})
    await request.start(app)
    assert request.status == 413
    assert json.loads(request.body)["error"]["code"] == "payload_too_large"


async def test_a_body_over_the_cap_is_refused_while_it_comes(app: FastAPI) -> None:
    """A client that declares nothing is stopped by what it sends."""
    request = RawRequest("POST", URL, JSON)
    task = request.start(app)
    for _ in range(17):
        request.say(b" " * 1024 * 1024, more=True)
    await task
    assert request.status == 413


@pytest.mark.parametrize("declared", ["-1", "1e3", "abc", ""])
async def test_a_length_that_is_none_is_refused(app: FastAPI, declared: str) -> None:
    """What a server would have stopped is stopped here as well."""
    request = RawRequest("POST", URL, {**JSON, "content-length": declared})
    await request.start(app)
    assert request.status == 413


async def test_a_client_that_leaves_cancels_the_work(app: FastAPI, peers: FakePeers) -> None:
    """What nobody waits for is not computed, and nothing is answered."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(type(peers.embedder)):  # type: ignore[misc]
        async def embed(self, *arguments: Any, **keywords: Any) -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

    peers.embedder.__class__ = Slow
    request = RawRequest("POST", URL, JSON)
    task = request.start(app)
    request.say(b'{"input": "a"}')
    await begun.wait()
    request.leave()
    await task
    assert cancelled.is_set()
    assert request.sent == []


async def test_a_client_that_leaves_a_stream_ends_the_writing(app: FastAPI, peers: FakePeers) -> None:
    """The writer's stream is closed in the middle, which cancels the call."""
    peers.writer.gate = asyncio.Semaphore(1)
    request = RawRequest("POST", "/v1/chat/completions", JSON)
    task = request.start(app)
    request.say(CHAT_BODY)
    await request.until(b"Hel")
    request.leave()
    await task
    assert peers.writer.left_early
    assert peers.writer.closed.is_set()
    assert not request.is_whole
    assert b"[DONE]" not in request.body


async def test_the_end_of_an_answer_is_not_taken_for_a_leaving_client() -> None:
    """A server tells of both in the same words; what a route still tidies up after its answer is not cancelled."""
    begun, ended, tidied = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def receive() -> Message:
        if not begun.is_set():
            begun.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if not message.get("more_body", True):
            ended.set()

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": False})
        for _ in range(5):
            await asyncio.sleep(0)
        tidied.set()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    Exchange.open(scope)
    await Attention(route)(scope, receive, send)
    assert tidied.is_set()


async def test_the_first_words_leave_before_the_last_are_written(app: FastAPI, peers: FakePeers) -> None:
    """Role and first piece are on their way while the writer still thinks; before them there is no answer at all."""
    peers.writer.gate = asyncio.Semaphore(0)
    request = RawRequest("POST", "/v1/chat/completions", JSON)
    task = request.start(app)
    request.say(CHAT_BODY)
    while not peers.writer.calls:
        await asyncio.sleep(0)
    assert request.status is None
    peers.writer.gate.release()
    await request.until(b"Hel")
    assert b'"role":"assistant"' in request.body
    assert b'"lo"' not in request.body
    peers.writer.gate.release()
    peers.writer.gate.release()
    await task
    assert request.is_whole
    assert not peers.writer.left_early


async def test_a_stream_that_outlasts_the_gateway_ends_typed(peers: FakePeers, settings: GatewaySettings) -> None:
    """Its task is cancelled at the end of the grace; the reader gets an error event, and no [DONE]."""
    peers.writer.gate = asyncio.Semaphore(1)
    lifecycle = Lifecycle()
    app = create_app(settings, peers=peers.as_peers(), lifecycle=lifecycle)
    request = RawRequest("POST", "/v1/chat/completions", JSON)
    request.say(CHAT_BODY)
    task = asyncio.create_task(app(request._scope, request._incoming.get, request._send))
    await request.until(b"Hel")
    lifecycle.draining = True
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert b'"code":"gateway_draining"' in request.body
    assert request.is_whole
    assert b"[DONE]" not in request.body
    assert peers.writer.closed.is_set()


async def test_while_draining_every_answer_ends_its_connection(peers: FakePeers, settings: GatewaySettings) -> None:
    """Answers, refusals and readiness alike, so that a kept connection moves elsewhere between two requests."""
    lifecycle = Lifecycle(ready=True)
    app = create_app(settings, peers=peers.as_peers(), lifecycle=lifecycle)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        before = [await client.get("/health/ready"), await client.post(URL, json={"input": "a"})]
        lifecycle.draining = True
        after = [await client.get("/health/ready"), await client.post(URL, json={"input": "a"})]
        after.append(await client.post(URL, json={}))
    assert [answer.status_code for answer in before + after] == [200, 200, 503, 200, 400]
    assert ["connection" in answer.headers for answer in before] == [False, False]
    assert [answer.headers["connection"] for answer in after] == ["close"] * 3


async def test_silence_is_filled_with_comments(peers: FakePeers) -> None:
    """A proxy that closes idle connections sees life, and the stream stays valid."""
    settings = GatewaySettings.model_validate({"streams": {"keep_alive_seconds": 0.01}})
    peers.writer.gate = asyncio.Semaphore(0)
    request = RawRequest("POST", "/v1/chat/completions", JSON)
    task = request.start(create_app(settings, peers=peers.as_peers()))
    request.say(CHAT_BODY)
    await request.until(b": keep-alive\n\n: keep-alive\n\n")
    for _ in range(3):
        peers.writer.gate.release()
    await task
    assert request.body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_stops_reading_is_given_up(peers: FakePeers) -> None:
    """It must not hold a worker's place for ever."""
    settings = GatewaySettings.model_validate({"streams": {"stalled_client_seconds": 0.01}})
    app = create_app(settings, peers=peers.as_peers())
    request = RawRequest("POST", "/v1/chat/completions", JSON)
    real_send = request._send

    async def stuck_after_the_first(message: Any) -> None:
        if request.body:
            await asyncio.Event().wait()
        await real_send(message)

    request._send = stuck_after_the_first  # type: ignore[method-assign]
    request.say(CHAT_BODY)
    await asyncio.wait_for(request.start(app), timeout=5)
    assert peers.writer.left_early
    assert not request.is_whole


async def test_a_bug_is_an_internal_error_in_the_paths_dialect(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Whole or in the middle of a stream, its text stays inside."""

    class Buggy(type(peers.writer)):  # type: ignore[misc]
        async def generate(self, *arguments: Any, **keywords: Any) -> Any:
            events = super().generate(*arguments, **keywords)
            yield await anext(events)
            yield await anext(events)
            raise RuntimeError("password=hunter2")

    peers.writer.__class__ = Buggy
    whole = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
    broken = await client.post("/v1/chat/completions", content=CHAT_BODY, headers=JSON)
    assert (whole.status_code, broken.status_code) == (500, 200)
    for answer in (whole, broken):
        assert "hunter2" not in answer.text
        assert "server_error" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "key"),
    [
        ("GET", "/v1/embeddings", 405, "error"),
        ("GET", "/v1/images", 404, "error"),
        ("GET", "/v2/rerank", 405, "message"),
        ("DELETE", "/v1/rerank", 405, "detail"),
        ("GET", "/embed", 405, "error_type"),
        ("POST", "/v1/gpu", 405, "title"),
        ("GET", "/nothing/here", 404, "title"),
        ("GET", "/v1/embeddings/", 404, "error"),
    ],
)
async def test_the_frameworks_own_refusals_speak_the_paths_dialect(
    client: httpx.AsyncClient, method: str, path: str, status: int, key: str
) -> None:
    """404 and 405 have the shape that the path's client reads."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert key in answer.json()
    if status == 405:
        assert answer.headers["allow"]
