"""Counts what each key asks: in the gateway's own memory, or, with the same rules, in a Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from gateway.keys.rates import drawn, left, wait_seconds
from gateway.keys.records import Limits
from mesh.clock import Clock, monotonic

Bound = Literal["requests", "tokens", "concurrency"]


@dataclass(slots=True)
class Grant:
    """What a meter says to a request.

    Attributes:
        account: on whose account.
        limits: the limits that hold.
        reserved: tokens that were drawn before anybody knew how many it takes.
        refused: by which limit it is refused; None where it may go on.
        retry_after: seconds until it would be let in, where that is known.
        requests_left: how many requests may follow at once; None where nobody counts them.
        tokens_left: how many tokens; None where nobody counts them.
        shared: whether it was counted where other gateways count.
    """

    account: str
    limits: Limits
    reserved: int
    refused: Bound | None = None
    retry_after: float | None = None
    requests_left: int | None = None
    tokens_left: int | None = None
    shared: bool = False


class Meter(Protocol):
    """Who counts."""

    @property
    def where(self) -> str:
        """Where is counted now, in words for the status page."""

    async def take(self, account: str, limits: Limits, tokens: int) -> Grant:
        """Count a request that will take about ``tokens``, where its limits let it in. Never raises."""

    def give_back(self, grant: Grant, used: int) -> None:
        """Tell that a request which was let in has ended, and how many tokens it took."""

    def start(self) -> None:
        """Begin what runs beside the requests; called on the event loop."""

    async def close(self) -> None:
        """End it."""


@dataclass(slots=True)
class _Account:
    requests_until: float = 0.0
    tokens_until: float = 0.0
    in_progress: int = 0


class MemoryMeter:
    """Counts in memory. There are as many accounts as keys, so nothing has to be forgotten."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    where = "this gateway's memory"

    async def take(self, account: str, limits: Limits, tokens: int) -> Grant:
        """See Meter."""
        self.begin(account)
        grant = self.draw(account, limits, tokens)
        if grant.refused is not None:
            self.end(account)
        return grant

    def give_back(self, grant: Grant, used: int) -> None:
        """See Meter."""
        self.end(grant.account)
        self.settle(grant, used)

    def settle(self, grant: Grant, used: int) -> None:
        """Put right what was reserved, once it is known how many tokens it took."""
        if grant.limits.tokens_per_minute is not None:
            kept = self._accounts[grant.account]
            kept.tokens_until = drawn(
                kept.tokens_until, self._clock(), grant.limits.tokens_per_minute, used - grant.reserved
            )

    def start(self) -> None:
        """Nothing runs beside the requests."""

    async def close(self) -> None:
        """Nothing runs beside the requests."""

    def begin(self, account: str) -> int:
        """Count one more request in progress; returns how many there are."""
        kept = self._accounts.setdefault(account, _Account())
        kept.in_progress += 1
        return kept.in_progress

    def end(self, account: str) -> int:
        """Count one less; returns how many are left."""
        kept = self._accounts[account]
        kept.in_progress -= 1
        return kept.in_progress

    def in_progress(self, account: str) -> int:
        """How many requests there are."""
        kept = self._accounts.get(account)
        return kept.in_progress if kept else 0

    def draw(self, account: str, limits: Limits, tokens: int) -> Grant:
        """Draw for a request that `begin` has counted: from all its limits or, where one refuses, from none."""
        kept = self._accounts[account]
        now = self._clock()
        requests_until, tokens_until = kept.requests_until, kept.tokens_until
        requests_left = tokens_left = None
        if limits.requests_per_minute is not None:
            requests_until = drawn(requests_until, now, limits.requests_per_minute, 1)
            if (wait := wait_seconds(requests_until, now)) > 0:
                return Grant(account, limits, 0, "requests", wait)
            requests_left = left(requests_until, now, limits.requests_per_minute)
        if limits.tokens_per_minute is not None:
            tokens_until = drawn(tokens_until, now, limits.tokens_per_minute, tokens)
            if (wait := wait_seconds(tokens_until, now)) > 0:
                return Grant(account, limits, 0, "tokens", wait)
            tokens_left = left(tokens_until, now, limits.tokens_per_minute)
        most = limits.max_concurrent_requests
        if most is not None and kept.in_progress > most:
            return Grant(account, limits, 0, "concurrency")
        kept.requests_until, kept.tokens_until = requests_until, tokens_until
        return Grant(account, limits, tokens, requests_left=requests_left, tokens_left=tokens_left)
