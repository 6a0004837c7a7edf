"""What stores keep, and in which form."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from prometheus_client import REGISTRY

from gateway.vector_cache.entries import Entry, entries_of, pack, unpack, worth_keeping
from gateway.vector_cache.stores import OVERHEAD_BYTES, MemoryStore
from mesh.clients.embedding import Embeddings, Timings, Usage
from mesh.testing.clock import FakeClock

KEY = b"k" * 32
ENTRY = Entry(struct.pack("<3f", 1.0, -2.5, 0.125), tokens=7, truncated=True)


@pytest.mark.parametrize("entry", [ENTRY, Entry(b"\0" * 4, tokens=2**32 - 1, truncated=False)])
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    """Vector, tokens and truncation."""
    assert unpack(KEY, pack(KEY, entry)) == entry


def test_any_damage_is_a_miss() -> None:
    """Each single changed byte, each cut, an extension, a value of another key, and things that are no bytes."""
    whole = pack(KEY, ENTRY)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        assert unpack(KEY, bytes(damaged)) is None, position
        assert unpack(KEY, whole[:position]) is None
    assert unpack(KEY, whole + b"\0") is None
    assert unpack(b"K" * 32, whole) is None
    assert [unpack(KEY, strange) for strange in (None, "text", 7, [whole])] == [None] * 4


def test_what_is_no_number_is_not_worth_keeping() -> None:
    """An engine that failed once must not be quoted for a day."""
    assert worth_keeping(ENTRY)
    for bad in (float("nan"), float("inf"), float("-inf")):
        assert not worth_keeping(Entry(struct.pack("<3f", 1.0, bad, 2.0), 1, truncated=False))


def test_a_reply_without_its_parts_gives_no_entries() -> None:
    """An older worker states no fingerprint, or counts tokens together only."""
    reply = Embeddings("m", 1, 1, b"\0" * 4, Usage(1, 1), Timings(0, 0, 0, 0, 0), (), "print", (1,))
    assert entries_of(reply) == [Entry(b"\0" * 4, 1, truncated=False)]
    assert entries_of(Embeddings("m", 1, 1, b"\0" * 4, Usage(1, 1), reply.timings, (), "", (1,))) is None
    assert entries_of(Embeddings("m", 1, 1, b"\0" * 4, Usage(1, 1), reply.timings, (), "print", ())) is None


def number(n: int) -> bytes:
    """A key."""
    return n.to_bytes(32, "big")


async def test_the_least_recently_used_goes_first() -> None:
    """Asking for a value keeps it; the store stays within its bytes."""
    store = MemoryStore(max_bytes=3 * (OVERHEAD_BYTES + 100), ttl_seconds=60)
    for n in range(3):
        await store.put({number(n): b"v" * 100})
    await store.get([number(0)])
    await store.put({number(3): b"v" * 100})
    assert [value is not None for value in await store.get([number(n) for n in range(4)])] == [True, False, True, True]
    assert store.size_bytes == 3 * (OVERHEAD_BYTES + 100)


async def test_a_value_put_again_counts_once_and_one_too_large_not_at_all() -> None:
    """The sum is of what is kept."""
    store = MemoryStore(max_bytes=2000, ttl_seconds=60)
    for size in (100, 50):
        await store.put({KEY: b"v" * size})
    assert store.size_bytes == OVERHEAD_BYTES + 50
    await store.put({number(1): b"v" * 5000})
    assert await store.get([KEY, number(1)]) == [b"v" * 50, None]
    await store.put({KEY: b"v" * 5000})
    assert (await store.get([KEY]), store.size_bytes) == ([None], 0)


async def test_a_value_ends_with_its_time() -> None:
    """Asking does not make it younger; putting does."""
    clock = FakeClock()
    store = MemoryStore(max_bytes=10_000, ttl_seconds=60, clock=clock)
    await store.put({KEY: b"v", number(1): b"w"})
    clock.advance(59)
    await store.put({number(1): b"w"})
    assert await store.get([KEY, number(1)]) == [b"v", b"w"]
    clock.advance(1)
    assert await store.get([KEY, number(1)]) == [None, b"w"]
    assert store.size_bytes == OVERHEAD_BYTES + 1


async def test_the_gauges_follow_what_asking_finds_expired() -> None:
    """And what closing forgets: they are of what is kept, not of what was put last."""
    clock = FakeClock()
    store = MemoryStore(max_bytes=10_000, ttl_seconds=60, clock=clock)
    await store.put({KEY: b"v"})
    clock.advance(30)
    await store.put({number(1): b"w"})
    clock.advance(30)
    await store.get([KEY])
    assert gauges() == (OVERHEAD_BYTES + 1, 1)
    await store.close()
    assert gauges() == (0, 0)


def gauges() -> tuple[float | None, float | None]:
    """Bytes and entries, as Prometheus is told."""
    return REGISTRY.get_sample_value("mesh_vector_cache_bytes"), REGISTRY.get_sample_value("mesh_vector_cache_entries")


@pytest.mark.parametrize("dimensions", [64, 384])
async def test_the_bound_holds_for_what_python_takes(dimensions: int) -> None:
    """At its peak, when Python's dictionary grows, a store takes no more memory than it says, and not much less."""
    vector = dimensions * 4 + 20
    # The dictionary grows at another share of these numbers of entries each.
    for entries in (1000, 2000, 2750):
        limit = entries * (vector + OVERHEAD_BYTES)
        tracemalloc.start()
        try:
            store = MemoryStore(max_bytes=limit, ttl_seconds=60)
            before, _ = tracemalloc.get_traced_memory()
            for n in range(2 * entries):
                await store.put({number(n): n.to_bytes(vector, "big")})
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert store.size_bytes == limit
        assert 0.75 * limit < peak <= limit, entries
