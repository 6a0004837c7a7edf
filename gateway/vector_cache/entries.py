"""One kept vector, as an object and as the bytes that a store holds."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import isfinite

from mesh.clients.embedding import FLOAT_BYTES, Embeddings

_HEADER = struct.Struct("<2sBBIII")
_MAGIC = b"MV"
_LAYOUT = 1
_TRUNCATED = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One input's part of an answer.

    Attributes:
        vector: little-endian float32, as the worker sent it.
        tokens: what the model read for it.
        truncated: whether the input was cut.
    """

    vector: bytes
    tokens: int
    truncated: bool


def entries_of(reply: Embeddings) -> list[Entry] | None:
    """A reply's inputs one by one; None where the worker does not tell them apart."""
    if not reply.fingerprint or len(reply.input_tokens) != reply.rows:
        return None
    cut = frozenset(reply.truncated_inputs)
    size = reply.dim * FLOAT_BYTES
    return [
        Entry(reply.vectors[row * size : (row + 1) * size], reply.input_tokens[row], row in cut)
        for row in range(reply.rows)
    ]


def worth_keeping(entry: Entry) -> bool:
    """Whether all its numbers are numbers: an engine that failed once must not be quoted for a day."""
    return isfinite(sum(memoryview(entry.vector).cast("f")))


def pack(key: bytes, entry: Entry) -> bytes:
    """An entry as a store holds it: a header with length and checksum, then the vector."""
    flags = _TRUNCATED if entry.truncated else 0
    checksum = _checksum(key, flags, entry.tokens, entry.vector)
    return _HEADER.pack(_MAGIC, _LAYOUT, flags, entry.tokens, len(entry.vector), checksum) + entry.vector


def unpack(key: bytes, value: object) -> Entry | None:
    """The entry that was packed under ``key``; None for anything else, whatever it is."""
    if not isinstance(value, bytes) or len(value) <= _HEADER.size:
        return None
    magic, layout, flags, tokens, length, checksum = _HEADER.unpack_from(value)
    vector = value[_HEADER.size :]
    if (magic, layout, length) != (_MAGIC, _LAYOUT, len(vector)):
        return None
    if checksum != _checksum(key, flags, tokens, vector):
        return None
    return Entry(vector, tokens, bool(flags & _TRUNCATED))


def _checksum(key: bytes, flags: int, tokens: int, vector: bytes) -> int:
    # The key is part of it: a value under another's key is as wrong as a damaged one.
    return zlib.crc32(vector, zlib.crc32(b"%d %d " % (flags, tokens) + key))
