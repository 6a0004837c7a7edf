"""What a caller streams to a peer, as the hop and its transports hand it on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Outgoing:
    """A caller's messages.

    Args:
        messages: all of them, or all after the header.
        header: the first message of an upload. The peer says by its initial metadata that it takes what follows; until
            then nothing of it is sent, so that a refusal costs nobody the upload, and another peer can be asked.

    Attributes:
        begun: whether any of ``messages`` was taken from the caller.
        failure: what ended ``messages`` early: gRPC would hide it.
    """

    def __init__(self, messages: AsyncIterable[Any], *, header: Any = None) -> None:
        self.header = header
        self.begun = False
        self.failure: Exception | None = None
        self._messages = messages

    @property
    def repeatable(self) -> bool:
        """Whether another peer can still be given the whole of it."""
        return self.header is not None and not self.begun

    async def messages(self) -> AsyncGenerator[Any, None]:
        """The messages after the header, once. Closing it closes the caller's iterator."""
        self.begun = True
        try:
            async with taken(self._messages) as messages:
                async for message in messages:
                    yield message
        except Exception as error:
            self.failure = error
            raise


class CallersOwn(Exception):
    """The caller's own requests failed. Untyped on its way out, so that no layer blames the peer for it."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.failure = failure


@contextmanager
def as_itself() -> Iterator[None]:
    """Have the caller's own failure leave the block as what it is."""
    try:
        yield
    except CallersOwn as own:
        raise own.failure from None


@asynccontextmanager
async def taken(items: AsyncIterable[T]) -> AsyncIterator[AsyncIterator[T]]:
    """An iterator over ``items``, closed with the block where it can be: who is given a stream ends it."""
    iterator = aiter(items)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
