"""A cache over a worker whose vectors can be told apart."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.testing.vectors import TellingEmbedder
from gateway.vector_cache.embedder import CachedEmbedder
from gateway.vector_cache.served import ServedModels
from gateway.vector_cache.stores import MemoryStore
from mesh.testing.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """Time for what is kept and for what is known of the worker."""
    return FakeClock()


@pytest.fixture
def worker() -> TellingEmbedder:
    """The worker's client."""
    return TellingEmbedder()


@pytest.fixture
async def cached(worker: TellingEmbedder, clock: FakeClock) -> AsyncIterator[CachedEmbedder]:
    """The worker behind a cache in memory."""
    store = MemoryStore(max_bytes=1 << 20, ttl_seconds=600, clock=clock)
    made = CachedEmbedder(worker, store, seconds=10, served=ServedModels(worker, info_seconds=1, clock=clock))
    yield made
    await made.close()
