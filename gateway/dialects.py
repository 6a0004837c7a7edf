"""Whose HTTP dialect a path speaks. It decides the shape of the answer and, above all, of the errors."""

from __future__ import annotations

from enum import Enum


class Dialect(Enum):
    """The vendors whose clients are served unmodified, and our own."""

    OPENAI = "openai"
    COHERE = "cohere"
    JINA = "jina"
    """Jina's and Cohere v1's ``/v1/rerank``: one path, answers that both clients read."""
    TEI = "tei"
    ANTHROPIC = "anthropic"
    OURS = "ours"


_BY_PATH = {
    "/v1/rerank": Dialect.JINA,
    "/v2/rerank": Dialect.COHERE,
    "/embed": Dialect.TEI,
    "/rerank": Dialect.TEI,
    "/info": Dialect.TEI,
    "/health": Dialect.TEI,
    "/v1/chunk": Dialect.OURS,
    "/v1/gpu": Dialect.OURS,
    "/v1/gpu/stream": Dialect.OURS,
}


def dialect_of(path: str) -> Dialect:
    """The dialect of a request path, known or not: an unknown ``/v1/…`` was most likely meant for OpenAI.

    All below ``/v1/messages`` is Anthropic's.

    >>> dialect_of("/v1/images/generations")
    <Dialect.OPENAI: 'openai'>
    """
    known = _BY_PATH.get(path)
    if known is not None:
        return known
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    if path.startswith("/v1/"):
        return Dialect.OPENAI
    return Dialect.COHERE if path.startswith("/v2/") else Dialect.OURS


def generates(path: str) -> bool:
    """Whether a repeated request to this path would write a new text: such answers are not retried blindly."""
    return path in {"/v1/chat/completions", "/v1/completions", "/v1/messages"}


_REQUEST_ID = (b"x-request-id",)
_ANTHROPIC_REQUEST_ID = (b"x-request-id", b"request-id")


def request_id_headers(dialect: Dialect) -> tuple[bytes, ...]:
    """The headers that an answer tells its request's id in: Anthropic's SDK reads another one than everybody's."""
    return _ANTHROPIC_REQUEST_ID if dialect is Dialect.ANTHROPIC else _REQUEST_ID
