"""The status as a stream: one producer for all who look, and for nobody when nobody does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.admission import Places
from gateway.app import create_app
from gateway.lifecycle import Lifecycle
from gateway.refusals import RecentRefusals
from gateway.settings import GatewaySettings
from gateway.status import StatusReport
from gateway.testing import FakePeers, RawRequest
from gateway.watching import ASKED_EVERY, MOST_VIEWERS, POINTS, StatusFeed, Watched
from mesh.errors import Overloaded

SOON = 0.001


def feed_of(peers: FakePeers, *, lifecycle: Lifecycle | None = None, most_viewers: int = 32) -> StatusFeed:
    """A feed that takes snapshots as fast as they are read."""
    lifecycle = lifecycle or Lifecycle()
    report = StatusReport(peers.as_peers(), lifecycle, info_seconds=1.0, targets={}, hints={})
    watched = Watched(report, peers.as_peers(), RecentRefusals(), Places(most=8), lifecycle)
    return StatusFeed(watched, interval_seconds=SOON, most_viewers=most_viewers)


async def read(frames: AsyncGenerator[bytes, None]) -> tuple[str, int, Any]:
    """The next event: its name, its number and its document."""
    async with asyncio.timeout(5):
        lines = (await anext(frames)).decode().splitlines()
    values = dict(line.split(": ", 1) for line in lines if line)
    return values["event"], int(values["id"]), json.loads(values["data"])


async def test_a_viewer_is_told_the_past_and_then_every_snapshot(peers: FakePeers) -> None:
    """The document of /status with what each hop did since, what is refused, the GPUs and the gateway's own load."""
    frames = feed_of(peers).frames()
    name, _, past = await read(frames)
    assert (name, past["hops"]["embedding"]) == ("past", [])
    name, first, status = await read(frames)
    assert (name, status["status"]) == ("status", "ok")
    assert [hop["name"] for hop in status["hops"]] == ["embedding", "reranking", "chunking", "gpu", "llm"]
    assert status["hops"][0]["serves"]["models"]
    assert status["gpus"]["devices"] == []
    assert "driver" in status["gpus"]["unavailable_reason"]
    assert status["refusals"]["kinds"] == []
    assert (status["gateway"]["in_progress"], status["gateway"]["most_in_progress"]) == (0, 8)
    assert (await read(frames))[1] > first
    await frames.aclose()


async def test_times_are_those_of_the_calls_since_the_last_snapshot(peers: FakePeers) -> None:
    """A worker that becomes slow shows at once, and a second without calls shows none; what was before counts not."""
    peers.embedder.hop.times = [9.0]
    frames = feed_of(peers).frames()
    await read(frames)
    assert (await read(frames))[2]["hops"][0]["now"] == {"calls_per_second": 0.0, "p50_ms": None, "p99_ms": None}
    peers.embedder.hop.times += [0.001, 0.002, 0.5]
    seen = [(await read(frames))[2]["hops"][0]["now"] for _ in range(3)]
    busy = [now for now in seen if now["p50_ms"] is not None]
    assert [(now["p50_ms"], now["p99_ms"]) for now in busy] == [(2.0, 500.0)]
    assert busy[0]["calls_per_second"] > 0
    await frames.aclose()


async def test_who_comes_later_is_told_what_was_before(peers: FakePeers) -> None:
    """At most a minute of it."""
    feed = feed_of(peers)
    first = feed.frames()
    for _ in range(POINTS + 10):
        await read(first)
    later = feed.frames()
    _, _, past = await read(later)
    assert len(past["hops"]["embedding"]) == POINTS
    for frames in (first, later):
        await frames.aclose()


async def test_all_viewers_share_one_producer_and_their_bytes(peers: FakePeers) -> None:
    """Two viewers cost the workers no more than one."""
    feed = feed_of(peers)
    one, other = feed.frames(), feed.frames()
    await anext(one)
    await anext(other)
    first, second = await asyncio.gather(anext(one), anext(other))
    assert first is second
    assert len(peers.embedder.calls) == 1
    for frames in (one, other):
        await frames.aclose()


