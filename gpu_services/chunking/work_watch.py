"""Tells a child that works on a long page from one that hangs: only the first uses processor time."""

from __future__ import annotations

import os
from pathlib import Path

from mesh.clock import Clock

STUCK_SECONDS = 5.0
"""A document is read from the local disk and computed: a process that did nothing for so long will not go on."""

_USER_TICKS, _SYSTEM_TICKS = 11, 12
"""Positions in /proc/PID/stat after the name, which ends at the last bracket and may hold anything."""


def cpu_seconds(pid: int, proc: Path = Path("/proc")) -> float | None:
    """Processor time that a process has used; None where the system does not say."""
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        values = stat.rpartition(")")[2].split()
        return (int(values[_USER_TICKS]) + int(values[_SYSTEM_TICKS])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


class WorkWatch:
    """Watches a process from which an event is awaited. Make one for each event."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock()
        self._used: float | None = None

    def stuck(self, used: float | None) -> bool:
        """Whether it has stopped working, by the processor time that it has used so far."""
        now = self._clock()
        if used is None or used != self._used:
            self._since, self._used = now, used
        return now - self._since >= STUCK_SECONDS
