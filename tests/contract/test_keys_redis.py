"""Keys' limits counted in a real Redis, which the test starts for itself and then hurts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from gateway.keys.meter import Grant, MemoryMeter, Meter
from gateway.keys.records import Limits

pytest.importorskip("redis.asyncio", reason="needs the extra redis")

from gateway.keys import shared_meter
from gateway.keys.shared_meter import SharedMeter
from gateway.vector_cache.redis_client import connect
from tests.contract.real_redis import TIMEOUT, started


@asynccontextmanager
async def gateway(socket: Path, timeout: float = TIMEOUT) -> AsyncIterator[SharedMeter]:
    """The meter of one gateway."""
    made = SharedMeter(connect(f"unix://{socket}", wait_seconds=timeout / 2), timeout_seconds=timeout)
    made.start()
    yield made
    await made.close()


async def takes(meter: Meter, limits: Limits, times: int, tokens: int = 0) -> list[Grant]:
    """What the meter says to so many requests, one after the other."""
    return [await meter.take("account", limits, tokens) for _ in range(times)]


def passed(grants: list[Grant]) -> int:
    """How many were let in."""
    return sum(grant.refused is None for grant in grants)


@pytest.mark.usefixtures("redis")
async def test_gateways_share_one_allowance_of_requests(socket: Path) -> None:
    """Ten a minute are ten, whichever gateway is asked; also by one that starts later."""
    limits = Limits(requests_per_minute=10)
    async with gateway(socket) as one, gateway(socket) as two:
        first = await takes(one, limits, 6)
        second = await takes(two, limits, 6)
    assert (passed(first), passed(second)) == (6, 4)
    assert [grant.requests_left for grant in first] == [9, 8, 7, 6, 5, 4]
    assert second[-1].refused == "requests"
    assert 5 < (second[-1].retry_after or 0) <= 6
    async with gateway(socket) as restarted:
        assert passed(await takes(restarted, limits, 3)) == 0


@pytest.mark.usefixtures("redis")
async def test_a_thousand_at_once_are_counted_exactly(socket: Path) -> None:
    """However many ask at the same moment through two gateways: the script judges one after the other."""
    limits = Limits(requests_per_minute=100, max_concurrent_requests=60)
    # Time enough for a busy machine: each of them is to be judged by Redis.
    async with gateway(socket, timeout=5.0) as one, gateway(socket, timeout=5.0) as two:
        # Connections are made first, so that none of the thousand finds Redis away.
        await takes(one, Limits(max_body_bytes=1), 1)
        await takes(two, Limits(max_body_bytes=1), 1)
        grants: list[Grant] = []
        for start in range(0, 1000, 20):
            grants += await asyncio.gather(
                *((one if turn % 2 else two).take("another", limits, 0) for turn in range(start, start + 20))
            )
        assert all(grant.shared for grant in grants)
    assert passed(grants) == 60
    assert {grant.refused for grant in grants} == {None, "concurrency"}


@pytest.mark.usefixtures("redis")
async def test_both_meters_judge_alike(socket: Path) -> None:
    """The same requests, the same answers: memory and Redis are two ways to count by one rule."""
    limits = Limits(requests_per_minute=7, tokens_per_minute=1000, max_concurrent_requests=3)
    memory = MemoryMeter()
    async with gateway(socket) as shared:
        for tokens, used in ((100, 40), (500, 900), (10, 10), (900, 0), (0, 0), (1, 1), (1, 5), (0, 0), (0, 0)):
            ours = await memory.take("a", limits, tokens)
            theirs = await shared.take("a", limits, tokens)
            assert ours.refused == theirs.refused
            assert abs((ours.retry_after or 0) - (theirs.retry_after or 0)) < 1
            if ours.refused is None:
                assert (ours.reserved, ours.requests_left) == (theirs.reserved, theirs.requests_left)
                assert abs((ours.tokens_left or 0) - (theirs.tokens_left or 0)) <= 20
                memory.give_back(ours, used)
                shared.give_back(theirs, used)
                await told(shared)


async def told(meter: SharedMeter) -> None:
    """Wait until Redis knows what has ended."""
    while meter._telling is not None and not meter._telling.done():
        await asyncio.sleep(0.005)


@pytest.mark.usefixtures("redis")
async def test_places_in_progress_are_shared_and_come_back(socket: Path) -> None:
    """A place that is given back at one gateway is free at the other."""
    limits = Limits(max_concurrent_requests=3)
    async with gateway(socket) as one, gateway(socket) as two:
        held = await takes(one, limits, 2)
        assert passed(await takes(two, limits, 4)) == 1
        for grant in held:
            one.give_back(grant, 0)
        await told(one)
        assert passed(await takes(two, limits, 4)) == 2


@pytest.mark.usefixtures("redis")
async def test_a_gateway_that_ends_leaves_no_place_taken(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says good-bye at once; one that was killed when it was not heard of for a lease."""
    monkeypatch.setattr(shared_meter, "LEASE_SECONDS", 0.3)
    limits = Limits(max_concurrent_requests=2)
    async with gateway(socket) as survivor:
        killed = SharedMeter(connect(f"unix://{socket}", wait_seconds=TIMEOUT / 2), timeout_seconds=TIMEOUT)
        assert passed(await takes(killed, limits, 2)) == 2
        assert passed(await takes(survivor, limits, 1)) == 0
        await killed.close()  # its connections; nothing was given back
        await asyncio.sleep(0.35)
        assert passed(await takes(survivor, limits, 2)) == 2


