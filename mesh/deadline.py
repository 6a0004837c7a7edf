"""One absolute deadline per request: it is made once, at the edge, and only shrinks on its way."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.clock import Clock, monotonic
from mesh.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on ``clock`` after which nobody waits for the answer.

    >>> deadline = Deadline.after(2.0)
    >>> 1.9 < deadline.remaining() <= 2.0
    True
    """

    at: float
    clock: Clock = monotonic
    imposed: bool = False
    """Whether the mesh set it, because the caller named none: a peer that lets it pass has failed."""

    @classmethod
    def after(cls, seconds: float, clock: Clock = monotonic, *, imposed: bool = False) -> Deadline:
        """The deadline ``seconds`` from now."""
        return cls(at=clock() + seconds, clock=clock, imposed=imposed)

    def remaining(self) -> float:
        """Seconds left; never below 0."""
        return max(0.0, self.at - self.clock())

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self.clock() >= self.at

    def require(self, seconds: float = 0.0) -> None:
        """Raise DeadlineExceeded unless more than ``seconds`` are left: no work starts that cannot finish."""
        if self.remaining() <= seconds:
            raise DeadlineExceeded(
                "The request's time is up before the work could start. Allow it more time or send less at once."
            )
