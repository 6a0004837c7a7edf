"""How late the event loop was: a timeout on a loop that was held up says nothing about who was waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from mesh.clock import Clock, monotonic

_EVERY_SECONDS = 0.005


class LoopLag:
    """Adds up the time for which the loop was held up, by a tick that runs while somebody watches.

    Args:
        clock: source of time.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._watching = 0
        self._due = 0.0
        self._lost = 0.0
        self._tick: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> float:
        """Seconds that were lost while watched; the difference of two looks is what was lost between them."""
        # What holds the loop up now, the tick has not seen yet.
        return self._lost + (max(0.0, self._clock() - self._due) if self._watching else 0.0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around whatever may be held up."""
        self._watching += 1
        if self._tick is None:
            self._schedule()
        try:
            yield
        finally:
            self._watching -= 1
            if not self._watching and self._tick is not None:
                self._lost = self.lost
                self._tick.cancel()
                self._tick = None

    def _schedule(self) -> None:
        self._due = self._clock() + _EVERY_SECONDS
        self._tick = asyncio.get_running_loop().call_later(_EVERY_SECONDS, self._ticked)

    def _ticked(self) -> None:
        self._lost = self.lost
        self._schedule()
