"""Counts of recent outcomes over a sliding time window, in constant memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from mesh.clock import Clock

BUCKETS = 10


@dataclass(slots=True)
class Counts:
    """Outcomes of the calls in a window."""

    calls: int = 0
    failures: int = 0
    slow: int = 0

    @property
    def failure_rate(self) -> float:
        """Share of failed calls, 0 to 1; 0 when there were none."""
        return self.failures / self.calls if self.calls else 0.0

    @property
    def slow_rate(self) -> float:
        """Share of slow calls, 0 to 1; 0 when there were none."""
        return self.slow / self.calls if self.calls else 0.0


class SlidingWindow:
    """The last ``seconds`` of outcomes, forgotten a tenth at a time. Not locked: whoever owns it holds a lock.

    The sums are kept as outcomes come and go, so that recording and asking cost the same however many there were.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        if seconds <= 0:
            raise ValueError("a window needs a length above 0 seconds")
        self._width = seconds / BUCKETS
        self._clock = clock
        self._buckets: deque[tuple[int, Counts]] = deque()
        self._total = Counts()

    def record(self, *, failed: bool = False, slow: bool = False) -> None:
        """Count one outcome now."""
        now = self._forget_the_old()
        if not self._buckets or self._buckets[-1][0] != now:
            self._buckets.append((now, Counts()))
        for counts in (self._buckets[-1][1], self._total):
            counts.calls += 1
            counts.failures += failed
            counts.slow += slow

    def counts(self) -> Counts:
        """The sums over the window."""
        self._forget_the_old()
        return replace(self._total)

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()
        self._total = Counts()

    def _forget_the_old(self) -> int:
        now = int(self._clock() / self._width)
        while self._buckets and self._buckets[0][0] <= now - BUCKETS:
            _, old = self._buckets.popleft()
            self._total.calls -= old.calls
            self._total.failures -= old.failures
            self._total.slow -= old.slow
        return now