@pytest.mark.usefixtures("redis")
async def test_a_long_request_keeps_its_place_by_being_told_of_again(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream may take longer than a lease."""
    monkeypatch.setattr(shared_meter, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(shared_meter, "TELL_SECONDS", 0.1)
    limits = Limits(max_concurrent_requests=1)
    async with gateway(socket) as one, gateway(socket) as two:
        (long,) = await takes(one, limits, 1)
        await asyncio.sleep(0.9)
        assert passed(await takes(two, limits, 1)) == 0
        one.give_back(long, 0)
        await told(one)
        assert passed(await takes(two, limits, 1)) == 1


@pytest.mark.usefixtures("redis")
async def test_what_overtakes_on_the_way_does_not_count(socket: Path) -> None:
    """Of two messages of one gateway the later one holds, in whichever order they come."""
    limits = Limits(max_concurrent_requests=5)
    async with gateway(socket) as one, gateway(socket) as two:
        grants = await takes(one, limits, 4)
        late = one._told(4)
        for grant in grants:
            one.give_back(grant, 0)
        await told(one)
        await one._settle_script(keys=["mesh:keys:1:account"], args=(*late, "0", 0))
        assert passed(await takes(two, limits, 5)) == 5


async def test_without_redis_each_gateway_counts_by_itself(
    redis: subprocess.Popen[bytes], socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is refused because a Redis is away; limits go on, each gateway's own; it is said, and passes by itself."""
    limits = Limits(requests_per_minute=5, max_concurrent_requests=3)
    async with gateway(socket) as one, gateway(socket) as two:
        assert passed(await takes(one, limits, 1)) == 1
        assert (one.where, REGISTRY.get_sample_value("mesh_keys_limits_shared")) == ("Redis", 1)
        redis.kill()
        redis.wait()
        alone = [await takes(meter, limits, 4) for meter in (one, two)]
        # The request in progress from before counts on.
        assert [passed(grants) for grants in alone] == [2, 3]
        assert not any(grant.shared for grants in alone for grant in grants)
        assert one.where == "this gateway's memory, since Redis is away"
        assert REGISTRY.get_sample_value("mesh_keys_limits_shared") == 0
        began = time.monotonic()
        await takes(one, limits, 50)
        assert time.monotonic() - began < TIMEOUT  # an open breaker costs nobody a wait
        for grant in alone[0]:
            if grant.refused is None:
                one.give_back(grant, 0)
        again = started(socket)
        try:
            ends = time.monotonic() + 20
            while one.where != "Redis":
                assert time.monotonic() < ends, "it was not found again"
                for grant in await takes(one, Limits(max_concurrent_requests=50), 1):
                    one.give_back(grant, 0)
                await asyncio.sleep(0.1)
            assert all(grant.shared for grant in await takes(one, Limits(requests_per_minute=5), 3))
        finally:
            again.kill()
            again.wait()


async def test_a_redis_that_hangs_costs_one_timeout_each_until_the_breaker_opens(
    redis: subprocess.Popen[bytes], socket: Path
) -> None:
    """Three waits at most, then none; the requests are let in all the same."""
    limits = Limits(requests_per_minute=1000)
    async with gateway(socket) as meter:
        await takes(meter, limits, 1)
        redis.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        grants = await takes(meter, limits, 20)
        assert passed(grants) == 20
        assert time.monotonic() - began < 4 * TIMEOUT
        redis.send_signal(signal.SIGCONT)


@pytest.mark.usefixtures("redis")
async def test_what_is_kept_has_an_end_and_names_no_key(socket: Path) -> None:
    """A Redis that is never tidied up does not fill."""
    limits = Limits(requests_per_minute=60, tokens_per_minute=600, max_concurrent_requests=5)
    async with gateway(socket) as one, connect(f"unix://{socket}", wait_seconds=1) as client:
        (grant,) = await takes(one, limits, 1, tokens=60)
        one.give_back(grant, 600)
        await told(one)
        (key,) = await client.keys("*")
        assert key == b"mesh:keys:1:account"
        assert 30_000 < await client.pttl(key) <= 62_000
        await client.set(key, b"a stranger's")  # of another type: the script fails, and the request does not
        assert passed(await takes(one, limits, 1)) == 1
