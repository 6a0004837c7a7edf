"""Answers in one piece, serialised the fast way."""

from __future__ import annotations

import sys
from array import array
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from mesh.clients.embedding import FLOAT_BYTES, Embeddings
from mesh.errors import Internal

_JSON = (b"content-type", b"application/json")


class JsonAnswer(Response):
    """A JSON text as it stands. Its headers are set directly, since here there is nothing to find out about them."""

    def __init__(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _JSON]
        if headers:
            self.raw_headers.extend(
                (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
            )


def json_answer(document: Any, headers: Mapping[str, str] | None = None) -> Response:
    """The document as JSON. 12,000 floats take pydantic's serialiser 0.7 ms, where the standard one takes 5."""
    return JsonAnswer(to_json(document), headers)


def whole(embeddings: Embeddings, inputs: int) -> Embeddings:
    """The embeddings, once they are known to hold one vector per input.

    Raises:
        Internal: the worker's reply does not hold what was asked for, or what it says.
    """
    if embeddings.rows != inputs or len(embeddings.vectors) != embeddings.rows * embeddings.dim * FLOAT_BYTES:
        raise Internal(
            "The embedding worker answered with another number of vectors than was asked for.", hop="embedding"
        )
    return embeddings


def base64_rows(embeddings: Embeddings) -> list[str]:
    """The vectors as base64 of their little-endian float32."""
    size = embeddings.dim * FLOAT_BYTES
    rows = memoryview(embeddings.vectors)
    return [
        b2a_base64(rows[start : start + size], newline=False).decode("ascii") for start in range(0, len(rows), size)
    ]


def float_rows(embeddings: Embeddings) -> list[list[float]]:
    """The vectors as numbers, without numpy."""
    values = array("f")
    values.frombytes(embeddings.vectors)
    if sys.byteorder == "big":
        values.byteswap()
    dim = embeddings.dim
    return [values[start : start + dim].tolist() for start in range(0, len(values), dim)]
