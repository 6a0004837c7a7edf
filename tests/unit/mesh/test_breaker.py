"""What the circuit breaker promises, on a clock that only the test moves."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.errors import (
    CircuitOpen,
    DeadlineExceeded,
    GpuOutOfMemory,
    Internal,
    InvalidRequest,
    MeshError,
    Overloaded,
    Unavailable,
)
from mesh.resilience import BreakerState, CircuitBreaker, TripPolicy
from mesh.testing import FakeClock

NEVER_BY_RATE = TripPolicy(minimum_calls=10**9)


def make(clock: FakeClock, policy: TripPolicy = NEVER_BY_RATE, **arguments: Any) -> CircuitBreaker:
    """A breaker on the test's clock with fixed jitter."""
    return CircuitBreaker(clock=clock, rng=random.Random(7), policy=policy, **arguments)


def fail(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """One call that ends with ``error``."""
    with pytest.raises(BaseException), breaker.guard():  # noqa: B017 - whatever is raised comes back out
        raise error or Unavailable("down")


def succeed(breaker: CircuitBreaker) -> None:
    """One call that is answered."""
    with breaker.guard():
        pass


def opened(clock: FakeClock, **arguments: Any) -> CircuitBreaker:
    """A breaker that has just opened."""
    breaker = make(clock, failure_threshold=1, **arguments)
    fail(breaker)
    return breaker


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


def test_slow_calls_open_it() -> None:
    """Answers that come too late are a failing peer's too."""
    clock = FakeClock()
    breaker = make(clock, policy=TripPolicy(minimum_calls=10, slow_call_seconds=1.0, slow_call_rate=0.8))
    for _ in range(10):
        with breaker.guard():
            clock.advance(0.9 if breaker.snapshot().failure_rate else 1.0)
    snapshot = breaker.snapshot()
    assert snapshot.state is BreakerState.OPEN
    assert "slow" in snapshot.reason


def test_exactly_one_of_a_thousand_waiting_callers_probes() -> None:
    """Half-open lets one through, however many threads ask at once."""
    clock = FakeClock()
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


@pytest.mark.parametrize(
    "neutral", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), ValueError("our bug"),
                DeadlineExceeded("the caller's")], ids=lambda error: type(error).__name__,
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


@pytest.mark.parametrize("failure", [Unavailable("x"), Internal("x"), GpuOutOfMemory("x")])
def test_the_peers_failures_count(failure: MeshError) -> None:
    """Each of them alone opens a breaker with threshold 1."""
    breaker = make(FakeClock(), failure_threshold=1)
    fail(breaker, failure)
    assert breaker.snapshot().state is BreakerState.OPEN


@pytest.mark.parametrize("late", [None, Unavailable("late")], ids=["success", "failure"])
def test_a_late_result_of_an_older_epoch_is_ignored(late: MeshError | None) -> None:
    """A call let in before the breaker opened neither closes it nor fails its probe."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=1, timeout=1)
    old = breaker.guard()
    fail(breaker)
    clock.advance(1)
    probe = breaker.guard()
    old.__exit__(type(late) if late else None, late, None)
    assert breaker.snapshot().state is BreakerState.HALF_OPEN
    with pytest.raises(CircuitOpen):
        breaker.guard()
    probe.__exit__(None, None, None)
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


def test_transitions_are_told_with_their_reason() -> None:
    """Whoever listens hears each change once."""
    clock = FakeClock()
    breaker = make(clock, failure_threshold=1, timeout=1)
    heard: list[tuple[str, str]] = []
    breaker.listener = lambda moved: heard.append((f"{moved.before.value}>{moved.after.value}", moved.reason))
    fail(breaker)
    clock.advance(1)
    succeed(breaker)
    assert heard == [
        ("closed>open", "1 consecutive failures"),
        ("open>half_open", "back-off is over"),
        ("half_open>closed", "probe succeeded"),
    ]


@pytest.mark.parametrize("arguments", [{"failure_threshold": 0}, {"timeout": 0}])
def test_nonsense_is_refused(arguments: dict[str, float]) -> None:
    """A breaker that could never open or never close is not made."""
    with pytest.raises(ValueError):
        CircuitBreaker(**arguments)  # type: ignore[arg-type]


class BreakerAgainstItsPromises(RuleBasedStateMachine):
    """Any order of calls, outcomes, time and health against the few sentences that the breaker promises."""

    TIMEOUT = 30.0
    THRESHOLD = 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.breaker = make(self.clock, failure_threshold=self.THRESHOLD, timeout=self.TIMEOUT)
        self.pending: list[tuple[object, int]] = []
        self.changes = 0
        self.breaker.listener = lambda *_: setattr(self, "changes", self.changes + 1)
        self.failures_in_a_row = 0

    @rule()
    def begin(self) -> None:
        """A call is admitted unless the breaker is open or probing."""
        state = self.breaker.snapshot().state
        probing = state is BreakerState.HALF_OPEN and any(epoch == self.changes for _, epoch in self.pending)
        wait = self.breaker.snapshot().retry_after
        if probing or (wait is not None and wait > 0):
            with pytest.raises(CircuitOpen) as refusal:
                self.breaker.guard()
            assert refusal.value.retry_after is not None
            assert 0 < refusal.value.retry_after <= self.TIMEOUT
        else:
            self.pending.append((self.breaker.guard(), self.changes))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "failure", "cancelled", "busy", "bug"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        """A call ends; only an answer of this epoch moves anything."""
        index = data.draw(st.integers(0, len(self.pending) - 1))
        permit, epoch = self.pending.pop(index)
        before, changes = self.breaker.snapshot().state, self.changes
        error = {
            "ok": None, "failure": Unavailable("x"), "cancelled": asyncio.CancelledError(),
            "busy": Overloaded("x"), "bug": ValueError("x"),
        }[outcome]  # fmt: skip
        permit.__exit__(type(error) if error else None, error, None)  # type: ignore[attr-defined]
        after = self.breaker.snapshot().state
        if epoch != changes:
            assert after is before
        elif before is BreakerState.HALF_OPEN:
            expected = {"ok": BreakerState.CLOSED, "failure": BreakerState.OPEN, "busy": BreakerState.OPEN}
            assert after is expected.get(outcome, BreakerState.HALF_OPEN)
        else:
            self._count(outcome)
            tripped = self.failures_in_a_row >= self.THRESHOLD
            assert after is (BreakerState.OPEN if tripped else BreakerState.CLOSED)
        if after is not before:
            self.failures_in_a_row = 0

    def _count(self, outcome: str) -> None:
        if outcome == "failure":
            self.failures_in_a_row += 1
        elif outcome == "ok":
            self.failures_in_a_row = 0

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        """Time alone closes nothing."""
        self.clock.advance(seconds)

    @rule()
    def health_says_serving(self) -> None:
        """An open breaker becomes half-open; no other moves."""
        before = self.breaker.snapshot().state
        self.breaker.peer_is_serving()
        expected = BreakerState.HALF_OPEN if before is BreakerState.OPEN else before
        assert self.breaker.snapshot().state is expected

    @invariant()
    def never_open_for_longer_than_its_timeout(self) -> None:
        """The wait that it names is at most ``timeout``."""
        wait = self.breaker.snapshot().retry_after
        assert wait is None or wait <= self.TIMEOUT


TestBreakerAgainstItsPromises = BreakerAgainstItsPromises.TestCase
TestBreakerAgainstItsPromises.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
