"""Coroutines that never suspend, driven without an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator

import pytest

from mesh.transport import as_async, iterate, run_to_end


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
