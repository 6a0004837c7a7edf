"""How a hop waits: on an event loop, or blocking a thread. Everything above is written once, for both.

The blocking transport's coroutines never suspend: they do their work inside and return. Driving such a coroutine takes
one ``send(None)`` (see ``run_to_end``), so the synchronous clients need neither an event loop nor a second copy of the
code, and a process never ends up with two loops that touch grpc.aio, which grpcio does not support.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio
from grpc.aio._call import Call  # the stubs and the public module know its children only

from mesh.channel import Option, address_of
from mesh.outgoing import Outgoing

T = TypeVar("T")
ADMISSION_SECONDS = 2.0
"""A peer that has not said after so long whether it takes an upload gets it all the same."""
Metadata = Sequence[tuple[str, str]]


class Event(Protocol):
    """Something that happens once, and can be waited for."""

    def set(self) -> None:
        """It has happened."""

    def is_set(self) -> bool:
        """Whether it has."""

    async def wait(self, timeout: float) -> None:
        """Until it has happened, at most ``timeout`` seconds."""


class Transport(Protocol):
    """Opens channels, makes calls on their stubs, looks names up, and runs tasks beside them."""

    def start(self) -> None:
        """Get ready, also once more after ``close``."""

    def open(self, target: str, options: Sequence[Option], credentials: grpc.ChannelCredentials | None = None) -> Any:
        """A channel to ``target``; it connects by itself, with ``credentials`` by TLS."""

    async def unary(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """One request, one reply. Raises grpc.RpcError."""

    def stream(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> AsyncGenerator[Any, None]:
        """One request or an Outgoing, many replies. Closing the iterator cancels the call.

        After an Outgoing's header nothing is sent before the peer's initial metadata has come.
        """

    async def look_up(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of a name, as `mesh.channel.address_of` writes them. Raises OSError where it has none."""

    async def aside(self, work: Callable[[], T], name: str) -> T:
        """The result of ``work``, which blocks, without holding what else this transport does."""

    def event(self) -> Event:
        """An event for tasks and callers of this transport."""

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Callable[[], Awaitable[None]]:
        """Run ``work`` beside; the returned callable ends it."""

    async def sleep(self, seconds: float) -> None:
        """Wait; returns early when the transport is being closed."""

    async def close_channel(self, channel: Any) -> None:
        """Close a channel and end its calls."""

    def close(self) -> None:
        """End what sleeps."""


