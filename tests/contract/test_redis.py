"""The vector cache in a real Redis, which the test starts for itself and then hurts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from gateway.answers import base64_rows
from gateway.testing.vectors import TellingEmbedder
from gateway.vector_cache.building import make_store
from gateway.vector_cache.embedder import CachedEmbedder
from gateway.vector_cache.redis_store import RedisStore, connect
from gateway.vector_cache.served import ServedModels
from gateway.vector_cache.settings import VectorCacheSettings
from mesh.clients.embedding import EmbedOptions
from mesh.resilience import BreakerState
from mesh.settings import SettingsError
from tests.contract.real_redis import TIMEOUT

pytest.importorskip("redis.asyncio", reason="needs the extra redis")

TEXTS = [f"text {number} that is kept" for number in range(32)]


@pytest.fixture
def worker() -> TellingEmbedder:
    """The worker, with vectors of a usual length."""
    return TellingEmbedder(dimensions=384)


@pytest.fixture
async def cached(socket: Path, worker: TellingEmbedder) -> AsyncIterator[CachedEmbedder]:
    """The worker behind a cache in that Redis."""
    made = over(worker, store_at(socket))
    yield made
    await made.close()


def store_at(socket: Path) -> RedisStore:
    """As the gateway makes it."""
    settings = VectorCacheSettings.model_validate(
        {"enabled": True, "type": "redis", "redis_url": f"unix://{socket}", "redis_timeout_seconds": TIMEOUT}
    )
    made = make_store(settings)
    assert isinstance(made, RedisStore)
    return made


def over(worker: TellingEmbedder, store: RedisStore) -> CachedEmbedder:
    """A cache of the worker's vectors."""
    return CachedEmbedder(worker, store, seconds=10, served=ServedModels(worker, info_seconds=1))


async def hits(cached: CachedEmbedder, worker: TellingEmbedder) -> int:
    """How many of the texts were kept; the answer is right whatever was."""
    found = await cached.embed(TEXTS)
    assert found.vectors == worker.answer(TEXTS, EmbedOptions(), "fake").vectors
    await asyncio.sleep(0.05)  # what was computed is kept beside the answer
    return found.usage.cache_hits or 0


@pytest.mark.usefixtures("redis")
async def test_gateways_share_what_is_kept(cached: CachedEmbedder, worker: TellingEmbedder, socket: Path) -> None:
    """Also one that starts later. Everything has an end."""
    assert [await hits(cached, worker), await hits(cached, worker)] == [0, 32]
    another = over(worker, store_at(socket))
    assert await hits(another, worker) == 32
    await another.close()
    async with connect(f"unix://{socket}") as client:
        keys = await client.keys("mesh:vector:*")
        assert len(keys) == 32
        assert 86_000 < await client.ttl(keys[0]) <= 86_400


@pytest.mark.usefixtures("redis")
async def test_flushed_or_overwritten_values_are_computed_anew(
    cached: CachedEmbedder, worker: TellingEmbedder, socket: Path
) -> None:
    """Nothing, nonsense, another's value, a cut one, a value of another type: misses, and put right."""
    await hits(cached, worker)
    async with connect(f"unix://{socket}") as client:
        await client.flushall()
        assert await hits(cached, worker) == 0
        first, second, third, fourth, *_ = await client.keys("mesh:vector:*")
        await client.set(first, b"garbage")
        await client.set(second, await client.get(third))
        await client.setrange(third, 100, b"!!!!")
        await client.delete(fourth)
        await client.lpush(fourth, "a list")
    assert await hits(cached, worker) == 28
    assert await hits(cached, worker) == 32


async def test_a_redis_that_dies_costs_nobody_an_answer(
    cached: CachedEmbedder, worker: TellingEmbedder, redis: subprocess.Popen[bytes]
) -> None:
    """Killed under traffic: every request is answered, and after three failures nothing is asked any more."""
    await hits(cached, worker)
    redis.kill()
    redis.wait()
    for _ in range(5):
        assert await hits(cached, worker) == 0
    assert _store(cached).breaker.snapshot().state is BreakerState.OPEN


async def test_a_frozen_redis_costs_one_short_timeout(
    cached: CachedEmbedder, worker: TellingEmbedder, redis: subprocess.Popen[bytes]
) -> None:
    """Many requests at once wait side by side; then the breaker is open, and they wait no more."""
    await hits(cached, worker)
    redis.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    await asyncio.gather(*(hits(cached, worker) for _ in range(40)))
    assert time.monotonic() - started < TIMEOUT + 2  # the two are for a busy machine
    assert _store(cached).breaker.snapshot().state is BreakerState.OPEN
    redis.send_signal(signal.SIGCONT)
    ends = time.monotonic() + 10
    while await hits(cached, worker) < 32:
        assert time.monotonic() < ends, "Redis is well again and is not asked"


