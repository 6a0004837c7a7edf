"""What the circuit breaker promises, on a clock that only the test moves."""

from __future__ import annotations

import asyncio
import random

import pytest

from mesh.errors import (
    AttemptTimedOut,
    CircuitOpen,
    DeadlineExceeded,
    GpuOutOfMemory,
    Internal,
    InvalidRequest,
    MeshError,
    Overloaded,
    Unavailable,
)
from mesh.resilience import BreakerState, Cause, CircuitBreaker, Transition, TripPolicy
from mesh.testing import FakeClock
from tests.unit.mesh.breaker_calls import fail, make, opened, settle, succeed


def settle_after(clock: FakeClock, breaker: CircuitBreaker, seconds: float) -> None:
    """One call that is answered after so long."""
    with breaker.guard():
        clock.advance(seconds)


def test_consecutive_failures_open_it_and_a_success_starts_the_count_again() -> None:
    """Five in a row open it; four, a success and four do not."""
    breaker = make(FakeClock(), failure_threshold=5)
    for _ in range(4):
        fail(breaker)
    succeed(breaker)
    for _ in range(4):
        fail(breaker)
    assert breaker.snapshot().state is BreakerState.CLOSED
    fail(breaker)
    assert breaker.snapshot().state is BreakerState.OPEN


def test_an_open_breaker_refuses_with_the_time_to_wait() -> None:
    """CircuitOpen carries retry_after, no more than the configured timeout."""
    breaker = opened(FakeClock(), timeout=60)
    with pytest.raises(CircuitOpen) as caught:
        breaker.guard()
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 60


@pytest.mark.parametrize(("failures", "state"), [(9, BreakerState.CLOSED), (10, BreakerState.OPEN)])
def test_a_failure_rate_opens_it_once_there_are_enough_calls(failures: int, state: BreakerState) -> None:
    """Half of twenty calls open it; a little less does not."""
    policy = TripPolicy(minimum_calls=20, failure_rate=0.5)
    breaker = make(FakeClock(), policy=policy, failure_threshold=10**6)
    for _ in range(20 - failures):
        succeed(breaker)
    for _ in range(failures):
        fail(breaker)
    assert breaker.snapshot().state is state


def test_a_failure_rate_says_nothing_about_few_calls() -> None:
    """Nineteen failures of nineteen calls stay below the minimum volume."""
    breaker = make(FakeClock(), policy=TripPolicy(minimum_calls=20), failure_threshold=10**6)
    for _ in range(19):
        fail(breaker)
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_old_failures_leave_the_window() -> None:
    """What happened longer ago than the window does not count."""
    clock = FakeClock()
    breaker = make(clock, policy=TripPolicy(window_seconds=10, minimum_calls=20), failure_threshold=10**6)
    for _ in range(19):
        fail(breaker)
    clock.advance(11)
    succeed(breaker)
    fail(breaker)
    assert breaker.snapshot().state is BreakerState.CLOSED
    assert breaker.snapshot().failure_rate == 0.5


def test_slow_calls_open_it_inside_one_window() -> None:
    """Answers that come too late are a failing peer's too; the minimum volume of them takes less than the window."""
    clock = FakeClock()
    policy = TripPolicy(window_seconds=20, minimum_calls=10, slow_call_seconds=1.0, slow_call_rate=0.8)
    breaker = make(clock, policy=policy)
    began = clock()
    for _ in range(9):
        settle_after(clock, breaker, 1.0)
    assert breaker.snapshot().state is BreakerState.CLOSED
    settle_after(clock, breaker, 1.0)
    assert (breaker.snapshot().state, breaker.snapshot().cause) == (BreakerState.OPEN, Cause.SLOW_CALLS)
    assert clock() - began <= policy.window_seconds


