"""Tells a slow engine from one that hangs. Both are silent; only the slow one computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mesh.clock import Clock, monotonic

COMPUTING_SHARE = 0.03
"""Of one processor: answering its health route costs an engine less, computing costs more, also on a full machine."""


class SilenceWatch:
    """What is known of an engine that owes an answer.

    A long prompt on a CPU is silent for minutes and computes all the while. An engine that was stopped, whose threads
    wait for each other, or whose device never answers uses no processor time: after ``hang_seconds`` of silence
    without any it hangs. What cannot be told so (an engine that spins, a system without /proc) hangs after
    ``stall_seconds`` of silence, and after twice that where it may first have to finish what a caller who left had
    asked for: an engine notices that at its next token.

    Args:
        hang_seconds: longest silence without computing.
        stall_seconds: longest silence at all, per request.
        clock: source of time.
    """

    def __init__(self, *, hang_seconds: float, stall_seconds: float, clock: Clock = monotonic) -> None:
        self._hang_seconds = hang_seconds
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._outstanding = 0
        self._abandoned = False
        self._signs = 0
        self._silent_since = clock()
        self._heard_at = float("-inf")
        self._mark: tuple[float, float] | None = None

    @property
    def owes(self) -> bool:
        """Whether somebody waits for the engine now."""
        return self._outstanding > 0

    @property
    def seconds(self) -> float:
        """For how long nothing has been heard that it owes."""
        return self._clock() - self._silent_since if self._outstanding else 0.0

    def heard_within(self, seconds: float) -> bool:
        """Whether the engine wrote something so lately."""
        return self._clock() - self._heard_at <= seconds

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around one request, from when it is sent until it is answered or left."""
        if not self._outstanding:
            self._silent_since = self._clock()
        self._outstanding += 1
        signs = self._signs
        try:
            yield
        finally:
            self._outstanding -= 1
            # Nothing was heard since: it may still be at work for a caller who left.
            self._abandoned = self._abandoned or self._signs == signs

    def heard(self) -> None:
        """The engine wrote something: whatever came before is done."""
        self._signs += 1
        self._silent_since = self._heard_at = self._clock()
        self._abandoned = False
        self._mark = None

    def hangs(self, cpu_seconds: float | None) -> str | None:
        """Why the engine is taken to hang, or None. Ask about once a second.

        Args:
            cpu_seconds: processor time that it has used so far; None where the system does not say.
        """
        now = self._clock()
        if not self._outstanding:
            self._mark = None
            return None
        silent = self.seconds
        if silent >= self._stall_seconds * (2 if self._abandoned else 1):
            return f"it has written nothing for {silent:.0f} s"
        if cpu_seconds is None:
            return None
        if self._mark is None or is_work(cpu_seconds - self._mark[1], self._hang_seconds):
            self._mark = (now, cpu_seconds)
        elif now - self._mark[0] >= self._hang_seconds:
            return f"it owes an answer and has not computed for {now - self._mark[0]:.0f} s"
        return None


def is_work(cpu_seconds: float, seconds: float) -> bool:
    """Whether so much processor time in so long is work. Less than none is of another process: it tells nothing."""
    return cpu_seconds < 0 or cpu_seconds >= COMPUTING_SHARE * seconds
