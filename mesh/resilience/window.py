"""Counts of recent outcomes over a sliding time window, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass

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
    """The last ``seconds`` of outcomes, forgotten a tenth at a time."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._width = seconds / BUCKETS
        self._clock = clock
        self._buckets: dict[int, Counts] = {}

    def record(self, *, failed: bool, slow: bool) -> None:
        """Count one outcome now."""
        bucket = self._buckets.setdefault(self._now(), Counts())
        bucket.calls += 1
        bucket.failures += failed
        bucket.slow += slow

    def counts(self) -> Counts:
        """The sums over the window."""
        oldest = self._now() - BUCKETS
        for index in [index for index in self._buckets if index <= oldest]:
            del self._buckets[index]
        total = Counts()
        for bucket in self._buckets.values():
            total.calls += bucket.calls
            total.failures += bucket.failures
            total.slow += bucket.slow
        return total

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()

    def _now(self) -> int:
        return int(self._clock() / self._width)
