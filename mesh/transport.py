"""How a hop waits: on an event loop, or blocking a thread. Everything above is written once, for both.

The blocking transport's coroutines never suspend: they do their work inside and return. Driving such a coroutine takes
one ``send(None)`` (see ``run_to_end``), so the synchronous clients need neither an event loop nor a second copy of the
code, and a process never ends up with two loops that touch grpc.aio, which grpcio does not support.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from mesh.channel import Option

T = TypeVar("T")
Metadata = Sequence[tuple[str, str]]


class Transport(Protocol):
    """Opens channels, makes calls on their stubs, and runs a task beside them."""

    def open(self, target: str, options: Sequence[Option]) -> Any:
        """A channel to ``target``; it connects by itself."""

    async def unary(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """One request, one reply. Raises grpc.RpcError."""

    def stream(self, method: Any, request: Any, *, timeout: float | None, metadata: Metadata) -> AsyncIterator[Any]:
        """One request or an async iterable of them, many replies. Closing the iterator cancels the call."""

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Callable[[], Awaitable[None]]:
        """Run ``work`` beside; the returned callable ends it."""

    async def sleep(self, seconds: float) -> None:
        """Wait; returns early when the transport is being closed."""

    async def close(self, channel: Any) -> None:
        """Close a channel and end its calls."""


class AioTransport:
    """On the running event loop, with grpc.aio."""

    def open(self, target: str, options: Sequence[Option]) -> grpc.aio.Channel:
        """A grpc.aio channel; call it from within the loop that will use it."""
        return grpc.aio.insecure_channel(target, options=list(options))

    async def unary(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """One request, one reply."""
        return await method(request, timeout=timeout, metadata=metadata)

    async def stream(
        self, method: Any, request: Any, *, timeout: float | None, metadata: Metadata
    ) -> AsyncIterator[Any]:
        """Many replies; leaving the iterator early cancels the call."""
        call = method(request, timeout=timeout, metadata=metadata)
        try:
            async for reply in call:
                yield reply
        finally:
            call.cancel()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Callable[[], Awaitable[None]]:
        """Run ``work`` as a task."""
        task = asyncio.create_task(work(), name=name)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        return end

    async def sleep(self, seconds: float) -> None:
        """Wait without holding the loop."""
        await asyncio.sleep(seconds)

    async def close(self, channel: grpc.aio.Channel) -> None:
        """Close the channel at once."""
        await channel.close()


class BlockingTransport:
    """In the calling thread, with grpc's synchronous stack. Its coroutines never suspend."""

    def __init__(self) -> None:
        self._closing = threading.Event()

    def open(self, target: str, options: Sequence[Option]) -> grpc.Channel:
        """A synchronous channel."""
        return grpc.insecure_channel(target, options=list(options))

    async def unary(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """One request, one reply."""
        return method(request, timeout=timeout, metadata=metadata)

    async def stream(
        self, method: Any, request: Any, *, timeout: float | None, metadata: Metadata
    ) -> AsyncIterator[Any]:
        """Many replies; leaving the iterator early cancels the call."""
        requests = iterate(request) if isinstance(request, AsyncIterable) else request
        call = method(requests, timeout=timeout, metadata=metadata)
        try:
            for reply in call:
                yield reply
        finally:
            call.cancel()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Callable[[], Awaitable[None]]:
        """Run ``work`` in a daemon thread; it notices the end at its next sleep or broken stream."""
        thread = threading.Thread(target=lambda: run_to_end(work()), name=name, daemon=True)
        thread.start()

        async def end() -> None:
            self._closing.set()
            thread.join(timeout=2.0)

        return end

    async def sleep(self, seconds: float) -> None:
        """Wait, holding this thread; raises once the transport is being closed."""
        if self._closing.wait(seconds):
            raise asyncio.CancelledError

    async def close(self, channel: grpc.Channel) -> None:
        """Close the channel and end its calls."""
        self._closing.set()
        channel.close()


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result.

    Raises:
        RuntimeError: it did suspend: something in it needs an event loop.
    """
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except asyncio.CancelledError:
        return None  # type: ignore[return-value]  # only background work is cancelled, and nobody takes its result
    work.close()
    raise RuntimeError("A blocking call suspended; it was given something that needs an event loop.")


def iterate(items: AsyncIterable[T]) -> Iterator[T]:
    """The items of an async iterable that never suspends. Leaving early closes it."""
    iterator = items.__aiter__()
    try:
        while True:
            try:
                yield run_to_end(_next(iterator))
            except StopAsyncIteration:
                return
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            run_to_end(close())


async def _next(iterator: AsyncIterator[T]) -> T:
    return await iterator.__anext__()


async def as_async(items: Any) -> AsyncIterator[Any]:
    """A synchronous iterable as an async one that never suspends."""
    for item in items:
        yield item


async def relay(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items of a generator that is closed at once when the reader leaves, not when it is collected."""
    source: Any = items
    async with aclosing(source) as opened:
        async for item in opened:
            yield item