async def test_workers_are_asked_what_they_serve_now_and_then(peers: FakePeers) -> None:
    """Not at every snapshot: looking must not be work for them."""
    frames = feed_of(peers).frames()
    await read(frames)
    numbers = [(await read(frames))[1] for _ in range(2 * ASKED_EVERY)]
    assert len(peers.embedder.calls) <= 1 + numbers[-1] // ASKED_EVERY
    assert len(peers.gpu.calls) <= 2 * (1 + numbers[-1] // ASKED_EVERY)
    await frames.aclose()


async def test_nobody_who_looks_means_no_work(peers: FakePeers) -> None:
    """The producer ends with the last viewer, and begins anew with the next one."""
    feed = feed_of(peers)
    before = asyncio.all_tasks()
    one, other = feed.frames(), feed.frames()
    for frames in (one, other):
        await read(frames)
    await one.aclose()
    assert feed.viewers == 1
    assert (await read(other))[0] == "status"
    await other.aclose()
    await asyncio.sleep(SOON * 5)
    assert (feed.viewers, asyncio.all_tasks()) == (0, before)
    again = feed.frames()
    assert (await read(again))[0] == "past"
    assert (await read(again))[1] == 1
    await again.aclose()


async def test_viewers_are_bounded(peers: FakePeers) -> None:
    """One too many is refused and told when to come back; one that leaves makes room."""
    feed = feed_of(peers, most_viewers=1)
    first = feed.frames()
    await read(first)
    with pytest.raises(Overloaded) as refused:
        await anext(feed.frames())
    assert refused.value.reason == "STATUS_VIEWERS"
    assert refused.value.retry_after
    await first.aclose()
    second = feed.frames()
    assert (await read(second))[0] == "past"
    await second.aclose()


async def test_a_slow_viewer_misses_snapshots_and_queues_none(peers: FakePeers) -> None:
    """It gets the latest when it comes back."""
    feed = feed_of(peers)
    slow, quick = feed.frames(), feed.frames()
    await read(slow)
    await read(quick)
    latest = 0
    while latest < 10:
        latest = (await read(quick))[1]
    assert (await read(slow))[1] >= latest
    for frames in (slow, quick):
        await frames.aclose()


async def test_the_stream_ends_when_the_gateway_drains(peers: FakePeers) -> None:
    """With a last snapshot that says so: a viewer must not hold up the end."""
    lifecycle = Lifecycle()
    frames = feed_of(peers, lifecycle=lifecycle).frames()
    await read(frames)
    lifecycle.draining = True
    told = [(await read(frames))[2]["gateway"]["draining"]]
    while not told[-1]:
        told.append((await read(frames))[2]["gateway"]["draining"])
    with pytest.raises(StopAsyncIteration):
        await read(frames)


async def test_what_ends_the_producer_reaches_its_viewers(peers: FakePeers) -> None:
    """A bug is no silence: the stream fails, and the next viewer gets a new producer."""
    feed = feed_of(peers)
    frames = feed.frames()
    await read(frames)
    broken = peers.embedder.hop
    peers.embedder.hop = None  # type: ignore[assignment]  # the bug
    with pytest.raises(AttributeError):
        while True:
            await read(frames)
    peers.embedder.hop = broken
    again = feed.frames()
    assert (await read(again))[0] == "past"
    await again.aclose()


async def test_a_viewer_of_a_broken_producer_does_not_keep_the_next_one_working(peers: FakePeers) -> None:
    """One that reads slowly leaves after those who came to the new producer: nobody looks then, and nothing works."""
    feed = feed_of(peers)
    before = asyncio.all_tasks()
    slow = feed.frames()
    await read(slow)
    broken, peers.embedder.hop = peers.embedder.hop, None  # type: ignore[assignment]  # the bug
    while asyncio.all_tasks() != before:
        await asyncio.sleep(SOON)
    peers.embedder.hop = broken
    quick = feed.frames()
    await read(quick)
    await quick.aclose()
    await slow.aclose()
    await asyncio.sleep(SOON * 5)
    assert (feed.viewers, asyncio.all_tasks()) == (0, before)


async def test_a_hop_that_is_away_does_not_keep_the_gpus_status_waiting(peers: FakePeers) -> None:
    """Nobody asks a worker that is known to be away; looking must not be what opens its breaker."""
    peers.gpu.hop.health = "UNREACHABLE"
    frames = feed_of(peers).frames()
    await read(frames)
    assert "failure" in (await read(frames))[2]["gpus"]
    assert peers.gpu.calls == []
    await frames.aclose()


async def test_the_route_streams_events_and_ends_with_its_client(settings: GatewaySettings, peers: FakePeers) -> None:
    """As server-sent events that no proxy holds back."""
    app: FastAPI = create_app(settings, peers=peers.as_peers())
    request = RawRequest("GET", "/status/stream")
    request.say()
    answering = request.start(app)
    await request.until(b"event: status")
    headers = dict(request.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-store"
    request.leave()
    await answering
    assert request.body.startswith(b"event: past")


async def test_one_viewer_too_many_gets_a_proper_answer(settings: GatewaySettings, peers: FakePeers) -> None:
    """429 with when to try again, not a stream that breaks."""
    app = create_app(settings, peers=peers.as_peers())
    watching = [RawRequest("GET", "/status/stream") for _ in range(MOST_VIEWERS)]
    tasks = []
    for request in watching:
        request.say()
        tasks.append(request.start(app))
    for request in watching:
        await request.until(b"event: past")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        refused = await client.get("/status/stream")
    assert (refused.status_code, "read /status instead" in refused.json()["detail"]) == (429, True)
    assert int(refused.headers["retry-after"]) >= 1
    for request in watching:
        request.leave()
    await asyncio.gather(*tasks)
