"""What was refused in the last minutes, and why: a sum for each kind, for people who look at the status page."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from mesh.clock import Clock, monotonic

SLICE_SECONDS = 10
SLICES = 30
"""Five minutes."""
MOST_KINDS = 64
"""Of one slice. Reasons come from workers too, so their number is nobody's promise."""

_CLIENT_LEFT = "cancelled"


class Kind(NamedTuple):
    """What refusals have in common. Nothing in it is a client's word."""

    hop: str
    reason: str
    status: int
    route: str


_OTHERS = Kind("", "other_reasons", 0, "")


class RecentRefusals:
    """Counts requests that were answered with a failure, in slices of `SLICE_SECONDS`, of which the last are kept."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._slices: deque[tuple[int, dict[Kind, int]]] = deque(maxlen=SLICES)

    def note(self, route: str, status: int, outcome: str, hop: str) -> None:
        """Count one. A client that went away was not refused."""
        if outcome == _CLIENT_LEFT:
            return
        now = int(self._clock() / SLICE_SECONDS)
        if not self._slices or self._slices[-1][0] != now:
            self._slices.append((now, {}))
        counts = self._slices[-1][1]
        kind = Kind(hop, outcome, status, route)
        if kind not in counts and len(counts) >= MOST_KINDS:
            kind = _OTHERS
        counts[kind] = counts.get(kind, 0) + 1

    def document(self) -> dict[str, Any]:
        """Each kind with its count and its counts by slice, oldest first; those that are refused most stand first."""
        first = int(self._clock() / SLICE_SECONDS) - SLICES + 1
        by_slice: dict[Kind, list[int]] = {}
        for number, counts in self._slices:
            if number < first:
                continue
            for kind, count in counts.items():
                by_slice.setdefault(kind, [0] * SLICES)[number - first] += count
        most_first = sorted(by_slice.items(), key=lambda each: (-sum(each[1]), each[0]))
        return {
            "seconds": SLICE_SECONDS * SLICES,
            "kinds": [{**kind._asdict(), "count": sum(counts), "slices": counts} for kind, counts in most_first],
        }
