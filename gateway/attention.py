"""Cancels the work when the client goes away: what nobody waits for is not computed."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.exchange import Exchange
from mesh.errors import Cancelled

PATIENCE_SECONDS = 0.02
"""A watch is a task of its own, which an answer that is there by then never needs."""


class Attention:
    """The layer that watches. It begins once the whole body was read: until then its reader sees the client leave."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.at(scope)
        watch = _Watch(exchange, receive, send)
        if exchange.body_read:
            watch.begin_soon()
        try:
            await self._app(scope, watch.receive, watch.send)
        except asyncio.CancelledError:
            if not exchange.abandoned:
                raise
            raise watch.claim() from None
        finally:
            watch.end()


class _Watch:
    """Waits for the client's leaving beside the work."""

    __slots__ = ("_exchange", "_receive", "_send", "_soon", "_task", "_work")

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send
        # Taken here: an upload's last piece may be read by another task than the one that answers.
        self._work = asyncio.current_task()
        self._soon: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        if self._soon is not None:
            await asyncio.shield(self._begin())
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.begin_soon()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # A server tells of the end of its own answer in the same words as of the client's leaving.
            self.end()
        await self._send(message)

    def begin_soon(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._begin)

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._wait())
        return self._task

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._exchange.abandoned = True
        if self._work is not None:
            self._work.cancel()

    def claim(self) -> Cancelled:
        """Take the cancellation back, since it was this watch's own, and name it."""
        if self._work is not None:
            self._work.uncancel()
        return Cancelled("The client went away.")

    def end(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
        if self._task is not None:
            self._task.cancel()
