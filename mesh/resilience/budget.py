"""A budget for retries: what helps against one lost call must not become the load that finishes a struggling peer."""

from __future__ import annotations

import threading

from mesh.clock import Clock, monotonic
from mesh.resilience.window import SlidingWindow


class RetryBudget:
    """Allows retries up to a share of the calls of the last seconds. Safe to share between threads; it never waits.

    In every window there are at most ``max(floor, ratio * calls)`` retries. So a peer of which every call fails sees
    at most ``1 + ratio`` times the offered load, and the calls that a dying replica had in flight are all retried,
    since a busy window has saved up for them. The floor lets a hop that is hardly used retry at all: it is a number of
    retries per window, so small that it burdens nobody.

    Args:
        ratio: retries per call.
        floor: retries that are allowed in a window however few its calls are.
        window_seconds: how far back calls and retries are counted.
        clock: source of time.
    """

    def __init__(
        self, ratio: float = 0.1, floor: int = 10, window_seconds: float = 10.0, clock: Clock = monotonic
    ) -> None:
        if ratio < 0 or floor < 0:
            raise ValueError("ratio and floor must not be negative")
        self._ratio = ratio
        self._floor = floor
        self._lock = threading.RLock()  # see mesh.resilience
        self._calls = SlidingWindow(window_seconds, clock)
        self._retries = SlidingWindow(window_seconds, clock)

    def record_call(self) -> None:
        """Count a call's first attempt; its retries are counted by ``take``."""
        with self._lock:
            self._calls.record()

    def take(self) -> bool:
        """Whether one more retry may be sent now. A yes is counted as sent."""
        with self._lock:
            if self._retries.counts().calls + 1 > max(self._floor, self._ratio * self._calls.counts().calls):
                return False
            self._retries.record()
            return True
