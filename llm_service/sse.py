"""Server-sent events out of a byte stream that may be cut anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

MAX_EVENT_BYTES = 4 * 1024 * 1024


class EventTooLong(Exception):
    """An event grew over its limit: the peer does not speak this protocol."""


class EventParser:
    r"""Feeds on bytes, gives the ``data`` of each whole event.

    Lines may end in LF, CRLF or CR, events may span several ``data`` lines, comments are skipped, and an event that the
    stream's end cut off is dropped, as the standard says.

    >>> parser = EventParser()
    >>> parser.feed(b"data: 1\n"), parser.feed(b"\ndata: 2")
    ([], ['1'])
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The events that ``chunk`` completes."""
        lines = (self._rest + chunk).splitlines(keepends=True)
        self._rest = b""
        # A CR at the very end may be half of a CRLF, and a line without an end may go on.
        if lines and not lines[-1].endswith(b"\n"):
            self._rest = lines.pop()
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong
        events = []
        for line in lines:
            event = self._take(line.rstrip(b"\r\n"))
            if event is not None:
                events.append(event)
        return events

    def _take(self, line: bytes) -> str | None:
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data).decode("utf-8", errors="replace") if data else None
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return None


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[list[str]]:
    """The ``data`` of a stream's events, of those together that arrived together. Raises EventTooLong."""
    parser = EventParser()
    async for chunk in chunks:
        if whole := parser.feed(chunk):
            yield whole
