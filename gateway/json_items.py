"""JSON bodies that would keep the event loop busy by being read are known by their bytes, and left unread.

The time goes with what a body holds rather than with its length: 16 MiB of prose are read in some hundredths of a
second, 16 MiB of empty lists in several seconds, in which nothing else runs.
"""

from __future__ import annotations

from mesh.errors import PayloadTooLarge

MOST_ITEMS = 1_000_000
"""Items of lists and objects, at any depth; three times the token ids that OpenAI's own API takes in one request."""
MOST_NESTED = 200_000
"""Lists, objects and the latters' fields, of which each costs up to ten times a plain item. The most messages that the
settings allow have as many."""

_ITEM, _NESTED = b",", (b"[", b"{", b":")


def require_few_items(body: bytes) -> None:
    """Refuse a body that takes long to be read. What it costs to tell is a small part of reading it.

    Raises:
        PayloadTooLarge: TOO_MANY_INPUTS.
    """
    if len(body) <= MOST_NESTED or not _has_many(body):
        return
    # Most of it may be within texts, where it costs nothing.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Texts are items and names of fields, so there are no more of them. It bounds the pieces below.
    if plain.count(b'"') <= 2 * (MOST_ITEMS + MOST_NESTED) and not _has_many(b"".join(plain.split(b'"')[::2])):
        return
    raise PayloadTooLarge(
        f"The body holds more than {MOST_ITEMS:,} items, or {MOST_NESTED:,} lists, objects and fields of objects. "
        "Send it in parts.",
        reason="TOO_MANY_INPUTS",
    )


def _has_many(body: bytes) -> bool:
    return body.count(_ITEM) > MOST_ITEMS or sum(map(body.count, _NESTED)) > MOST_NESTED
