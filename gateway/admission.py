"""What is let in: a bounded number of requests, and while the event loop itself falls behind, far fewer."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.loop import LoopDelay
from mesh.clock import Clock, monotonic
from mesh.errors import Overloaded
from mesh.resilience import ReturnSchedule

ALWAYS = frozenset(
    {"/", "/health", "/health/live", "/health/ready", "/metrics", "/status", "/status/stream"}
    | {f"/pages/{name}" for name in ("icon.svg", "mesh.css", "shared.js", "status.js", "status-parts.js")}
)
"""What operators and load balancers look at: it is answered all the same, and takes no place."""


class Places:
    """The places for requests in progress. Nothing waits for one: who finds none is told when to come back.

    While the event loop is late there are ``few``: enough to keep the process busy, and so few that what is let in,
    and whoever asks for its health, is served soon.
    """

    def __init__(self, *, most: int, few: int = 64, delay: LoopDelay | None = None, clock: Clock = monotonic) -> None:
        self._most = most
        self._few = min(few, most)
        self._delay = delay
        self._clock = clock
        self._in_progress = 0
        self._typical_seconds = 0.1
        self._returns = ReturnSchedule(clock)

    @property
    def in_progress(self) -> int:
        """How many are taken."""
        return self._in_progress

    @property
    def most(self) -> int:
        """How many there are."""
        return self._most

    def busy(self) -> Overloaded | None:
        """The refusal, while the process itself has no time for more."""
        if self._delay is None:
            return None
        self._delay.keep_watch()
        return self._refusal("GATEWAY_BUSY") if self._delay.is_late and self._in_progress >= self._few else None

    def take(self) -> float:
        """Take a place; returns the time, for `give_back`.

        Raises:
            Overloaded: there is none.
        """
        refusal = self.busy()
        if refusal is not None:
            raise refusal
        if self._in_progress >= self._most:
            raise self._refusal("GATEWAY_LIMIT")
        self._in_progress += 1
        return self._clock()

    def give_back(self, taken: float, *, answered: bool) -> None:
        """Free a place. Refusals take no time, and would make the others look quick, so only answers are timed."""
        self._in_progress -= 1
        if answered:
            self._typical_seconds += 0.1 * (self._clock() - taken - self._typical_seconds)

    def _refusal(self, reason: str) -> Overloaded:
        return Overloaded(
            f"This gateway is already busy with {self._in_progress} requests. Try again after the given time.",
            reason=reason,
            # As many are done in a typical request's time as are in progress.
            retry_after=self._returns.next(self._typical_seconds / max(1, self._in_progress)),
        )


class Admission:
    """Refuses at once what finds no place."""

    def __init__(self, app: ASGIApp, *, places: Places) -> None:
        self._app = app
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        taken = self._places.take()
        answered = False
        try:
            await self._app(scope, receive, send)
            answered = True
        finally:
            self._places.give_back(taken, answered=answered)
