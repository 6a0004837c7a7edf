"""How many tokens a request takes: a guess before anything of it is read, and the truth once it has ended."""

from __future__ import annotations

from gateway.exchange import Exchange

_BYTES_A_TOKEN = 4
_FREE = frozenset({"/v1/messages/count_tokens", "/v1/chunk", "/v1/gpu/stream", "/status/stream"})
"""What answers how many tokens there would be, and what reads no text by a model: requests, but no tokens. Streams that
only their viewer's leaving ends would otherwise cost one for each of their pieces."""
_NAMES = ("tokens", "prompt_tokens", "completion_tokens")


def guess(exchange: Exchange, per_minute: int) -> int:
    """Tokens to reserve, by the body's declared length; a whole minute's at most, or it would never be let in."""
    if exchange.path in _FREE:
        return 0
    length = exchange.headers.get(b"content-length", b"0")
    return min(int(length) // _BYTES_A_TOKEN, per_minute) if length.isdigit() else 0


def told(exchange: Exchange) -> int | None:
    """Tokens that the worker has counted; None where it came to no count."""
    notes = exchange.notes
    if exchange.path in _FREE:
        return 0
    if all(name not in notes for name in _NAMES):
        return None
    return sum(int(notes.get(name, 0)) for name in _NAMES)
