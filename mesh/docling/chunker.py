"""Cuts docling documents into chunks, one window of pages after another, as if they were one document.

docling-core's HybridChunker cuts each window into pieces along the structure and the token budget; merging neighbours
that are small enough happens here, because a chunk may begin in one window and end in the next. The headings in force
at a window's end stand at the beginning of the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import semchunk
from docling_core.transforms.chunker.doc_chunk import DocChunk
from docling_core.transforms.chunker.hybrid_chunker import HybridChunker
from docling_core.transforms.chunker.tokenizer.base import BaseTokenizer
from docling_core.types.doc.document import DoclingDocument, RefItem, SectionHeaderItem, TitleItem
from pydantic import ConfigDict

from mesh.docling.chunks import Box, Chunk
from mesh.docling.tokens import TokenCounter

if TYPE_CHECKING:
    from docling_core.types.doc.document import DocItem

_DELIMITER = "\n"
Heading = tuple[int, str]
"""Level (0 is the title) and text."""


class BudgetTokenizer(BaseTokenizer):  # type: ignore[misc, unused-ignore] # untyped where docling is absent
    """Shows docling a chunk's budget: what is left of ``max_tokens`` once the special tokens are in."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    counter: TokenCounter
    max_tokens: int

    def count_tokens(self, text: str) -> int:
        """What the text costs."""
        return self.counter.budget_tokens(text)

    def get_max_tokens(self) -> int:
        """The budget."""
        return self.max_tokens - self.counter.special_tokens

    def get_tokenizer(self) -> Any:
        """What semchunk counts with: a function serves it as well as a tokenizer, and this one knows the budget."""
        return self.counter.budget_tokens


class _Segmenter(HybridChunker):  # type: ignore[misc, unused-ignore] # untyped where docling is absent
    """HybridChunker that cuts a long text without two faults of docling's way.

    semchunk, as docling calls it, keeps every text it ever counted for the life of the process. And tables, which
    this chunker writes as "row, column = value", are cut there as if they were Markdown, which puts a header of dashes
    before every piece.
    """

    def segment(self, doc_chunk: DocChunk, available_length: int, doc_serializer: Any) -> list[str]:  # noqa: ARG002
        """Cut a text at the most meaningful places that keep each piece within the length."""
        counter = lru_cache(maxsize=4096)(self.tokenizer.count_tokens)
        return list(semchunk.chunkerify(counter, chunk_size=available_length, memoize=False)(doc_chunk.text))


@dataclass(slots=True)
class _Piece:
    """What may still be merged with the next piece."""

    text: str
    headings: tuple[str, ...]
    boxes: list[Box] = field(default_factory=list)
    pages: set[int] = field(default_factory=set)


