"""A circuit breaker: stop asking a peer that fails, and find out cheaply when it is well again.

::

              failures, failure rate or slow calls
    CLOSED ───────────────────────────────────────▶ OPEN
       ▲                                           │   ▲
       │ probe succeeds      back-off is over, or  │   │ probe fails: a longer back-off
       │                     the health probe says │   │
       └──────────── HALF_OPEN ◀─── SERVING ───────┘   │
                          └────────────────────────────┘

Only an answer says something about the peer. A cancelled call, the caller's own expired deadline and our own bugs are
neutral: they free a probe's place and move nothing. Every change of state begins a new epoch; a call that was let in
during an older one cannot move the newer.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from types import TracebackType

from mesh.clock import Clock, monotonic
from mesh.errors import BreakerEffect, CircuitOpen, MeshError
from mesh.resilience.window import SlidingWindow


class BreakerState(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Cause(Enum):
    """Why a breaker moved: few and fixed, so that they can label a metric."""

    CONSECUTIVE_FAILURES = "consecutive_failures"
    FAILURE_RATE = "failure_rate"
    SLOW_CALLS = "slow_calls"
    PROBE_FAILED = "probe_failed"
    PROBE_SUCCEEDED = "probe_succeeded"
    BACKOFF_OVER = "backoff_over"
    PEER_SERVING = "peer_serving"


@dataclass(frozen=True, slots=True, kw_only=True)
class TripPolicy:
    """When a closed breaker opens by rates, besides by consecutive failures.

    Attributes:
        window_seconds: how far back the rates look.
        minimum_calls: fewer calls in the window than this say nothing.
        failure_rate: share of failures that opens it; above 1 never does.
        slow_call_seconds: a call at least this long is slow; None counts none.
        slow_call_rate: share of slow calls that opens it.
    """

    window_seconds: float = 10.0
    minimum_calls: int = 20
    failure_rate: float = 0.5
    slow_call_seconds: float | None = None
    slow_call_rate: float = 0.8


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """A breaker's state at one moment, for status pages and tests.

    ``cause`` and ``reason`` say why it is in this state, for machines and for people; None and empty before any move.
    """

    state: BreakerState
    seconds_in_state: float
    consecutive_failures: int
    failure_rate: float
    times_opened: int
    retry_after: float | None
    reason: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a breaker's state."""

    before: BreakerState
    after: BreakerState
    cause: Cause
    reason: str


Listener = Callable[[Transition], None]
"""Called on each change of state, with the breaker's lock held: it must be quick and must not ask the breaker."""


