"""The vector cache in front of real hops: what it learns of workers that go and come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.vector_cache.embedder import CachedEmbedder
from gateway.vector_cache.served import ServedModels
from gateway.vector_cache.stores import MemoryStore
from mesh.clients.embedding import AsyncEmbeddingServiceClient
from mesh.errors import MeshError
from mesh.testing import ScriptedEmbedding, serve


@asynccontextmanager
async def cache_before(target: str) -> AsyncIterator[CachedEmbedder]:
    """A cache over a client of these workers."""
    client = AsyncEmbeddingServiceClient(target)
    store = MemoryStore(max_bytes=1 << 20, ttl_seconds=600)
    cached = CachedEmbedder(client, store, seconds=10, served=ServedModels(client, info_seconds=1))
    cached.start()
    yield cached
    await cached.close()


async def hits(cached: CachedEmbedder) -> int | None:
    """How many of two texts were kept."""
    return (await cached.embed(["one", "two"])).usage.cache_hits


async def until_it_serves(cached: CachedEmbedder, *, servers: int = 1) -> None:
    """Wait for the probe."""
    async with asyncio.timeout(10):
        while len(cached.hop.servers()) != servers:  # type: ignore[arg-type]  # a real hop's is a set
            await asyncio.sleep(0.01)


async def test_a_worker_that_was_restarted_with_another_engine_gets_no_old_vectors() -> None:
    """On the same address, within the time for which the worker's word counts; the same engine finds its own again."""
    servicer = ScriptedEmbedding(fingerprint="float32")
    async with serve([servicer.capability()]) as running, cache_before(running.target) as cached:
        await until_it_serves(cached)
        assert [await hits(cached), await hits(cached)] == [0, 2]
        assert servicer.calls == 1
        await running.worker.stop()
        with pytest.raises(MeshError):
            await cached.embed(["three"])
        for fingerprint, expected in (("int8", 0), ("float32", 2)):
            another = ScriptedEmbedding(fingerprint=fingerprint)
            async with serve([another.capability()], port=running.worker.port):
                await until_it_serves(cached)
                assert await hits(cached) == expected
                assert (await cached.embed(["one"])).fingerprint == fingerprint
            await until_it_serves(cached, servers=0)


async def test_a_replica_that_comes_is_taken_note_of() -> None:
    """Who serves is another set then; the vectors of the one that stays are still good."""
    async with serve([ScriptedEmbedding().capability()]) as one, serve([ScriptedEmbedding().capability()]) as two:
        async with cache_before(f"{one.target},{two.target}") as cached:
            await until_it_serves(cached, servers=2)
            before = cached.hop.servers()
            assert await hits(cached) == 0
            await two.worker.stop()
            await until_it_serves(cached)
            assert cached.hop.servers() != before
            assert await hits(cached) == 2