class WindowedChunker:
    """Chunks of a document that comes in windows.

    Args:
        counter: counts tokens.
        max_tokens: longest chunk, headings and special tokens included.
        merge_peers: whether small neighbours under the same headings become one chunk (docling-hybrid) or every element
            stays its own (docling-hierarchical).
    """

    def __init__(self, counter: TokenCounter, *, max_tokens: int, merge_peers: bool) -> None:
        self._counter = counter
        self._budget = max_tokens - counter.special_tokens
        self._merge_peers = merge_peers
        self._docling = _Segmenter(
            tokenizer=BudgetTokenizer(counter=counter, max_tokens=max_tokens),
            merge_peers=False,
            always_emit_headings=True,  # a heading without text below it is text that must not get lost
        )
        self._open: _Piece | None = None
        self._headings: dict[int, str] = {}
        self._untold: _Piece | None = None
        self._index = 0
        self.tokens = 0
        self.characters = 0

    @property
    def chunks(self) -> int:
        """Chunks given out so far."""
        return self._index

    def chunk(self, window: DoclingDocument) -> Iterator[Chunk]:
        """The chunks that are complete with this window."""
        carried = self._carry_headings_into(window)
        with warnings.catch_warnings():
            # It warns, with the whole chunk's repr, of every chunk whose headings leave no room for text.
            warnings.filterwarnings("ignore", message="Headers and captions")
            found = [chunk for chunk in self._docling.chunk(window) if isinstance(chunk, DocChunk)]
        pieces = [_piece(chunk, window) for chunk in found]
        pieces = self._settle_bare_headings(pieces, carried)
        self._follow_headings(window)
        for piece in pieces:
            for part in self._within_budget(piece):
                yield from self._add(part)

    def close(self) -> Iterator[Chunk]:
        """The last chunks."""
        if self._untold is not None:
            yield from self._add(_bare(self._untold))
            self._untold = None
        if self._open is not None:
            yield self._finish(self._open)
        self._open = None

    def _in_force(self) -> tuple[str, ...]:
        return tuple(self._headings[level] for level in sorted(self._headings))

    def _carry_headings_into(self, window: DoclingDocument) -> tuple[str, ...]:
        """Put the headings in force at the window's beginning, where docling's chunker looks for them."""
        if not self._headings or not window.body.children:
            return ()
        first = window.body.children[0].resolve(window)
        for level in sorted(self._headings):
            if level == 0:
                window.insert_title(first, self._headings[level], after=False)
            else:
                window.insert_heading(first, self._headings[level], level=level, after=False)
        return self._in_force()

    def _settle_bare_headings(self, pieces: list[_Piece], carried: tuple[str, ...]) -> list[_Piece]:
        """Headings without text: each is told once, and one at the window's end waits for the next window's text."""
        kept = []
        for position, piece in enumerate(pieces):
            if piece.text:
                kept.append(piece)
                continue
            is_carried = position == 0 and bool(carried) and piece.headings == carried
            bare = self._untold if is_carried else piece
            if position == len(pieces) - 1:
                self._untold = bare
                return kept
            if bare is not None:
                kept.append(_bare(bare))
        if pieces:
            self._untold = None
        return kept

    def _follow_headings(self, window: DoclingDocument) -> None:
        for item, _ in window.iterate_items():
            if isinstance(item, TitleItem | SectionHeaderItem):
                level = item.level if isinstance(item, SectionHeaderItem) else 0
                self._headings = {above: text for above, text in self._headings.items() if above < level}
                self._headings[level] = item.text

    def _within_budget(self, piece: _Piece) -> Iterator[_Piece]:
        """The piece, cut once more where docling's estimate let it grow over the budget."""
        if self._cost(piece.text, piece.headings) <= self._budget:
            yield piece
            return
        headings = piece.headings if self._cost("", piece.headings) <= self._budget // 2 else ()
        rest = piece.text
        while rest:
            cut = self._longest_fitting(rest, headings)
            yield _Piece(rest[:cut].strip(), headings, piece.boxes, piece.pages)
            rest = rest[cut:].lstrip()

    def _longest_fitting(self, text: str, headings: tuple[str, ...]) -> int:
        """How many characters fit, at least one; at a space where one is near the end."""
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._cost(text[:middle], headings) <= self._budget else (low, middle - 1)
        space = text.rfind(" ", low // 2, low) if low < len(text) else -1
        return space if space > 0 and self._cost(text[:space], headings) <= self._budget else low

    def _add(self, piece: _Piece) -> Iterator[Chunk]:
        before = self._open
        if before is not None and self._merge_peers and before.headings == piece.headings:
            text = before.text + _DELIMITER + piece.text
            if self._cost(text, before.headings) <= self._budget:
                before.text = text
                before.boxes = [*before.boxes, *piece.boxes]
                before.pages = before.pages | piece.pages
                return
        if before is not None:
            yield self._finish(before)
        self._open = piece

    def _cost(self, text: str, headings: tuple[str, ...]) -> int:
        return self._counter.budget_tokens(_contextualized(text, headings))

    def _finish(self, piece: _Piece) -> Chunk:
        contextualized = _contextualized(piece.text, piece.headings)
        chunk = Chunk(
            index=self._index,
            text=piece.text,
            headings=piece.headings,
            pages=tuple(sorted(piece.pages)),
            tokens=self._counter.embedded_tokens(contextualized),
            boxes=tuple(_united(piece.boxes)),
            contextualized_text=contextualized,
        )
        self._index += 1
        self.tokens += chunk.tokens
        self.characters += len(chunk.text)
        return chunk


def _bare(piece: _Piece) -> _Piece:
    """A heading without text below it: its own words become the text."""
    return _Piece(piece.headings[-1], piece.headings[:-1], piece.boxes, piece.pages)


def _contextualized(text: str, headings: tuple[str, ...]) -> str:
    """As docling-core's ``contextualize`` joins them."""
    return _DELIMITER.join((*headings, text))


def _piece(chunk: DocChunk, window: DoclingDocument) -> _Piece:
    headings = chunk.meta.headings or ()
    if not chunk.text:  # headings alone; docling leaves them out of the chunk where they are over the budget
        headings = [RefItem(cref=item.self_ref).resolve(window).text for item in chunk.meta.doc_items]
    piece = _Piece(text=chunk.text, headings=tuple(headings))
    points = _points_per_unit(window)
    for item in chunk.meta.doc_items:
        _place(item, window, points, piece)
    return piece


def _points_per_unit(document: DoclingDocument) -> float | None:
    """What docling's coordinates mean: points in PDFs, EMU in slides, columns and rows (so no place) in sheets."""
    media_type = document.origin.mimetype if document.origin else ""
    if "presentationml" in media_type:
        return 1 / 12_700
    return None if "spreadsheetml" in media_type else 1.0


def _place(item: DocItem, window: DoclingDocument, points: float | None, piece: _Piece) -> None:
    for provenance in item.prov:
        page = window.pages.get(provenance.page_no)
        piece.pages.add(provenance.page_no)
        if page is None or page.size is None or points is None:
            continue
        box = provenance.bbox.to_top_left_origin(page.size.height)
        corners = (round(value * points, 2) for value in (box.l, box.t, box.r, box.b))
        piece.boxes.append(Box(provenance.page_no, *corners))


def _united(boxes: list[Box]) -> Iterator[Box]:
    """One box per column and page: boxes of neighbouring paragraphs that stand above each other become one."""
    current: Box | None = None
    for box in boxes:
        if current is not None and current.page == box.page and box.top >= current.top and _share_columns(current, box):
            current = Box(
                box.page,
                min(current.left, box.left),
                current.top,
                max(current.right, box.right),
                max(current.bottom, box.bottom),
            )
            continue
        if current is not None:
            yield current
        current = box
    if current is not None:
        yield current


def _share_columns(above: Box, below: Box) -> bool:
    return min(above.right, below.right) > max(above.left, below.left)
