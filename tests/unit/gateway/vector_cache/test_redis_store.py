"""A Redis that is well, away, slow or strange, and what the store makes of it. The real one: tests/contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pytest
from prometheus_client import REGISTRY

from gateway.vector_cache.redis_store import RedisStore
from mesh.resilience import BreakerState
from mesh.testing.clock import FakeClock

KEYS = [bytes([n]) * 32 for n in range(3)]


class FakeRedis:
    """As much of redis.asyncio as the store uses; ``mood`` is an error to raise, "slow", or an answer to MGET.

    ``full`` is an error that only writing raises. ``meanwhile`` happens during each operation.
    """

    def __init__(self) -> None:
        self.full: Exception | None = None
        self.meanwhile: Callable[[], object] = bool
        self.sizes: list[int] = []
        self.values: dict[bytes, tuple[bytes, int]] = {}
        self.mood: Any = None
        self.operations = 0
        self._queued: list[tuple[bytes, bytes, int]] = []

    async def mget(self, keys: list[bytes]) -> Any:
        """The values, in the order of the keys."""
        self.sizes.append(len(keys))
        strange = await self._operate()
        return [self.values[key][0] if key in self.values else None for key in keys] if strange is None else strange

    def pipeline(self, *, transaction: bool) -> Self:
        """Several commands at once."""
        assert not transaction
        self._queued = []
        return self

    def set(self, key: bytes, value: bytes, *, ex: int) -> None:
        """One of them."""
        self._queued.append((key, value, ex))

    async def execute(self) -> list[bool]:
        """Run them."""
        self.sizes.append(len(self._queued))
        await self._operate()
        if self.full is not None:
            raise self.full
        self.values.update({key: (value, ex) for key, value, ex in self._queued})
        return [True] * len(self._queued)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queued = []

    async def aclose(self) -> None:
        """Disconnect."""
        await self._operate()

    async def _operate(self) -> Any:
        self.operations += 1
        self.meanwhile()
        if isinstance(self.mood, BaseException):
            raise self.mood
        if self.mood == "slow":
            await asyncio.Event().wait()
        return self.mood


@pytest.fixture
def redis() -> FakeRedis:
    """A Redis that is well."""
    return FakeRedis()


def store_over(redis: FakeRedis, clock: FakeClock) -> RedisStore:
    """The store, which is quick to give up."""
    return RedisStore(redis, timeout_seconds=0.01, ttl_seconds=90, clock=clock)


async def test_what_is_put_is_found_until_its_time_is_up(redis: FakeRedis, clock: FakeClock) -> None:
    """In the order of the keys, under readable names, with an end."""
    store = store_over(redis, clock)
    await store.put({KEYS[0]: b"zero", KEYS[2]: b"two"})
    assert await store.get(KEYS) == [b"zero", None, b"two"]
    assert {ends for _, ends in redis.values.values()} == {90}
    assert b"mesh:vector:1:" + b"02" * 32 in redis.values
    operations = redis.operations
    assert list(await store.get([])) == []
    await store.put({})
    assert redis.operations == operations


@pytest.mark.parametrize(
    "mood",
    [
        ConnectionRefusedError(),
        ValueError("strange"),
        UnicodeDecodeError("utf-8", b"", 0, 1, ""),
        "slow",
        b"OK",
        [b"one"],
    ],
)
async def test_whatever_redis_does_the_values_are_missing_and_it_is_soon_left_alone(
    mood: Any, redis: FakeRedis, clock: FakeClock
) -> None:
    """Away, slow, strange, another protocol: each costs one timeout at most, three open the breaker, one probe asks."""
    store = store_over(redis, clock)
    redis.mood = mood
    async with asyncio.timeout(1):
        for _ in range(20):
            assert await store.get(KEYS) == [None, None, None]
    assert (redis.operations, store.breaker.snapshot().state) == (3, BreakerState.OPEN)
    clock.advance(1.5)
    await store.get(KEYS)
    await store.get(KEYS)
    assert redis.operations == 4


async def test_it_is_asked_again_when_it_may_be_well(redis: FakeRedis, clock: FakeClock) -> None:
    """After the pause one operation that succeeds is enough."""
    store = store_over(redis, clock)
    redis.mood = ConnectionRefusedError()
    for _ in range(3):
        await store.put({KEYS[0]: b"zero"})
        await store.get(KEYS)
    redis.mood = None
    assert await store.get(KEYS) == [None] * 3
    clock.advance(31)
    await store.put({KEYS[0]: b"zero"})
    assert await store.get(KEYS[:1]) == [b"zero"]
    assert {store.breaker.snapshot().state, store.put_breaker.snapshot().state} == {BreakerState.CLOSED}


async def test_a_caller_that_leaves_says_nothing_about_redis(redis: FakeRedis, clock: FakeClock) -> None:
    """Its cancellation is its own, and is not swallowed."""
    store = RedisStore(redis, timeout_seconds=10, ttl_seconds=90, clock=clock)
    redis.mood = "slow"
    for _ in range(5):
        task = asyncio.create_task(store.get(KEYS))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert (redis.operations, store.breaker.snapshot().consecutive_failures) == (5, 0)


async def test_closing_takes_no_longer_than_an_operation(redis: FakeRedis, clock: FakeClock) -> None:
    """A Redis that hangs does not keep the gateway from ending."""
    store = store_over(redis, clock)
    for mood in (None, "slow", ConnectionResetError()):
        redis.mood = mood
        async with asyncio.timeout(1):
            await store.close()


async def test_a_large_request_is_many_small_operations(redis: FakeRedis, clock: FakeClock) -> None:
    """Each with a time of its own, so that what a request holds decides nothing about Redis; the order stays."""
    store = store_over(redis, clock)
    keys = [n.to_bytes(32, "big") for n in range(300)]
    await store.put({key: key for key in keys[:-1]})
    assert await store.get(keys) == [*keys[:-1], None]
    assert redis.sizes == [128, 128, 43, 128, 128, 44]


async def test_a_large_request_waits_for_one_failure_only(redis: FakeRedis, clock: FakeClock) -> None:
    """The first slice that takes too long is the last that is asked for; what came before counts."""
    store = store_over(redis, clock)
    keys = [n.to_bytes(32, "big") for n in range(500)]
    await store.put({key: key for key in keys})

    def hang_at_the_second() -> None:
        redis.mood = "slow" if len(redis.sizes) == 2 else None

    redis.sizes.clear()
    redis.meanwhile = hang_at_the_second
    assert await store.get(keys) == keys[:128] + [None] * 372
    assert redis.sizes == [128, 128]


async def test_a_full_redis_still_gives_what_it_has(redis: FakeRedis, clock: FakeClock) -> None:
    """It refuses to take more, and is no longer told; reading goes on. Which error it is can be seen."""
    store = store_over(redis, clock)
    await store.put({KEYS[0]: b"zero"})
    redis.full = OutOfMemoryError()
    before = counted("OUT_OF_MEMORY_ERROR")
    for _ in range(5):
        await store.put({KEYS[1]: b"one"})
        assert await store.get(KEYS[:1]) == [b"zero"]
    assert counted("OUT_OF_MEMORY_ERROR") == before + 3
    assert store.put_breaker.snapshot().state is BreakerState.OPEN
    assert store.breaker.snapshot().state is BreakerState.CLOSED


class OutOfMemoryError(Exception):
    """As the library calls what a full Redis answers."""


def counted(error: str) -> float:
    """How many writes failed so."""
    labels = {"operation": "put", "error": error}
    return REGISTRY.get_sample_value("mesh_vector_cache_redis_errors_total", labels) or 0.0


async def test_a_loop_that_is_held_up_says_nothing_about_redis(redis: FakeRedis, clock: FakeClock) -> None:
    """The answer may have been there for long. As soon as the loop is on time, a timeout is Redis's again."""
    store = store_over(redis, clock)
    redis.mood = "slow"
    redis.meanwhile = lambda: clock.advance(0.06)
    for _ in range(5):
        assert await store.get(KEYS) == [None] * 3
    assert store.breaker.snapshot().consecutive_failures == 0
    redis.meanwhile = bool
    for _ in range(3):
        await store.get(KEYS)
    assert store.breaker.snapshot().state is BreakerState.OPEN
