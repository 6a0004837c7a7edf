"""How the circuit breaker finds the way back: probes, and results that come late."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from mesh.errors import (
    Cancelled,
    CircuitOpen,
    DeadlineExceeded,
    InvalidRequest,
    MeshError,
    Overloaded,
    Unavailable,
)
from mesh.resilience import BreakerState, Cause, CircuitBreaker, Transition
from mesh.testing import FakeClock
from tests.unit.mesh.breaker_calls import fail, make, opened, settle, succeed


def admits(breaker: CircuitBreaker) -> bool:
    """Whether it is available now; asked anew each time, which a property does not look like."""
    return breaker.available


class YieldingClock(FakeClock):
    """Lets another thread run whenever the time is asked for, so that a missing lock shows."""

    def __call__(self) -> float:
        """The time in seconds."""
        os.sched_yield()
        return super().__call__()


def test_exactly_one_of_a_thousand_callers_in_threads_probes() -> None:
    """Half-open lets one through, however many threads ask at once."""
    clock = YieldingClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)
    admitted: list[int] = []
    barrier = threading.Barrier(50)

    def ask() -> None:
        barrier.wait()
        for _ in range(20):
            try:
                breaker.guard()
            except CircuitOpen:
                continue
            admitted.append(1)

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 1


async def test_exactly_one_of_a_thousand_tasks_probes_and_the_others_are_told_to_wait() -> None:
    """While its answer is awaited nobody else gets through; when it has come, everybody does."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)
    answer = asyncio.Event()
    probes = 0

    async def call() -> None:
        nonlocal probes
        with breaker.guard():
            probes += 1
            await answer.wait()

    tasks = [asyncio.create_task(call()) for _ in range(1000)]
    await asyncio.sleep(0)
    assert probes == 1
    answer.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, CircuitOpen) for result in results) == 999
    await asyncio.gather(*(call() for _ in range(1000)))
    assert probes == 1001


async def test_a_probe_whose_task_is_cancelled_frees_its_place_for_the_next_caller() -> None:
    """Half-open does not last for ever because one client went away."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)

    async def probe() -> None:
        with breaker.guard():
            await asyncio.Event().wait()

    task = asyncio.create_task(probe())
    await asyncio.sleep(0)
    assert not admits(breaker)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert breaker.snapshot().state is BreakerState.HALF_OPEN
    assert admits(breaker)
    succeed(breaker)
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_a_probe_that_succeeds_closes_it_and_one_that_fails_opens_it_for_longer() -> None:
    """The way back, and the back-off that grows."""
    clock = FakeClock()
    breaker = opened(clock, timeout=60, first_open_seconds=1)
    clock.advance(1)
    fail(breaker)
    second = breaker.snapshot().retry_after
    assert second is not None
    assert 1.0 <= second <= 2.0
    clock.advance(second)
    succeed(breaker)
    assert breaker.snapshot().state is BreakerState.CLOSED


@pytest.mark.parametrize(
    "neutral", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), ValueError("our bug"),
                DeadlineExceeded("the caller's"), Cancelled("gone"), CircuitOpen("another hop's")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_neutral_outcome_frees_the_probe_and_moves_nothing(neutral: BaseException) -> None:
    """A cancelled or uncounted probe leaves half-open with a free place."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)
    fail(breaker, neutral)
    assert breaker.snapshot().state is BreakerState.HALF_OPEN
    succeed(breaker)
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_a_busy_answer_fails_a_probe() -> None:
    """A peer that cannot take one call has not shown that it is well."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)
    fail(breaker, Overloaded("busy"))
    assert breaker.snapshot().state is BreakerState.OPEN


def test_a_bad_request_proves_a_probed_peer_alive() -> None:
    """Whoever answers INVALID_ARGUMENT is up."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)
    fail(breaker, InvalidRequest("bad"))
    assert breaker.snapshot().state is BreakerState.CLOSED


LATE = pytest.mark.parametrize("late", [None, Unavailable("late")], ids=["success", "failure"])


