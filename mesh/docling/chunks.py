"""What cutting a document gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """Where text stands on a page, in points from the page's top left corner. Pages count from 1."""

    page: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of a document.

    ``tokens`` is the length of ``contextualized_text`` (the headings, then the text) as the embedding model reads it,
    its special tokens included.
    """

    index: int
    text: str
    headings: tuple[str, ...] = ()
    pages: tuple[int, ...] = ()
    tokens: int
    boxes: tuple[Box, ...] = ()
    contextualized_text: str
