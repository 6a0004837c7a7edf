"""The circuit breaker against a simple model of its promises, through any order of events that hypothesis thinks of."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.errors import (
    AttemptTimedOut,
    BreakerEffect,
    Cancelled,
    CircuitOpen,
    DeadlineExceeded,
    GpuOutOfMemory,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from mesh.resilience import BreakerState, Cause, CircuitBreaker, Transition, TripPolicy
from mesh.resilience.breaker import Permit
from mesh.testing import FakeClock

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN

THRESHOLD = 4
TIMEOUT = 3.0
FIRST_OPEN = 1.0
WINDOW = 10
"""Seconds: with ten buckets, each is one second, so that the model can count whole seconds."""
MINIMUM = 6
RATE = 0.5
SLOW = 2.0
SLOW_RATE = 0.8

ENDS: dict[BreakerEffect, tuple[BaseException | None, ...]] = {
    BreakerEffect.SUCCESS: (None, InvalidRequest("x"), NotFound("x")),
    BreakerEffect.FAILURE: (Unavailable("x"), Internal("x"), AttemptTimedOut("x"), GpuOutOfMemory("x")),
    BreakerEffect.BUSY: (Overloaded("x"),),
    BreakerEffect.NEUTRAL: (
        DeadlineExceeded("x"), Cancelled("x"), CircuitOpen("x"), asyncio.CancelledError(), GeneratorExit(),
        KeyboardInterrupt(), ValueError("x"),
    ),
}  # fmt: skip
"""Every way for a call to end, by what it says about the peer: the table of errors, written down once more."""
ENDINGS = st.sampled_from(list(ENDS)).flatmap(
    lambda effect: st.sampled_from([(effect, error) for error in ENDS[effect]])
)
LEGAL_MOVES = {
    Cause.CONSECUTIVE_FAILURES: (CLOSED, OPEN),
    Cause.FAILURE_RATE: (CLOSED, OPEN),
    Cause.SLOW_CALLS: (CLOSED, OPEN),
    Cause.BACKOFF_OVER: (OPEN, HALF_OPEN),
    Cause.PEER_SERVING: (OPEN, HALF_OPEN),
    Cause.PROBE_FAILED: (HALF_OPEN, OPEN),
    Cause.PROBE_SUCCEEDED: (HALF_OPEN, CLOSED),
}


@dataclass
class Call:
    """One call that was let in and has not ended."""

    permit: Permit
    epoch: int
    started: float
    answered_after: float | None = None


@dataclass
class Model:
    """The promises, as plainly as they can be written: lists that are counted anew each time."""

    state: BreakerState = CLOSED
    epoch: int = 0
    probing: bool = False
    in_a_row: int = 0
    failed_probes: int = 0
    open_until: float = 0.0
    outcomes: list[tuple[int, bool, bool]] = field(default_factory=list)

    def admits(self, now: float) -> bool:
        """Whether one more call gets in."""
        return {CLOSED: True, HALF_OPEN: not self.probing, OPEN: now >= self.open_until}[self.state]

    def move(self, state: BreakerState) -> None:
        """A new state is a new epoch, and a closed breaker has no past."""
        self.state, self.epoch, self.probing = state, self.epoch + 1, False
        if state is CLOSED:
            self.in_a_row, self.failed_probes, self.outcomes = 0, 0, []

    def settle(self, epoch: int, effect: BreakerEffect, seconds: float, now: float) -> None:
        """What the end of a call of that epoch changes."""
        if epoch != self.epoch:
            return
        if self.state is HALF_OPEN:
            self.probing = False
            if effect is BreakerEffect.SUCCESS:
                self.move(CLOSED)
            elif effect is not BreakerEffect.NEUTRAL:
                self.failed_probes += 1
                self.move(OPEN)
        elif effect in (BreakerEffect.SUCCESS, BreakerEffect.FAILURE):
            failed = effect is BreakerEffect.FAILURE
            self.in_a_row = self.in_a_row + 1 if failed else 0
            self.outcomes.append((int(now), failed, seconds >= SLOW))
            if self._trips(int(now)):
                self.move(OPEN)

    def _trips(self, now: int) -> bool:
        recent = [(failed, slow) for second, failed, slow in self.outcomes if second > now - WINDOW]
        failures, slow_ones = (sum(signs) for signs in zip(*recent, strict=True))
        enough = len(recent) >= MINIMUM
        by_rate = enough and (failures >= RATE * len(recent) or slow_ones >= SLOW_RATE * len(recent))
        return self.in_a_row >= THRESHOLD or by_rate


class BreakerAgainstItsModel(RuleBasedStateMachine):
    """Calls that overlap in any way, every way to end, time, and health."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        policy = TripPolicy(
            window_seconds=WINDOW, minimum_calls=MINIMUM, failure_rate=RATE, slow_call_seconds=SLOW,
            slow_call_rate=SLOW_RATE,
        )  # fmt: skip
        self.breaker = CircuitBreaker(
            THRESHOLD, TIMEOUT, policy=policy, first_open_seconds=FIRST_OPEN, clock=self.clock, rng=random.Random(1)
        )
        self.model = Model()
        self.calls: list[Call] = []
        self.moves: list[Transition] = []
        self.breaker.listener = self.moves.append

    @rule(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        """Calls arrive: each is let in exactly when the model says so, and refused with a time otherwise."""
        for _ in range(count):
            now = self.clock()
            assert self.breaker.available == self.model.admits(now)
            if self.model.admits(now):
                if self.model.state is OPEN:
                    self.model.move(HALF_OPEN)
                self.model.probing = self.model.state is HALF_OPEN
                self.calls.append(Call(self.breaker.guard(), self.model.epoch, now))
            else:
                with pytest.raises(CircuitOpen) as refusal:
                    self.breaker.guard()
                assert refusal.value.retry_after is not None
                assert 0 < refusal.value.retry_after <= TIMEOUT

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), ending=ENDINGS, count=st.integers(1, 5))
    def end(self, data: st.DataObject, ending: tuple[BreakerEffect, BaseException | None], count: int) -> None:
        """Calls end, in any order, now or long after the breaker has moved on; a neutral end moves nothing."""
        for _ in range(min(count, len(self.calls))):
            call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1), label="call"))
            effect, error = ending
            before = self.breaker.snapshot()
            if effect is BreakerEffect.NEUTRAL and call.answered_after is not None:
                effect = BreakerEffect.SUCCESS
            seconds = self.clock() - call.started if call.answered_after is None else call.answered_after
            call.permit.__exit__(type(error) if error else None, error, None)
            self._settle(call, effect, seconds)
            if effect is BreakerEffect.NEUTRAL:
                assert self.breaker.snapshot() == before

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def first_frame(self, data: st.DataObject) -> None:
        """A stream is answered: that is all a probe needs, and nothing else is settled by it."""
        call = self.calls[data.draw(st.integers(0, len(self.calls) - 1), label="call")]
        call.permit.peer_answered()
        if call.answered_after is None:
            call.answered_after = self.clock() - call.started
            if self.model.state is HALF_OPEN:
                self._settle(call, BreakerEffect.SUCCESS, call.answered_after)

    @rule(seconds=st.one_of(st.floats(0, 0.5), st.floats(0, 15)))
    def time_passes(self, seconds: float) -> None:
        """Time alone moves nothing: the next caller finds out."""
        before = self.breaker.snapshot().state
        self.clock.advance(seconds)
        assert self.breaker.snapshot().state is before

    @precondition(lambda self: self.model.state is OPEN and self.clock() < self.model.open_until - 1e-3)
    @rule(early=st.booleans())
    def the_back_off_passes(self, early: bool) -> None:
        """Not a moment before its end is anybody let in, and everybody may be at its end."""
        left = self.model.open_until - self.clock()
        self.clock.advance(left * 0.999 if early else left + 1e-6)
        assert self.breaker.available == (not early)

    @precondition(lambda self: self.model.state is CLOSED)
    @rule()
    def the_peer_dies(self) -> None:
        """As many calls as the threshold fail at once; those that are under way go on."""
        for _ in range(THRESHOLD):
            if self.model.state is CLOSED:
                call = Call(self.breaker.guard(), self.model.epoch, self.clock())
                error = Unavailable("x")
                call.permit.__exit__(type(error), error, None)
                self._settle(call, BreakerEffect.FAILURE, 0.0)
        assert self.breaker.snapshot().state is OPEN

    @precondition(lambda self: self.model.state is HALF_OPEN)
    @rule(ending=ENDINGS)
    def the_probe_ends(self, ending: tuple[BreakerEffect, BaseException | None]) -> None:
        """The one call that was let in, if any, ends in some way, whatever others are under way."""
        effect, error = ending
        for call in [call for call in self.calls if call.epoch == self.model.epoch]:
            self.calls.remove(call)
            call.permit.__exit__(type(error) if error else None, error, None)
            self._settle(call, effect, 0.0)

    @rule()
    def health_says_serving(self) -> None:
        """An open breaker becomes half-open, and its back-off begins anew; no other moves."""
        self.breaker.peer_is_serving()
        if self.model.state is OPEN:
            self.model.failed_probes = 0
            self.model.move(HALF_OPEN)

    @rule()
    def somebody_tells_of_it(self) -> None:
        """An open breaker whose back-off is over becomes half-open, as with the next caller; no other moves."""
        self.breaker.end_back_off()
        if self.model.state is OPEN and self.model.admits(self.clock()):
            self.model.move(HALF_OPEN)

    @rule()
    def a_call_passes_by(self) -> None:
        """What proves nothing takes no place; it is refused by an open breaker alone."""
        before = self.breaker.snapshot()
        if self.model.state is OPEN and self.clock() < self.model.open_until:
            with pytest.raises(CircuitOpen):
                self.breaker.pass_by()
        else:
            with self.breaker.pass_by():
                pass
        assert self.breaker.snapshot() == before

    def _settle(self, call: Call, effect: BreakerEffect, seconds: float) -> None:
        before = self.model.epoch
        self.model.settle(call.epoch, effect, seconds, self.clock())
        if self.model.epoch != before and self.model.state is OPEN:
            wait = self.breaker.snapshot().retry_after
            assert wait is not None
            back_off = min(TIMEOUT, FIRST_OPEN * 2.0**self.model.failed_probes)
            assert back_off / 2 - 1e-9 <= wait <= back_off + 1e-9
            self.model.open_until = self.clock() + wait

    @invariant()
    def it_is_where_the_model_is(self) -> None:
        """State, count and readiness, after every single event."""
        snapshot = self.breaker.snapshot()
        assert snapshot.state is self.model.state
        assert snapshot.consecutive_failures == self.model.in_a_row
        assert len(self.moves) == self.model.epoch
        if self.model.state is not OPEN or abs(self.clock() - self.model.open_until) > 1e-9:
            assert self.breaker.available == self.model.admits(self.clock())

    @invariant()
    def never_two_probes_at_once(self) -> None:
        """Of the calls under way, one at most was let in by the half-open breaker that now is."""
        if self.model.state is HALF_OPEN:
            probes = [call for call in self.calls if call.epoch == self.model.epoch]
            assert len(probes) == int(self.model.probing)
            assert self.breaker.available == (not probes)

    @invariant()
    def never_open_for_longer_than_its_timeout(self) -> None:
        """Nobody is told to wait longer, and after that time a caller is let in."""
        snapshot = self.breaker.snapshot()
        assert snapshot.retry_after is None or snapshot.retry_after <= TIMEOUT
        if snapshot.state is OPEN and snapshot.seconds_in_state >= TIMEOUT:
            assert self.breaker.available

    @invariant()
    def every_move_is_one_of_the_drawing(self) -> None:
        """Each cause belongs to one arrow, and the arrows make a path."""
        for move in self.moves[-3:]:
            assert LEGAL_MOVES[move.cause] == (move.before, move.after)
        for move, following in zip(self.moves, self.moves[1:], strict=False):
            assert move.after is following.before
        assert self.breaker.snapshot().cause is (self.moves[-1].cause if self.moves else None)


# The same examples each time: a red build has to be red again when it is looked into.
TestBreakerAgainstItsModel = BreakerAgainstItsModel.TestCase
TestBreakerAgainstItsModel.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
