"""Refuses who has no key, or one that does not open this path: before anything is waited for or read."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.exchange import Exchange
from gateway.keys.access import NOBODY, roles_for
from gateway.keys.credentials import credential_of
from gateway.keys.metrics import KEYS_REFUSED
from gateway.keys.records import KeyRecord, Role
from gateway.keys.ring import KeyRing
from mesh.context import current_call
from mesh.errors import Forbidden, MeshError, PayloadTooLarge, Unauthenticated


class Guard:
    """Knows callers by their keys. Asked by the door and by the layer `Guarded`; looks at each request once."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def refusal(self, exchange: Exchange, scope: Scope) -> MeshError | None:
        """Why this request is refused; None where it is let in. Its exchange then knows the caller."""
        needed = roles_for(exchange.path)
        if needed is NOBODY or exchange.caller is not None:
            return None
        try:
            caller = self._ring.find(credential_of(scope["headers"]))
        except MeshError as error:
            KEYS_REFUSED.labels(error.reason.lower()).inc()
            return error
        exchange.note(key=caller.id, tenant=caller.tenant)
        if not caller.roles & needed:
            KEYS_REFUSED.labels("role").inc()
            return _not_for(needed)
        most = caller.limits.max_body_bytes
        if most is not None and _declared(exchange) > most:
            KEYS_REFUSED.labels("size").inc()
            return PayloadTooLarge(f"The body is larger than the {most:,} bytes that this key may send at once.")
        self._let_in(exchange, caller)
        return None

    async def while_good(self, frames: AsyncGenerator[bytes, None], exchange: Exchange) -> AsyncGenerator[bytes, None]:
        """A stream without an end, for as long as the key that let it in is good.

        Raises:
            Unauthenticated: in place of the first frame after the key was revoked or has expired.
        """
        async with aclosing(frames):
            async for frame in frames:
                if exchange.caller is not None and not self._ring.is_good(exchange.caller.id):
                    KEYS_REFUSED.labels("invalid_api_key").inc()
                    raise Unauthenticated(
                        "The key of this stream was revoked or has expired. Ask for another one.",
                        reason="INVALID_API_KEY",
                    )
                yield frame

    def _let_in(self, exchange: Exchange, caller: KeyRecord) -> None:
        exchange.caller = caller
        exchange.call = replace(exchange.call, tenant=caller.tenant)


def _not_for(needed: frozenset[Role]) -> Forbidden:
    names = " or ".join(sorted(role.value for role in needed))
    return Forbidden(f"This key may not ask for this: it needs the role {names}.", reason="ROLE_NEEDED")


def _declared(exchange: Exchange) -> int:
    length = exchange.headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


class Guarded:
    """The layer: what is refused takes no place, and nothing of its body is read."""

    def __init__(self, app: ASGIApp, *, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            exchange = Exchange.at(scope)
            refusal = self._guard.refusal(exchange, scope)
            if refusal is not None:
                raise refusal
            # The outermost layer, which puts the former one back, set it before anybody knew the tenant.
            current_call.set(exchange.call)
        await self._app(scope, receive, send)