def test_calls_that_are_just_quick_enough_or_too_seldom_slow_do_not_open_it() -> None:
    """Neither a thousand at 0.9 s nor seven slow ones in ten do."""
    clock = FakeClock()
    policy = TripPolicy(window_seconds=60, minimum_calls=10, slow_call_seconds=1.0, slow_call_rate=0.8)
    breaker = make(clock, policy=policy)
    for _ in range(1000):
        settle_after(clock, breaker, 0.9)
    for _ in range(100):
        for step in range(10):
            settle_after(clock, breaker, 2.0 if step >= 3 else 0.1)
    assert breaker.snapshot().state is BreakerState.CLOSED


async def test_a_thousand_clients_that_cancel_never_open_it() -> None:
    """Real tasks, really cancelled, under the most suspicious policy."""
    breaker = make(FakeClock(), failure_threshold=1, policy=TripPolicy(minimum_calls=1, failure_rate=0.01))

    async def call() -> None:
        with breaker.guard():
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(call()) for _ in range(1000)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert (breaker.snapshot().state, breaker.snapshot().times_opened) == (BreakerState.CLOSED, 0)


def test_the_back_off_grows_with_jitter_and_never_beyond_the_timeout() -> None:
    """Each open time lies in the upper half of a doubling back-off, capped at ``timeout``."""
    clock = FakeClock()
    breaker = opened(clock, timeout=10, first_open_seconds=1)
    waits = []
    for _ in range(40):
        wait = breaker.snapshot().retry_after
        assert wait is not None
        waits.append(wait)
        clock.advance(wait)
        fail(breaker)
    expected = [min(10.0, 2.0**step) for step in range(40)]
    assert all(top / 2 <= wait <= top for wait, top in zip(waits, expected, strict=True))
    assert len(set(waits)) > 30


def test_a_recovery_makes_the_back_off_short_again() -> None:
    """How often probes failed in the last outage says nothing about the next one."""
    clock = FakeClock()
    breaker = opened(clock, timeout=60, first_open_seconds=1)
    for _ in range(5):
        clock.advance(60)
        fail(breaker)
    clock.advance(60)
    succeed(breaker)
    fail(breaker)
    wait = breaker.snapshot().retry_after
    assert wait is not None
    assert wait <= 1.0


@pytest.mark.parametrize("neutral", [Overloaded("busy"), DeadlineExceeded("late"), asyncio.CancelledError()])
def test_a_neutral_outcome_between_failures_leaves_them_in_a_row(neutral: BaseException) -> None:
    """It is no success either."""
    breaker = make(FakeClock(), failure_threshold=2)
    fail(breaker)
    fail(breaker, neutral)
    fail(breaker)
    assert breaker.snapshot().state is BreakerState.OPEN