async def test_a_stranger_on_its_port_is_no_redis(worker: TellingEmbedder) -> None:
    """It answers in another protocol, or hangs up."""
    greetings = iter([b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"$-7\r\n*9999999999\r\n", b"\x00\xff" * 50])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(next(greetings, b"?"))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisStore(
        connect(f"redis://127.0.0.1:{port}/0", timeout_seconds=TIMEOUT), timeout_seconds=TIMEOUT, ttl_seconds=60
    )
    cached = over(worker, store)
    for _ in range(5):
        assert await hits(cached, worker) == 0
    assert store.breaker.snapshot().state is BreakerState.OPEN
    await cached.close()
    server.close()


@pytest.mark.usefixtures("redis")
async def test_a_hit_for_32_texts_is_cheap(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """At most 2 ms, base64 included, in the best of many tries: the others belong to whoever shares the machine."""
    await hits(cached, worker)
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        base64_rows(await cached.embed(TEXTS))
        best = min(best, time.perf_counter() - started)
    print(f"a hit for 32 texts in Redis: {best * 1000:.2f} ms")
    assert best <= 0.002


@pytest.mark.parametrize(
    "parameters",
    [
        "host:port",
        "h/0?socket_timeout=soon",
        "h?foo=1",
        "h?protocol=7",
        "h?max_connections=-1",
        "h?retry=3",
        "h?decode_responses=true",
    ],
)
def test_a_url_that_cannot_be_read_stops_the_start(parameters: str) -> None:
    """Not the first request, and the message does not repeat it: it may hold a password."""
    with pytest.raises(SettingsError, match="REDIS_URL") as error:
        connect(f"redis://user:hunter2@{parameters}")
    assert "hunter2" not in str(error.value)


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("share", [0.2, 0.3, 0.6])
async def test_a_redis_far_away_is_reached(share: float, worker: TellingEmbedder, socket: Path) -> None:
    """Connecting takes longer than an operation may; the first requests do without, and those after it have it."""
    async with _far(socket, seconds=TIMEOUT * share) as url:
        store = RedisStore(connect(f"{url}/1", timeout_seconds=TIMEOUT), timeout_seconds=TIMEOUT, ttl_seconds=60)
        cached = over(worker, store)
        started = time.monotonic()
        assert await hits(cached, worker) == 0
        assert time.monotonic() - started < 3 * TIMEOUT
        ends = time.monotonic() + 10
        while await hits(cached, worker) < 32:
            assert time.monotonic() < ends, "Redis is never reached"
        await cached.close()


@pytest.mark.usefixtures("redis")
async def test_a_close_while_connecting_leaves_nothing_behind(worker: TellingEmbedder, socket: Path) -> None:
    """Neither a task nor a connection."""
    async with _far(socket, seconds=30) as url:
        store = RedisStore(connect(url, timeout_seconds=TIMEOUT), timeout_seconds=TIMEOUT, ttl_seconds=60)
        before = asyncio.all_tasks()
        assert await store.get([b"k" * 32]) == [None]
        assert len(asyncio.all_tasks() - before) > 0
        await store.close()
        assert not [task for task in asyncio.all_tasks() - before if "_connect" in repr(task.get_coro())]


@asynccontextmanager
async def _far(socket: Path, *, seconds: float) -> AsyncIterator[str]:
    """A way to Redis on which every byte takes this long to come back."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_unix_connection(str(socket))
        await asyncio.gather(carry(reader, before, 0), carry(behind, writer, seconds))

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.usefixtures("redis")
async def test_a_full_redis_still_gives_what_it_has(
    cached: CachedEmbedder, worker: TellingEmbedder, socket: Path
) -> None:
    """Its refusals can be told from others by the metric's label."""
    await hits(cached, worker)
    async with connect(f"unix://{socket}") as client:
        await client.config_set("maxmemory", "1")
    before = counted("put", "OUT_OF_MEMORY_ERROR")
    for number in range(5):
        await cached.embed([f"another {number}"])
        assert await hits(cached, worker) == 32
    assert counted("put", "OUT_OF_MEMORY_ERROR") == before + 3
    assert _store(cached).breaker.snapshot().state is BreakerState.CLOSED


@pytest.mark.usefixtures("redis")
async def test_a_wrong_password_can_be_told_from_a_dead_server(socket: Path) -> None:
    """By the metric's label."""
    async with connect(f"unix://{socket}") as client:
        await client.config_set("requirepass", "right")
    async with _far(socket, seconds=0) as tcp:
        for url, error in (
            (f"unix://:wrong@{socket}", "AUTHENTICATION_ERROR"),
            (tcp.replace("//", "//:wrong@"), "AUTHENTICATION_ERROR"),
            (tcp, "AUTHENTICATION_ERROR"),
            (f"unix://{socket}.none", "CONNECTION_ERROR"),
            ("redis://127.0.0.1:1", "CONNECTION_ERROR"),
        ):
            before = counted("get", error)
            store = RedisStore(connect(url), timeout_seconds=TIMEOUT, ttl_seconds=60)
            assert await store.get([b"k" * 32]) == [None]
            assert counted("get", error) == before + 1, url
            await store.close()


def counted(operation: str, error: str) -> float:
    """How many operations failed so."""
    labels = {"operation": operation, "error": error}
    return REGISTRY.get_sample_value("mesh_vector_cache_redis_errors_total", labels) or 0.0


def _store(cached: CachedEmbedder) -> Any:
    return cached._store
