"""Requests that would keep the event loop busy by being parsed are known by their bytes, and left unread.

What cannot be parsed becomes a typed error here: gRPC itself would answer UNKNOWN or INTERNAL, as if the worker were
broken.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Final, Self

from google.protobuf.message import DecodeError

from mesh.errors import InvalidRequest, PayloadTooLarge

MOST_FIELDS = 100_000
"""More than any request may have by any setting. Five million, the most that 16 MiB can hold, take the parser a fifth
of a second, in which nothing else runs; counting to this takes a tenth of that."""

_VARINT, _FIXED64, _BYTES, _GROUP_BEGIN, _GROUP_END, _FIXED32 = range(6)
_VARINT_BYTES = 10
"""The most that one has."""


UNREAD: Final = object()
"""In place of a request that was not parsed."""
MALFORMED: Final = object()
"""In place of one that could not be."""


def bounded(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """``parse``, which answers UNREAD for messages of more than MOST_FIELDS fields, and MALFORMED for what is none."""
    if parse is None:
        return None

    def parse_unless_too_many(data: bytes) -> Any:
        try:
            return UNREAD if has_more_fields(data, MOST_FIELDS) else parse(data)
        except DecodeError:
            return MALFORMED

    return parse_unless_too_many


def read(request: Any) -> Any:
    """The request.

    Raises:
        PayloadTooLarge: it was left unread.
        InvalidRequest: it is no message of its type.
    """
    if request is MALFORMED:
        raise InvalidRequest(
            "The request is not a message of this method's type; the .proto file says how it looks.", reason="MALFORMED"
        )
    if request is UNREAD:
        raise PayloadTooLarge(
            f"The request has more than {MOST_FIELDS} items, which no limit allows. Send it in parts.",
            reason="TOO_MANY_INPUTS",
        )
    return request


class Frames:
    """The requests of a stream, each as `read` gives it."""

    def __init__(self, frames: AsyncIterable[Any]) -> None:
        self._frames: AsyncIterator[Any] = aiter(frames)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return read(await anext(self._frames))


def has_more_fields(data: bytes, limit: int) -> bool:
    """Whether a protobuf message has more than ``limit`` fields at its top level. False where it is malformed."""
    if len(data) < 2 * limit:  # a field has two bytes at least
        return False
    at, size = 0, len(data)
    try:
        for _ in range(limit):
            if at >= size:
                return False
            kind = data[at] & 7
            at = _after_varint(data, at)
            if kind == _VARINT:
                at = _after_varint(data, at)
            elif kind == _BYTES:
                end = _after_varint(data, at)
                length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[at:end]))
                at = end + length
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            elif kind in (_GROUP_BEGIN, _GROUP_END):
                continue  # a group's begin and end are nothing but their tags
            else:
                return False
    except IndexError:
        return False
    return at < size


def _after_varint(data: bytes, at: int) -> int:
    last = at + _VARINT_BYTES - 1
    while data[at] & 0x80:
        at += 1
        if at > last:
            raise IndexError  # malformed, as the parser will say: reading on would take time that grows with its square
    return at + 1