class AioTransport:
    """On the running event loop, with grpc.aio."""

    def start(self) -> None:
        """Nothing to do: the loop runs."""

    def open(
        self, target: str, options: Sequence[Option], credentials: grpc.ChannelCredentials | None = None
    ) -> grpc.aio.Channel:
        """A grpc.aio channel; call it from within the loop that will use it."""
        if credentials is not None:
            return grpc.aio.secure_channel(target, credentials, options=list(options))
        return grpc.aio.insecure_channel(target, options=list(options))

    async def unary(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """One request, one reply."""
        call = asyncio.ensure_future(made := method(request, timeout=timeout, metadata=metadata))
        try:
            # A task that is cancelled inside gRPC's batch leaves the batch's memory behind, about a kilobyte each time
            # (grpcio 1.85). So the batch is waited for from outside, and the call itself is what is cancelled.
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(_seen)  # the shield no longer looks at it
            Call.cancel(made)  # unlike call.cancel(), it leaves the task alone that reads the batch
            raise
        finally:
            # An error refers to this frame. With the call in it both would stay until the garbage is collected, and the
            # call's channel, although closed, would go on connecting for as long.
            del call, made

    async def stream(
        self, method: Any, request: Any, *, timeout: float, metadata: Metadata
    ) -> AsyncGenerator[Any, None]:
        """Many replies; leaving the iterator early cancels the call, and the sending beside it."""
        if isinstance(request, Outgoing):
            call = method(timeout=timeout, metadata=metadata)
            sending = asyncio.create_task(self._send(call, request))
        else:
            call, sending = method(request, timeout=timeout, metadata=metadata), None
        try:
            async for reply in call:
                yield reply
        finally:
            call.cancel()
            if sending is not None:
                # gRPC's own sending of an iterator would live on where the call has ended before it was cancelled.
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    @staticmethod
    async def _send(call: Any, request: Outgoing) -> None:
        try:
            if request.header is not None:
                await call.write(request.header)
                with suppress(TimeoutError):
                    async with asyncio.timeout(ADMISSION_SECONDS):
                        await call.initial_metadata()
                if call.done():
                    return
            async with aclosing(request.messages()) as messages:
                async for message in messages:
                    await call.write(message)
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the peer ended the call; its reader sees how
        except Exception:
            call.cancel()  # the caller's own error, which the request keeps
            raise

    async def look_up(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of a name, by the system's resolver on a thread."""
        return await self.aside(lambda: _resolved(host, port), f"look up {host}")

    async def aside(self, work: Callable[[], T], name: str) -> T:
        """On a thread of its own and a daemon: the loop's end waits for its executor's threads, and work may hang."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[T] = loop.create_future()

        def tell(answer: T | None, failure: Exception | None) -> None:
            if found.done():
                return
            if failure is not None:
                found.set_exception(failure)
            else:
                found.set_result(cast("T", answer))

        def run() -> None:
            answer, failure = None, None
            try:
                answer = work()
            except Exception as error:
                failure = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, answer, failure)

        threading.Thread(target=run, name=name, daemon=True).start()
        return await found

    def event(self) -> Event:
        """An event of this loop."""
        return _AioEvent()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Callable[[], Awaitable[None]]:
        """Run ``work`` as a task."""
        loop = asyncio.get_running_loop()  # before the coroutine is made, which would be left unawaited
        task = loop.create_task(work(), name=name)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        return end

    async def sleep(self, seconds: float) -> None:
        """Wait without holding the loop."""
        await asyncio.sleep(seconds)

    async def close_channel(self, channel: grpc.aio.Channel) -> None:
        """Close the channel at once."""
        await channel.close()

    def close(self) -> None:
        """Nothing to do: tasks are cancelled one by one."""


def _seen(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


class _AioEvent(asyncio.Event):
    """An asyncio event that is waited for with a limit."""

    async def wait(self, timeout: float) -> None:  # type: ignore[override]
        try:
            async with asyncio.timeout(timeout):
                await super().wait()
        except TimeoutError:
            return


class BlockingTransport:
    """In the calling thread, with grpc's synchronous stack. Its coroutines never suspend."""

    def __init__(self) -> None:
        self._closing = threading.Event()

    def start(self) -> None:
        """Let its tasks sleep again after a close."""
        if self._closing.is_set():
            self._closing = threading.Event()

    def open(
        self, target: str, options: Sequence[Option], credentials: grpc.ChannelCredentials | None = None
    ) -> grpc.Channel:
        """A synchronous channel."""
        if credentials is not None:
            return grpc.secure_channel(target, credentials, options=list(options))
        return grpc.insecure_channel(target, options=list(options))

    async def unary(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """One request, one reply."""
        return method(request, timeout=timeout, metadata=metadata)

    async def stream(
        self, method: Any, request: Any, *, timeout: float, metadata: Metadata
    ) -> AsyncGenerator[Any, None]:
        """Many replies; leaving the iterator early cancels the call.

        gRPC's own thread sends. It cannot be interrupted: where the caller's iterator waits, it stays until that moves.
        """
        over = threading.Event()
        admitted = threading.Event()
        requests = self._outgoing(request, admitted, over) if isinstance(request, Outgoing) else request
        call = method(requests, timeout=timeout, metadata=metadata)
        try:
            if isinstance(request, Outgoing) and request.header is not None:
                if not call.add_callback(over.set):
                    over.set()  # it is over already
                call.initial_metadata()
                admitted.set()
            for reply in call:
                yield reply
        finally:
            over.set()
            admitted.set()
            call.cancel()

    @staticmethod
    def _outgoing(request: Outgoing, admitted: threading.Event, over: threading.Event) -> Iterator[Any]:
        if request.header is not None:
            yield request.header
            admitted.wait(ADMISSION_SECONDS)
        if not over.is_set():
            yield from iterate(request.messages())

    async def look_up(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of a name, by the system's resolver."""
        return _resolved(host, port)

    async def aside(self, work: Callable[[], T], name: str) -> T:  # noqa: ARG002 - the thread that asks has a name
        """In the calling thread, which nobody else waits for."""
        return work()

    def event(self) -> Event:
        """An event for threads."""
        return _ThreadEvent()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Callable[[], Awaitable[None]]:
        """Run ``work`` in a daemon thread; it notices the end at its next sleep or broken stream."""

        def run() -> None:
            with suppress(asyncio.CancelledError):
                run_to_end(work())

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()

        async def end() -> None:
            if thread is not threading.current_thread():
                thread.join(timeout=2.0)

        return end

    async def sleep(self, seconds: float) -> None:
        """Wait, holding this thread; raises once the transport is being closed."""
        if self._closing.wait(seconds):
            raise asyncio.CancelledError

    async def close_channel(self, channel: grpc.Channel) -> None:
        """Close the channel and end its calls."""
        channel.close()

    def close(self) -> None:
        """End what sleeps."""
        self._closing.set()


class _ThreadEvent(threading.Event):
    """A thread's event in the form of a coroutine that never suspends."""

    async def wait(self, timeout: float) -> None:  # type: ignore[override]
        super().wait(timeout)


def _resolved(host: str, port: int) -> tuple[str, ...]:
    return _addresses(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _addresses(found: Sequence[Any]) -> tuple[str, ...]:
    """IPv4 where a name has both kinds: one worker behind two addresses would look like two endpoints."""
    ips = {(family, sockaddr[0], sockaddr[1]) for family, _, _, _, sockaddr in found}
    family = socket.AF_INET if any(each[0] == socket.AF_INET for each in ips) else socket.AF_INET6
    return tuple(sorted(address_of(ip, port) for each, ip, port in ips if each == family))


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


async def as_async(items: Any) -> AsyncGenerator[Any, None]:
    """A synchronous iterable as an async one that never suspends."""
    for item in items:
        yield item
