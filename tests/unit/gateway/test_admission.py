"""Requests that are turned away before anything is spent on them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from gateway.admission import Admission, Places
from gateway.app import create_app
from gateway.exchange import Exchange
from gateway.journal import REFUSALS_LOGGED_PER_SECOND, Journal
from gateway.lifecycle import Lifecycle
from gateway.loop import LoopDelay
from gateway.middleware import Account, BodyCap, BodyLimits, UnreadLimits
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest
from mesh.context import Priority
from mesh.errors import CircuitOpen, InvalidRequest, Overloaded
from mesh.testing import FakeClock

JSON = {"content-type": "application/json"}
FULL = Overloaded("Full.", reason="HOP_LIMIT", hop="x", retry_after=0.25)
INFERENCE = [
    ("/v1/embeddings", "embedder", "error"),
    ("/v1/chat/completions", "writer", "error"),
    ("/v1/completions", "writer", "error"),
    ("/v1/messages", "writer", "error"),
    ("/v1/messages/count_tokens", "writer", "error"),
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
    assert request.status == (529 if path.startswith("/v1/messages") else 429)
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
    peers.writer.gate = asyncio.Semaphore(0)
    slow = [RawRequest("POST", "/v1/chat/completions", JSON) for _ in range(2)]
    tasks = []
    for request in slow:
        request.say(b'{"messages": [{"role": "user", "content": "Hi"}]}')
        tasks.append(request.start(app))
    for _ in range(5):
        await asyncio.sleep(0)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        refused = await client.post("/embed", json={"inputs": "a"})
        for path in ("/health", "/health/live", "/metrics", "/status"):
            assert (await client.get(path)).status_code == 200, path
        for _ in range(6):
            peers.writer.gate.release()
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

    admission = Admission(route, places=Places(most=1, clock=clock))
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
    assert lines[-1] == {"route": "/v1/embeddings", "dialect": "openai", "outcome": "hop_limit", "n": 7}


async def test_made_up_paths_cannot_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal comes before routing, so its path is the client's word: the sum is one per dialect and outcome."""
    second_over: list[Any] = []

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        raise FULL

    journal = Journal(later=lambda seconds, act: second_over.append(act))
    app = Account(full, journal=journal, lifecycle=Lifecycle())
    with caplog.at_level(logging.INFO, logger="gateway.journal"):
        for number in range(REFUSALS_LOGGED_PER_SECOND + 500):
            request = RawRequest("GET", f"/v1/{number}")
            await request.start(app)
        [end] = second_over
        end()
        lines = [names_of(record) for record in caplog.records]
    assert len(lines) == REFUSALS_LOGGED_PER_SECOND + 1
    assert lines[-1] == {"route": "unmatched", "dialect": "openai", "outcome": "hop_limit", "n": 500}


async def test_lingering_is_no_part_of_an_answers_time(caplog: pytest.LogCaptureFixture) -> None:
    """The clock stops with the answer's last byte, however long the rest of the body is then waited for."""

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        raise FULL

    app = Account(
        full, journal=Journal(later=lambda *_: None), lifecycle=Lifecycle(),
        unread=UnreadLimits(lingering_seconds=0.3),
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="gateway.journal"):
        await RawRequest("POST", "/v1/embeddings", {"transfer-encoding": "chunked"}).start(app)
    [line] = [names_of(record) for record in caplog.records]
    assert line["ms"] < 200


class Loop:
    """An event loop's clock and timer, by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.waiting: list[Callable[[], None]] = []

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Remember what is to be called; a test says when."""
        assert seconds == pytest.approx(0.01)
        self.waiting.append(act)

    def tick(self, late: float = 0.0) -> None:
        """Let a tick come so much too late."""
        self.clock.advance(0.01 + late)
        [act], self.waiting = self.waiting, []
        act()


def watched_loop() -> tuple[Loop, LoopDelay]:
    """A loop, and its delay with a bound of 30 ms."""
    loop = Loop()
    return loop, LoopDelay(0.03, clock=loop.clock, later=loop.later)


def test_one_pause_is_no_overload_and_two_in_a_row_are() -> None:
    """A collection or one large body makes one tick late. It ends once the loop kept time for ten ticks in a row."""
    loop, delay = watched_loop()
    delay.keep_watch()
    seen = []
    for late in (0.5, 0.0, 0.031, 0.031, *[0.0] * 9, 0.02, *[0.0] * 10, 0.05):
        loop.tick(late)
        seen.append(delay.is_late)
        delay.keep_watch()
    assert seen == [False] * 3 + [True] * 20 + [False] * 2


