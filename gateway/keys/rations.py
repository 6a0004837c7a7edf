"""Lets a caller ask as much as its key allows, and tells how much is left."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.dialects import Dialect
from gateway.exchange import Exchange
from gateway.keys.meter import Bound, Grant, Meter
from gateway.keys.metrics import KEYS_REFUSED
from gateway.keys.tokens import guess, told
from mesh.errors import Cancelled, MeshError, RateLimited

_BUSY_SECONDS = 1.0
"""When to come back while too many requests are in progress: nobody knows when one will end."""


class Rationed:
    """The layer. What a request takes is reserved before its body is read, and put right when it has ended.

    A guess that was too low lets a key come into debt: its next requests wait until that is paid off.
    """

    def __init__(self, app: ASGIApp, *, meter: Meter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        caller = Exchange.at(scope).caller if scope["type"] == "http" else None
        if caller is None or not caller.limits.counted:
            await self._app(scope, receive, send)
            return
        exchange = Exchange.at(scope)
        per_minute = caller.limits.tokens_per_minute
        reserved = 0 if per_minute is None else guess(exchange, per_minute)
        grant = await self._meter.take(caller.account, caller.limits, reserved)
        if grant.refused is not None:
            KEYS_REFUSED.labels(grant.refused).inc()
            raise _refusal(grant.refused, grant)
        answer = _Rationed(exchange, send, grant)
        used = 0
        try:
            await self._app(scope, receive, answer.send)
            used = answer.used()
        except (asyncio.CancelledError, Cancelled):
            # Whoever leaves before the end has been worked for all the same.
            used = answer.used()
            raise
        finally:
            self._meter.give_back(grant, used)


class _Rationed:
    """The way out: tells what is left, and counts what is sent while nobody else has."""

    __slots__ = ("_exchange", "_grant", "_pieces", "_send")

    def __init__(self, exchange: Exchange, send: Send, grant: Grant) -> None:
        self._exchange = exchange
        self._send = send
        self._grant = grant
        self._pieces = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_told_headers(self._grant, self._exchange.dialect)]
        elif message.get("more_body", False):
            self._pieces += 1
        await self._send(message)

    def used(self) -> int:
        """Tokens that the request has taken. Of an answer that broke off nobody knows more than its pieces."""
        counted = told(self._exchange)
        return self._grant.reserved + self._pieces if counted is None else counted


_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests")
_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens")
_ANTHROPIC_REQUESTS = (b"anthropic-ratelimit-requests-limit", b"anthropic-ratelimit-requests-remaining")
_ANTHROPIC_TOKENS = (b"anthropic-ratelimit-tokens-limit", b"anthropic-ratelimit-tokens-remaining")


def _told_headers(grant: Grant, dialect: Dialect) -> list[tuple[bytes, bytes]]:
    anthropic = dialect is Dialect.ANTHROPIC
    counts = (
        (_ANTHROPIC_REQUESTS if anthropic else _REQUESTS, grant.limits.requests_per_minute, grant.requests_left),
        (_ANTHROPIC_TOKENS if anthropic else _TOKENS, grant.limits.tokens_per_minute, grant.tokens_left),
    )
    return [
        (name, b"%d" % value)
        for names, limit, rest in counts
        if limit is not None and rest is not None
        for name, value in zip(names, (limit, rest), strict=True)
    ]


def _refusal(bound: Bound, grant: Grant) -> MeshError:
    limits = grant.limits
    message = {
        "requests": f"This key may ask {limits.requests_per_minute} times a minute.",
        "tokens": f"This key may use {limits.tokens_per_minute} tokens a minute.",
        "concurrency": f"This key may have {limits.max_concurrent_requests} requests in progress.",
    }[bound]
    return RateLimited(
        f"{message} Try again after the given time.",
        reason="RATE_LIMIT_EXCEEDED",
        retry_after=_BUSY_SECONDS if grant.retry_after is None else grant.retry_after,
    )
