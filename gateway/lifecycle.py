"""Where the gateway itself is between its start and its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.exchange import unix_seconds
from mesh.clock import Clock, monotonic


@dataclass(slots=True)
class Lifecycle:
    """When this gateway started, and whether it takes requests. It depends on no peer."""

    clock: Clock = monotonic
    started_unix_seconds: int = field(default_factory=unix_seconds)
    ready: bool = False
    draining: bool = False
    _started: float = 0.0

    def __post_init__(self) -> None:
        self._started = self.clock()

    def uptime_seconds(self) -> float:
        """Seconds since the start."""
        return self.clock() - self._started