@LATE
def test_a_late_result_of_an_older_epoch_neither_closes_nor_fails_a_probe(late: MeshError | None) -> None:
    """A call let in before the breaker opened leaves the probe its place."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=1, timeout=1)
    old = breaker.guard()
    fail(breaker)
    clock.advance(1)
    probe = breaker.guard()
    settle(old, late)
    assert breaker.snapshot().state is BreakerState.HALF_OPEN
    with pytest.raises(CircuitOpen):
        breaker.guard()
    settle(probe)
    assert breaker.snapshot().state is BreakerState.CLOSED


@LATE
def test_a_late_result_of_an_older_epoch_does_not_move_an_open_breaker(late: MeshError | None) -> None:
    """It neither closes it nor keeps it open for longer."""
    breaker = make(FakeClock(), failure_threshold=1)
    old = breaker.guard()
    fail(breaker)
    before = breaker.snapshot()
    settle(old, late)
    assert breaker.snapshot() == before


def test_late_failures_of_an_older_epoch_do_not_open_it_again() -> None:
    """A hundred calls that were under way when it opened fail after it has closed: they tell of the old days."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=2, timeout=1)
    old = [breaker.guard() for _ in range(100)]
    fail(breaker)
    fail(breaker)
    clock.advance(1)
    succeed(breaker)
    for permit in old:
        settle(permit, Unavailable("late"))
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.consecutive_failures, snapshot.failure_rate) == (BreakerState.CLOSED, 0, 0.0)


def test_a_late_success_of_an_older_epoch_does_not_start_the_count_again() -> None:
    """The failures in a row since it closed stay in a row."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=2, timeout=1)
    old = breaker.guard()
    fail(breaker)
    fail(breaker)
    clock.advance(1)
    succeed(breaker)
    fail(breaker)
    settle(old)
    fail(breaker)
    assert breaker.snapshot().state is BreakerState.OPEN


def test_a_probe_of_an_older_epoch_does_not_settle_the_next_one() -> None:
    """A probe that is overtaken by a whole new opening neither closes the breaker nor frees the new probe's place."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)
    overtaken = breaker.guard()
    overtaken.peer_answered()
    fail(breaker)
    clock.advance(1)
    probe = breaker.guard()
    settle(overtaken)
    assert breaker.snapshot().state is BreakerState.HALF_OPEN
    assert not admits(breaker)
    settle(probe)
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_the_first_frame_of_an_older_epochs_stream_does_not_settle_the_probe() -> None:
    """A stream let in before the breaker opened, and answered only now, is no probe."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=1, timeout=1)
    old = breaker.guard()
    fail(breaker)
    clock.advance(1)
    probe = breaker.guard()
    old.peer_answered()
    assert breaker.snapshot().state is BreakerState.HALF_OPEN
    settle(probe)
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_the_health_probe_opens_the_way_early() -> None:
    """SERVING ends the wait; it closes nothing by itself."""
    breaker = opened(FakeClock(), timeout=3600, first_open_seconds=3600)
    breaker.peer_is_serving()
    assert breaker.snapshot().state is BreakerState.HALF_OPEN
    succeed(breaker)
    breaker.peer_is_serving()
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_the_first_frame_of_a_stream_settles_a_probe_and_a_later_failure_still_counts() -> None:
    """Others need not wait for the end of a long answer, and a stream that breaks is the peer's failure."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    clock.advance(1)
    with breaker.guard() as permit:
        permit.peer_answered()
        assert breaker.snapshot().state is BreakerState.CLOSED
    with pytest.raises(Unavailable), breaker.guard() as permit:
        permit.peer_answered()
        raise Unavailable("broke off")
    assert breaker.snapshot().state is BreakerState.OPEN


def test_available_says_whether_a_call_would_be_let_through_and_moves_nothing() -> None:
    """True while closed, when the back-off is over and while no probe is under way; asking takes no place."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=1, timeout=1)
    moves: list[Transition] = []
    assert admits(breaker)
    fail(breaker)
    breaker.listener = moves.append
    assert not admits(breaker)
    clock.advance(1)
    assert all(admits(breaker) for _ in range(10))
    assert (breaker.snapshot().state, moves) == (BreakerState.OPEN, [])
    probe = breaker.guard()
    assert not admits(breaker)
    settle(probe, asyncio.CancelledError())
    assert admits(breaker)
    assert [move.cause for move in moves] == [Cause.BACKOFF_OVER]


def test_a_call_that_proves_nothing_passes_by_without_taking_the_probes_place() -> None:
    """It is refused while the breaker is open, and settles nothing when it is not."""
    clock = FakeClock()
    breaker = opened(clock, timeout=1)
    with pytest.raises(CircuitOpen):
        breaker.pass_by()
    clock.advance(1)
    with breaker.pass_by():
        pass
    succeed(breaker)
    assert breaker.snapshot().state is BreakerState.CLOSED