@pytest.mark.parametrize(
    "outcome", [asyncio.CancelledError(), DeadlineExceeded("late"), Overloaded("busy"), InvalidRequest("bad"),
                ValueError("our bug")], ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_says_nothing_bad_about_the_peer_never_opens_it(outcome: BaseException) -> None:
    """A thousand cancels, late callers, busy answers, bad requests or bugs of ours leave it closed."""
    breaker = make(FakeClock(), failure_threshold=1, policy=TripPolicy(minimum_calls=1, failure_rate=0.01))
    for _ in range(1000):
        fail(breaker, outcome)
    assert breaker.snapshot().state is BreakerState.CLOSED


@pytest.mark.parametrize("failure", [Unavailable("x"), Internal("x"), AttemptTimedOut("x"), GpuOutOfMemory("x")])
def test_the_peers_failures_count(failure: MeshError) -> None:
    """Each of them alone opens a breaker with threshold 1; no memory left is a failure, though it is an Overloaded."""
    breaker = make(FakeClock(), failure_threshold=1)
    fail(breaker, failure)
    assert breaker.snapshot().state is BreakerState.OPEN


def test_streams_that_all_break_off_after_their_first_frame_are_failures_in_a_row() -> None:
    """A beginning is no success of its own that would start the count again."""
    breaker = make(FakeClock(), failure_threshold=5)
    for _ in range(5):
        with pytest.raises(Unavailable), breaker.guard() as permit:
            permit.peer_answered()
            permit.peer_answered()
            raise Unavailable("broke off")
    assert breaker.snapshot().state is BreakerState.OPEN


@pytest.mark.parametrize("outcome", [None, asyncio.CancelledError()], ids=["read to its end", "left by its caller"])
def test_a_stream_that_was_answered_is_a_success_and_slow_only_if_its_first_frame_was(
    outcome: BaseException | None,
) -> None:
    """However long it goes on, and though its caller leaves it, it starts the count of failures again."""
    clock = FakeClock()
    policy = TripPolicy(minimum_calls=2, failure_rate=2.0, slow_call_seconds=1.0, slow_call_rate=0.1)
    breaker = make(clock, policy=policy, failure_threshold=2)
    fail(breaker)
    permit = breaker.guard()
    permit.peer_answered()
    clock.advance(5)
    settle(permit, outcome)
    assert (breaker.snapshot().state, breaker.snapshot().consecutive_failures) == (BreakerState.CLOSED, 0)


def test_transitions_are_told_with_their_cause_and_reason() -> None:
    """Whoever listens hears each change once, and the status keeps the last one's."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=1, timeout=1)
    assert (breaker.snapshot().cause, breaker.snapshot().reason) == (None, "")
    heard: list[Transition] = []
    breaker.listener = heard.append
    fail(breaker)
    clock.advance(1)
    fail(breaker)
    breaker.peer_is_serving()
    succeed(breaker)
    closed, half_open, is_open = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
    assert heard == [
        Transition(closed, is_open, Cause.CONSECUTIVE_FAILURES, "1 consecutive failures"),
        Transition(is_open, half_open, Cause.BACKOFF_OVER, "back-off is over"),
        Transition(half_open, is_open, Cause.PROBE_FAILED, "probe was answered with failure"),
        Transition(is_open, half_open, Cause.PEER_SERVING, "health probe says SERVING"),
        Transition(half_open, closed, Cause.PROBE_SUCCEEDED, "probe succeeded"),
    ]
    assert (breaker.snapshot().cause, breaker.snapshot().reason) == (Cause.PROBE_SUCCEEDED, "probe succeeded")


def when_it_opens(share: float, *, failure_threshold: int = 5, seconds: float = 60.0) -> tuple[int, float] | None:
    """Calls and seconds until a breaker with its default policy opens, at 10 calls/s of which ``share`` fail."""
    clock, rng = FakeClock(), random.Random(3)
    breaker = CircuitBreaker(failure_threshold, clock=clock)
    began = clock()
    for call in range(1, int(seconds * 10) + 1):
        clock.advance(0.1)
        if rng.random() < share:
            fail(breaker)
        else:
            succeed(breaker)
        if breaker.snapshot().state is BreakerState.OPEN:
            return call, clock() - began
    return None


def test_it_stays_closed_when_one_call_in_twenty_fails() -> None:
    """Ten minutes at 5 % open it neither by its rate nor by chance."""
    assert when_it_opens(0.05, seconds=600) is None


@pytest.mark.parametrize("failure_threshold", [5, 10**6], ids=["both signs", "rate alone"])
def test_it_opens_within_one_window_when_most_calls_fail(failure_threshold: int) -> None:
    """At 60 % it takes no longer than the ten seconds that its rates look back."""
    opening = when_it_opens(0.6, failure_threshold=failure_threshold)
    assert opening is not None
    assert opening[1] <= TripPolicy().window_seconds


def test_it_opens_by_the_threshold_when_every_call_fails() -> None:
    """At 100 % the fifth call is the last one that leaves."""
    opening = when_it_opens(1.0)
    assert opening is not None
    assert opening[0] == 5


@pytest.mark.parametrize("arguments", [{"failure_threshold": 0}, {"timeout": 0}])
def test_nonsense_is_refused(arguments: dict[str, float]) -> None:
    """A breaker that could never open or never close is not made."""
    with pytest.raises(ValueError):
        CircuitBreaker(**arguments)  # type: ignore[arg-type]