class CircuitBreaker:
    """Guards calls to one peer. Safe to share between threads and tasks; it never waits.

    Args:
        failure_threshold: consecutive failures that open it.
        timeout: the longest time in seconds that it stays open before a probe is let through.
        policy: when rates open it.
        first_open_seconds: how long it stays open the first time; doubles with each failed probe up to ``timeout``.
        name: what it guards, for errors.
        clock: source of time.
        rng: source of jitter; each open time is drawn from the upper half of its back-off.
    """

    def __init__(  # noqa: PLR0913 - all but two are for tests and for the hop's composition
        self,
        failure_threshold: int = 5,
        timeout: float = 60.0,
        *,
        policy: TripPolicy | None = None,
        first_open_seconds: float = 1.0,
        name: str = "",
        clock: Clock = monotonic,
        rng: random.Random | None = None,
    ) -> None:
        if failure_threshold < 1 or timeout <= 0:
            raise ValueError("failure_threshold must be at least 1 and timeout above 0 seconds")
        self.name = name
        self.listener: Listener | None = None
        self._policy = policy or TripPolicy()
        self._failure_threshold = failure_threshold
        self._timeout = timeout
        self._first_open = min(first_open_seconds, timeout)
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads probes over time; nothing secret
        self._window = SlidingWindow(self._policy.window_seconds, clock)
        self._lock = threading.RLock()  # see mesh.resilience
        self._state = BreakerState.CLOSED
        self._since = clock()
        self._epoch = 0
        self._consecutive = 0
        self._failed_probes = 0
        self._times_opened = 0
        self._open_until = 0.0
        self._probing = False
        self._reason = ""
        self._cause: Cause | None = None

    @property
    def available(self) -> bool:
        """Whether ``guard`` would let a call through now. Asking takes no probe's place and moves nothing."""
        with self._lock:
            return self._admits()

    def guard(self) -> Permit:
        """Let one call through, as a context manager that reports how it ended.

        Raises:
            CircuitOpen: at once, with ``retry_after``, while the breaker is open or another call is probing.
        """
        with self._lock:
            if not self._admits():
                raise self._rejection()
            if self._state is BreakerState.OPEN:
                self._move(BreakerState.HALF_OPEN, Cause.BACKOFF_OVER, "back-off is over")
            self._probing = self._state is BreakerState.HALF_OPEN
            return Permit(self, self._epoch, self._clock())

    def require(self) -> None:
        """Raise CircuitOpen where ``guard`` would, and take nothing."""
        with self._lock:
            if not self._admits():
                raise self._rejection()

    def pass_by(self) -> AbstractContextManager[None]:
        """Let a call through that says nothing about the peer's work: it takes no probe's place and settles nothing.

        Raises:
            CircuitOpen: while the breaker is open.
        """
        with self._lock:
            if self._state is BreakerState.OPEN and self._clock() < self._open_until:
                raise self._rejection()
        return nullcontext()

    def peer_is_serving(self) -> None:
        """Tell it that the peer's health says SERVING: an open breaker lets a probe through now.

        The back-off begins anew: a peer that has come back is not the one whose probes failed.
        """
        with self._lock:
            if self._state is BreakerState.OPEN:
                self._failed_probes = 0
                self._move(BreakerState.HALF_OPEN, Cause.PEER_SERVING, "health probe says SERVING")

    def end_back_off(self) -> None:
        """Become half-open where the back-off is over, although nobody calls: what is told of it is true then.

        For whoever is about to tell. Callers need it not: the next one would find out.
        """
        with self._lock:
            if self._state is BreakerState.OPEN and self._admits():
                self._move(BreakerState.HALF_OPEN, Cause.BACKOFF_OVER, "back-off is over")

    def snapshot(self) -> BreakerSnapshot:
        """The state now."""
        with self._lock:
            is_open = self._state is BreakerState.OPEN
            return BreakerSnapshot(
                state=self._state,
                seconds_in_state=self._clock() - self._since,
                consecutive_failures=self._consecutive,
                failure_rate=self._window.counts().failure_rate,
                times_opened=self._times_opened,
                retry_after=max(0.0, self._open_until - self._clock()) if is_open else None,
                reason=self._reason,
                cause=self._cause,
            )

    def _admits(self) -> bool:
        if self._state is BreakerState.OPEN:
            return self._clock() >= self._open_until
        return not self._probing

    def _peer_answered(self, epoch: int) -> None:
        with self._lock:
            if epoch == self._epoch and self._state is BreakerState.HALF_OPEN:
                self._settle_probe(BreakerEffect.SUCCESS)

    def _settle(self, epoch: int, effect: BreakerEffect, seconds: float) -> None:
        with self._lock:
            if epoch != self._epoch:
                return
            if self._state is BreakerState.HALF_OPEN:
                self._settle_probe(effect)
            else:
                self._settle_call(effect, seconds)

    def _settle_probe(self, effect: BreakerEffect) -> None:
        self._probing = False
        if effect is BreakerEffect.SUCCESS:
            self._failed_probes = 0
            self._move(BreakerState.CLOSED, Cause.PROBE_SUCCEEDED, "probe succeeded")
        elif effect in (BreakerEffect.FAILURE, BreakerEffect.BUSY):
            self._failed_probes += 1
            self._open(Cause.PROBE_FAILED, f"probe was answered with {effect.value}")

    def _settle_call(self, effect: BreakerEffect, seconds: float) -> None:
        if effect in (BreakerEffect.NEUTRAL, BreakerEffect.BUSY):
            return
        failed = effect is BreakerEffect.FAILURE
        slow_after = self._policy.slow_call_seconds
        self._consecutive = self._consecutive + 1 if failed else 0
        self._window.record(failed=failed, slow=slow_after is not None and seconds >= slow_after)
        counts = self._window.counts()
        if self._consecutive >= self._failure_threshold:
            self._open(Cause.CONSECUTIVE_FAILURES, f"{self._consecutive} consecutive failures")
        elif counts.calls >= self._policy.minimum_calls:
            if counts.failure_rate >= self._policy.failure_rate:
                self._open(Cause.FAILURE_RATE, f"{counts.failure_rate:.0%} of {counts.calls} calls failed")
            elif counts.slow_rate >= self._policy.slow_call_rate:
                self._open(Cause.SLOW_CALLS, f"{counts.slow_rate:.0%} of {counts.calls} calls were slow")

    def _open(self, cause: Cause, reason: str) -> None:
        # The exponent is capped because 2.0**1024 overflows long after the result stopped mattering.
        backoff = min(self._timeout, self._first_open * 2.0 ** min(self._failed_probes, 32))
        self._open_until = self._clock() + backoff * self._rng.uniform(0.5, 1.0)
        self._times_opened += 1
        self._move(BreakerState.OPEN, cause, reason)

    def _move(self, state: BreakerState, cause: Cause, reason: str) -> None:
        before, self._state = self._state, state
        self._since = self._clock()
        self._epoch += 1
        self._cause, self._reason = cause, reason
        self._probing = False
        if state is BreakerState.CLOSED:
            self._consecutive = 0
            self._window.clear()
        if self.listener is not None:
            self.listener(Transition(before, state, cause, reason))

    def _rejection(self) -> CircuitOpen:
        # While another call probes, its answer is expected within a moment; no better figure is known.
        is_open = self._state is BreakerState.OPEN
        wait = self._open_until - self._clock() if is_open else self._first_open
        why = "it is left alone for a moment" if is_open else "another request is trying whether it is back"
        return CircuitOpen(
            f"The {self.name or 'peer'} service has failed repeatedly ({self._reason}); {why}. "
            "Try again after the given time.",
            hop=self.name or None,
            retry_after=max(wait, 0.05),
        )


