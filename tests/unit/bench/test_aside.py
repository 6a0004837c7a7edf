"""An object in another process: what it returns, what it raises, and that it ends."""

from __future__ import annotations

import os

import pytest

from bench.aside import Aside, BaselineFailed


class Adder:
    """Adds to a number; refuses to be made with a negative one."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError("below zero")
        self._start = start

    def add(self, number: int) -> tuple[int, int]:
        """The sum, and the process that made it."""
        return self._start + number, os.getpid()

    def leave(self) -> None:
        """End the process at once."""
        os._exit(3)


async def test_methods_are_called_in_another_process() -> None:
    """What is asked is answered, by a process that is not this one."""
    async with Aside("the adder", Adder, 40) as adder:
        total, process = await adder.ask("add", 2)
    assert total == 42
    assert process != os.getpid()


async def test_failures_are_told_with_a_name() -> None:
    """Making it, calling it, and its death: each is a failed baseline, and says whose."""
    with pytest.raises(BaselineFailed, match="the adder failed: ValueError: below zero"):
        async with Aside("the adder", Adder, -1):
            pass
    async with Aside("the adder", Adder, 40) as adder:
        with pytest.raises(BaselineFailed, match="the adder failed: TypeError"):
            await adder.ask("add", "two")
        assert (await adder.ask("add", 1))[0] == 41
        with pytest.raises(BaselineFailed, match="process of the adder ended"):
            await adder.ask("leave")
