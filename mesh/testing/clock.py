"""Time that moves only when a test moves it."""

from __future__ import annotations


class FakeClock:
    """A clock for tests: call it for the time, ``advance`` it to let time pass."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def __call__(self) -> float:
        """The time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._now += seconds