def test_an_idle_process_is_not_woken() -> None:
    """The timer runs on while requests come, one at a time, ends a tick behind the last, and begins again."""
    loop, delay = watched_loop()
    for _ in range(3):
        delay.keep_watch()
    assert len(loop.waiting) == 1
    loop.tick()
    loop.tick()
    assert loop.waiting == []
    delay.keep_watch()
    assert len(loop.waiting) == 1


async def test_while_the_loop_is_late_only_a_few_are_let_in(peers: FakePeers) -> None:
    """The others are told so at once; health is answered, and all are let in again when the loop keeps time."""
    loop, delay = watched_loop()
    go_on = asyncio.Event()
    served: list[str] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["path"])
        await go_on.wait()

    async def nothing() -> Message:
        raise AssertionError("nobody reads")

    async def nobody(message: Message) -> None:
        raise AssertionError("nobody writes")

    admission = Admission(route, places=Places(most=100, few=2, delay=delay, clock=loop.clock))

    async def ask(path: str) -> asyncio.Task[None]:
        task = asyncio.create_task(admission({"type": "http", "path": path}, nothing, nobody))
        await asyncio.sleep(0)
        return task

    tasks = [await ask("/v1/gpu")]
    loop.tick(0.1)
    tasks.append(await ask("/v1/gpu"))
    loop.tick(0.1)
    refused = await ask("/v1/gpu")
    tasks.append(await ask("/health/live"))
    for _ in range(10):
        loop.tick()
    tasks.append(await ask("/v1/gpu"))
    go_on.set()
    await asyncio.gather(*tasks)
    error = refused.exception()
    assert isinstance(error, Overloaded)
    assert (error.reason, error.retry_after is not None) == ("GATEWAY_BUSY", True)
    assert served == ["/v1/gpu", "/v1/gpu", "/health/live", "/v1/gpu"]


class Bodies:
    """A body cap before a route that reads, and requests whose bodies come when a test says so."""

    def __init__(self, *, most_coming: int, spared_seconds: float) -> None:
        limits = BodyLimits(
            json_bytes=100, upload_bytes=100, json_seconds=30, upload_seconds=30, most_coming=most_coming,
            spared_seconds=spared_seconds,
        )  # fmt: skip
        self.app = BodyCap(self._route, limits=limits)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass

    async def ask(self) -> tuple[asyncio.Task[None], asyncio.Queue[Message]]:
        """A request and what its client sends."""
        queue: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": []}
        Exchange.open(scope)

        async def nobody(message: Message) -> None:
            raise AssertionError("nobody writes")

        task = asyncio.create_task(self.app(scope, queue.get, nobody))
        await asyncio.sleep(0)
        return task, queue


WHOLE = {"type": "http.request", "body": b"a", "more_body": False}


async def test_slow_bodies_give_way_to_new_ones() -> None:
    """Senders of a byte a second cannot hold all places between them: the one that takes longest is given up."""
    bodies = Bodies(most_coming=2, spared_seconds=0)
    (first, _), (second, to_second) = await bodies.ask(), await bodies.ask()
    third, to_third = await bodies.ask()
    for queue in (to_second, to_third):
        queue.put_nowait(WHOLE)
    results = await asyncio.gather(first, second, third, return_exceptions=True)
    assert isinstance(results[0], InvalidRequest)
    assert results[0].reason == "BODY_TIMEOUT"
    assert all(result is None for result in results[1:])


async def test_a_burst_of_bodies_does_not_give_them_up() -> None:
    """One that has only just begun is no slow one: the newest is refused instead, and told when it is."""
    bodies = Bodies(most_coming=2, spared_seconds=1)
    begun = [await bodies.ask(), await bodies.ask()]
    refused, _ = await bodies.ask()
    for _, queue in begun:
        queue.put_nowait(WHOLE)
    await asyncio.gather(*(task for task, _ in begun))
    again, queue = await bodies.ask()
    queue.put_nowait(WHOLE)
    await again
    error = refused.exception()
    assert isinstance(error, Overloaded)
    assert error.retry_after == pytest.approx(1, abs=0.5)


async def test_a_body_that_has_come_takes_no_place_among_those_that_come() -> None:
    """What is being worked on is counted elsewhere, and never given up for its body."""
    go_on = asyncio.Event()

    class Working(Bodies):
        async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await go_on.wait()

    bodies = Working(most_coming=1, spared_seconds=0)
    tasks = []
    for _ in range(3):
        task, queue = await bodies.ask()
        queue.put_nowait(WHOLE)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks.append(task)
    go_on.set()
    await asyncio.gather(*tasks)