class Permit:
    """One call let through. Leaving it settles the call, whatever way it is left."""

    __slots__ = ("_answered_after", "_breaker", "_epoch", "_started")

    def __init__(self, breaker: CircuitBreaker, epoch: int, started: float) -> None:
        self._breaker = breaker
        self._epoch = epoch
        self._started = started
        self._answered_after: float | None = None

    def peer_answered(self) -> None:
        """The first frame of a stream arrived: a probe has succeeded without waiting for the last one.

        Any other stream is settled once, by its end, so that streams which all break off count as failures in a row.
        It is slow when its first frame was: a long answer is not a slow one. One that its caller leaves was answered.
        """
        if self._answered_after is None:
            self._answered_after = self._breaker._clock() - self._started
            self._breaker._peer_answered(self._epoch)

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            effect = BreakerEffect.SUCCESS
        elif isinstance(error, MeshError):
            effect = error.breaker
        else:
            # CancelledError and GeneratorExit are not Exceptions, and anything else untyped is our own bug.
            effect = BreakerEffect.NEUTRAL
        seconds = self._answered_after
        if seconds is None:
            seconds = self._breaker._clock() - self._started
        elif effect is BreakerEffect.NEUTRAL:
            effect = BreakerEffect.SUCCESS
        self._breaker._settle(self._epoch, effect, seconds)
