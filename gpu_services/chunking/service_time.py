"""How long one document takes, learned from those that are done: what a queue's length means in seconds."""

from __future__ import annotations

import math

_NEWEST = 0.125
"""Weight of the newest request: the average follows a change of load within about eight."""
_ONE_IN_A_HUNDRED = 2.33
"""Standard deviations above the mean that a sum of many times exceeds once in a hundred."""


class ServiceTime:
    """Mean and spread of the time that one request occupies a child process.

    Args:
        guess: seconds to reckon with before the first request is done.
    """

    def __init__(self, guess: float) -> None:
        self._mean = guess
        self._variance = 0.0
        self.known = False

    @property
    def mean(self) -> float:
        """Seconds that a request takes."""
        return self._mean

    def learn(self, seconds: float) -> None:
        """Count one request that is done."""
        if not self.known:
            self._mean, self.known = seconds, True
            return
        difference = seconds - self._mean
        self._mean += _NEWEST * difference
        self._variance = (1 - _NEWEST) * (self._variance + _NEWEST * difference * difference)

    def learn_at_least(self, seconds: float) -> None:
        """Count one that was broken off: it says something only where it took longer than they do."""
        if self.known and seconds > self._mean:
            self.learn(seconds)

    def longest(self, requests: float) -> float:
        """Seconds that so many take one after another, but for one time in a hundred."""
        return requests * self._mean + _ONE_IN_A_HUNDRED * math.sqrt(max(0.0, requests) * self._variance)
