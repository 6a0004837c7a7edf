"""How a rate is kept: by one moment for each, until which all of it is spoken for (the "generic cell rate algorithm").

An allowance of n a minute lets n pass at once after a quiet minute, and then one every 60/n seconds. The moment lies in
the future by the part of a minute that is used up. Nothing has to be reset when a minute ends, and there is no border
between two minutes at which twice as much would pass.
"""

from __future__ import annotations

WINDOW_SECONDS = 60.0


def drawn(until: float, now: float, per_minute: int, amount: float) -> float:
    """The moment after ``amount`` was drawn at ``now`` from an allowance used up until ``until``.

    A negative amount gives back.
    """
    start = until if amount < 0 else max(until, now)
    return start + amount * WINDOW_SECONDS / per_minute


def wait_seconds(until: float, now: float) -> float:
    """How long after ``now`` an allowance with this moment may be drawn; not above 0 where it may be drawn now."""
    # A nanosecond is what adding sixtieths loses.
    return until - now - WINDOW_SECONDS - 1e-9


def left(until: float, now: float, per_minute: int) -> int:
    """How much may be drawn at ``now``."""
    return max(0, int((WINDOW_SECONDS - max(0.0, until - now)) * per_minute / WINDOW_SECONDS + 1e-6))
