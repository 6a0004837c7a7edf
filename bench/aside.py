"""An object in a process of its own, so that its threads and its memory are not the load generator's."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

_END_SECONDS = 2.0


class BaselineFailed(Exception):
    """What the mesh is compared with cannot be used here."""


class Aside:
    """Makes an object in another process and calls its methods, one at a time, until the block is left.

    Args:
        name: what it is called in messages.
        make: makes the object, there; a name that can be imported, as its arguments must be picklable.
        arguments: of ``make``.
    """

    def __init__(self, name: str, make: Callable[..., object], *arguments: object) -> None:
        self._name = name
        self._make = make
        self._arguments = arguments

    async def __aenter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make, self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            await self._wait_until_made()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method and return what it returns.

        Raises:
            BaselineFailed: it raised, or its process ended.
        """
        return await asyncio.to_thread(self._exchange, method, arguments)

    async def _wait_until_made(self) -> None:
        await asyncio.to_thread(self._receive)

    async def _end(self) -> None:
        self._connection.close()  # a child that waits for its next task ends by that
        await asyncio.to_thread(self._process.join, _END_SECONDS)
        self._process.terminate()
        await asyncio.to_thread(self._process.join, _END_SECONDS)

    def _exchange(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise BaselineFailed(f"The process of {self._name} ended.") from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            done, result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise BaselineFailed(f"The process of {self._name} ended.") from error
        if not done:
            raise BaselineFailed(f"{self._name} failed: {result}")
        return result


def _serve(connection: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """The child: answers until its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        made = make(*arguments)
    except Exception as error:  # told to the parent, whatever it is
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    connection.send((True, None))
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(made, method)(*given)))
        except Exception as error:  # told to the parent, whatever it is
            connection.send((False, f"{type(error).__name__}: {error}"))
