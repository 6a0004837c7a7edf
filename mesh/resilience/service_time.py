"""How long one request takes, learned from those that are done: what a queue's length means in seconds."""

from __future__ import annotations

import math

_REMEMBERED = 32
"""Over so many the average runs: fewer, and each time it dips by chance more are let in than can be served."""
_FIRST_SPREAD = 0.5
"""Of the first one's time, by which the next may differ: from one alone nothing is known of that."""
_BESIDE = 1.05
"""What comes on top of the work itself: messages, scheduling, the way back."""
_ONE_IN_A_HUNDRED = 3.0
"""Standard deviations that few such times together exceed once in a hundred: the long ones are very long."""


class ServiceTime:
    """Mean and spread of the time that one request (or document, or start) occupies what does it.

    Args:
        guess: seconds to reckon with before the first request is done.
    """

    def __init__(self, guess: float) -> None:
        self._mean = guess
        self._variance = 0.0
        self._learned = 0

    @property
    def mean(self) -> float:
        """Seconds that a request takes."""
        return self._mean

    def learn(self, seconds: float) -> None:
        """Count one request that is done."""
        self._learned = min(_REMEMBERED, self._learned + 1)
        if self._learned == 1:
            self._mean, self._variance = seconds, (_FIRST_SPREAD * seconds) ** 2
            return
        weight = 1 / self._learned
        difference = seconds - self._mean
        self._mean += weight * difference
        self._variance = (1 - weight) * (self._variance + weight * difference * difference)

    def learn_at_least(self, seconds: float) -> None:
        """Count one that was broken off: it says something only where it took longer than they do."""
        if seconds > self._mean:
            self.learn(seconds)

    def left(self, seconds: float) -> float:
        """Work that is probably still before one that has run for so long, in requests.

        One that has run for longer than they do is a long one, and the longer it has run the longer it is.
        """
        return abs(1.0 - seconds / self._mean) if self._mean else 0.0

    def longest(self, requests: float) -> float:
        """Seconds that so many take one after another, but for one time in a hundred."""
        # They differ from each other, and what is taken for their mean differs from what it is.
        variance = requests * self._variance * (1 + requests / max(1, self._learned))
        return _BESIDE * (requests * self._mean + _ONE_IN_A_HUNDRED * math.sqrt(variance))
