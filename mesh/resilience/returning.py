"""When refused callers should come back: one after another, at the rate at which work is done."""

from __future__ import annotations

import threading

from mesh.clock import Clock, monotonic


class ReturnSchedule:
    """Gives each refused caller a place of its own behind the backlog. Safe to share between threads; it never waits.

    Told one and the same time, all refused callers come back in that moment, and all but a few are refused again. So
    each place begins where the last one's work ends, and whoever obeys meets a peer that has just found room. Places
    that lie further ahead than ``longest_seconds`` are not given: those callers are told the longest time and ask anew.

    Args:
        clock: source of time.
        shortest_seconds: nobody is told to come back sooner.
        longest_seconds: nobody is told to come back later.
    """

    def __init__(self, clock: Clock = monotonic, shortest_seconds: float = 0.1, longest_seconds: float = 10.0) -> None:
        if not 0 <= shortest_seconds <= longest_seconds:
            raise ValueError("needs 0 <= shortest_seconds <= longest_seconds")
        self._clock = clock
        self._shortest = shortest_seconds
        self._longest = longest_seconds
        self._lock = threading.RLock()  # see mesh.resilience
        self._next_free = clock()

    def next(self, work_seconds: float, backlog_seconds: float = 0.0) -> float:
        """Seconds after which the caller that is refused now should come back.

        Args:
            work_seconds: for how long its work keeps the peer from the next caller's, that is, one over the rate at
                which the peer gets such work done.
            backlog_seconds: how long the peer is busy with what it has already let in.
        """
        now = self._clock()
        with self._lock:
            start = max(now + backlog_seconds, self._next_free)
            if start > now + self._longest:
                return self._longest
            self._next_free = start + work_seconds
        return max(start - now, self._shortest)
