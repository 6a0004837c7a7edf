"""Coroutines that never suspend, driven without an event loop."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from mesh.transport import AioTransport, as_async, iterate, run_to_end


async def double(number: int) -> int:
    """Twice the number."""
    return number * 2


async def numbers(closed: list[bool]) -> AsyncIterator[int]:
    """Numbers without end; notes when it is closed."""
    number = 0
    try:
        while True:
            yield number
            number += 1
    finally:
        closed.append(True)


def test_a_coroutine_runs_to_its_end_without_a_loop() -> None:
    """Its result comes back, its error too."""
    assert run_to_end(double(4)) == 8

    async def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        run_to_end(fail())


def test_what_would_wait_for_a_loop_is_a_bug_and_says_so() -> None:
    """Suspending is refused instead of hanging."""

    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def wait() -> None:
        await Never()

    with pytest.raises(RuntimeError, match="suspended"):
        run_to_end(wait())


def test_an_async_iterator_becomes_an_ordinary_one_and_is_closed_when_left() -> None:
    """Leaving early runs its clean-up now."""
    closed: list[bool] = []
    taken = []
    items = iterate(numbers(closed))
    for number in items:
        taken.append(number)
        if number == 3:
            break
    items.close()  # type: ignore[attr-defined]  # a generator, typed as the iterator it is used as
    assert (taken, closed) == ([0, 1, 2, 3], [True])


def test_an_ordinary_iterable_goes_through_both_ways() -> None:
    """What goes in as a list comes out as it was."""
    assert list(iterate(as_async([1, 2, 3]))) == [1, 2, 3]


class FailingCall:
    """A call that ends with an error, as gRPC's awaitable calls do."""

    def __await__(self) -> Generator[None, None, None]:
        yield
        raise ConnectionError("refused")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """What is freed in the block, is freed because nothing refers to it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_failed_call_is_freed_with_its_error() -> None:
    """Its channel lives as long as it does, and connects again and again, also after it was closed."""
    made: list[weakref.ref[FailingCall]] = []

    def method(_request: object, **_options: Any) -> FailingCall:
        call = FailingCall()
        made.append(weakref.ref(call))
        return call

    with without_garbage_collection():
        with suppress(ConnectionError):
            await AioTransport().unary(method, b"", timeout=1.0, metadata=())
        await asyncio.sleep(0)  # the loop lets go of what it has just run
        assert made[0]() is None
