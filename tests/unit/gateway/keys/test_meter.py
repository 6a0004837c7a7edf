"""Rates, tokens and requests in progress, counted in memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.keys.meter import MemoryMeter
from gateway.keys.rates import drawn, left, wait_seconds
from gateway.keys.records import Limits
from mesh.testing import FakeClock

A = "account"


async def let_in(meter: MemoryMeter, limits: Limits, times: int, tokens: int = 0) -> int:
    """How many of so many requests, one after the other, are let in."""
    passed = 0
    for _ in range(times):
        grant = await meter.take(A, limits, tokens)
        if grant.refused is None:
            passed += 1
            meter.give_back(grant, tokens)
    return passed


async def test_a_minutes_requests_pass_at_once_and_then_evenly() -> None:
    """60 a minute: 60 now, then one a second; and the time to wait is told."""
    clock = FakeClock()
    meter, limits = MemoryMeter(clock), Limits(requests_per_minute=60)
    assert await let_in(meter, limits, 100) == 60
    refused = await meter.take(A, limits, 0)
    assert refused.refused == "requests"
    assert refused.retry_after is not None
    assert abs(refused.retry_after - 1) < 1e-6
    clock.advance(0.99)
    assert await let_in(meter, limits, 5) == 0
    clock.advance(0.01)
    assert await let_in(meter, limits, 5) == 1
    clock.advance(3600)
    assert await let_in(meter, limits, 100) == 60


@given(
    per_minute=st.integers(1, 5000),
    gaps=st.lists(st.floats(0, 40), min_size=1, max_size=60),
)
def test_no_minute_holds_more_than_twice_and_no_hour_more_than_its_share(per_minute: int, gaps: list[float]) -> None:
    """What passes in any time is the allowance at the beginning and its even flow; and who waits as told, passes."""
    until, now, passed = 0.0, 0.0, 0
    for gap in gaps:
        now += gap
        for _ in range(per_minute // 4 + 1):
            after = drawn(until, now, per_minute, 1)
            wait = wait_seconds(after, now)
            if wait > 0:
                assert wait_seconds(drawn(until, now + wait, per_minute, 1), now + wait) <= 1e-6
                assert left(until, now, per_minute) == 0
                break
            until, passed = after, passed + 1
    assert passed <= per_minute + now * per_minute / 60 + 1


async def test_tokens_are_reserved_and_put_right_afterwards() -> None:
    """What a guess took too much comes back at once; what it took too little keeps the next ones waiting."""
    clock = FakeClock()
    meter, limits = MemoryMeter(clock), Limits(tokens_per_minute=600)
    grant = await meter.take(A, limits, 500)
    assert (await meter.take(A, limits, 200)).refused == "tokens"
    meter.give_back(grant, 10)
    grant = await meter.take(A, limits, 590)
    assert grant.refused is None
    assert grant.tokens_left == 0
    meter.give_back(grant, 590 + 600)
    clock.advance(60)
    assert (await meter.take(A, limits, 1)).refused == "tokens"
    assert (await meter.take(A, limits, 0)).refused is None
    clock.advance(1)
    assert (await meter.take(A, limits, 10)).refused is None


async def test_a_refusal_by_one_limit_takes_nothing_from_the_others() -> None:
    """Else a client that tries in vain would use up what it needs."""
    meter = MemoryMeter(FakeClock())
    limits = Limits(requests_per_minute=10, tokens_per_minute=100, max_concurrent_requests=1)
    first = await meter.take(A, limits, 60)
    for _ in range(50):
        assert (await meter.take(A, limits, 60)).refused == "tokens"
        assert (await meter.take(A, limits, 10)).refused == "concurrency"
    meter.give_back(first, 60)
    grant = await meter.take(A, limits, 40)
    assert (grant.refused, grant.requests_left, grant.tokens_left) == (None, 8, 0)


async def test_places_in_progress_come_back_and_are_each_accounts_own() -> None:
    """However a request ended; another account has its own."""
    meter, limits = MemoryMeter(FakeClock()), Limits(max_concurrent_requests=3)
    grants = [await meter.take(A, limits, 0) for _ in range(5)]
    assert [grant.refused for grant in grants] == [None, None, None, "concurrency", "concurrency"]
    assert (await meter.take("another", limits, 0)).refused is None
    for grant in grants[:3]:
        meter.give_back(grant, 0)
    assert [(await meter.take(A, limits, 0)).refused for _ in range(4)] == [None, None, None, "concurrency"]


async def test_what_nobody_limits_is_not_told() -> None:
    """A key with one limit has no figures for the others."""
    grant = await MemoryMeter(FakeClock()).take(A, Limits(max_concurrent_requests=3), 5)
    assert (grant.requests_left, grant.tokens_left) == (None, None)
