"""Reads headings and paragraphs out of a PDF's lines.

docling's native pipeline gives every line of a page with its place and its font, and no structure. This module adds
what can be said without a model: what repeats in the margins is left out, lines become paragraphs (across pages too),
and headings are those of the PDF's own outline or, where it has none, lines set larger or bolder than the body text.

It works on pages one after another with bounded memory, and every decision depends on the pages before it and on the
document's first `PROFILE_PAGES` pages only, never on how the pages are grouped into windows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

PROFILE_PAGES = 16
"""Pages from which the body's font size and the running headers are learnt."""

_MARGIN_LINES = 3  # a running header or footer is among the first or last lines of a page
_LARGER = 1.15  # times the body's size, from which on a line counts as a heading
_LONGEST_HEADING = 160
_LONGEST_PARAGRAPH = 20_000  # characters; a "paragraph" of a broken PDF must not grow for ever
_BULLET = re.compile(r"(?:[•‣▪●◦∙·–—*-]|\(?(?:\d{1,3}|[a-z])[.)])\s")
_PAGE_NUMBER = re.compile(r"(?:page|seite|p\.)?\s*\d{1,4}(?:\s*(?:/|of|von)\s*\d{1,4})?", re.IGNORECASE)
_SENTENCE_END = (".", "!", "?", ":", "…", '."', ".”")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text: its box in points from the page's top left corner, and its font."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    font: str = ""

    @property
    def height(self) -> float:
        """Height of the box, which stands for the font's size."""
        return self.bottom - self.top

    @property
    def size(self) -> float:
        """The height, rounded so that lines of one font compare equal."""
        return round(self.height * 2) / 2

    @property
    def bold(self) -> bool:
        """Whether the font's name says bold."""
        name = self.font.lower()
        return any(word in name for word in ("bold", "black", "heavy", "-medi"))


@dataclass(frozen=True, slots=True)
class PdfPage:
    """A page's lines in the order of its content."""

    number: int
    width: float
    height: float
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a block stands; ``characters`` is how much of the block's text."""

    page: int
    left: float
    top: float
    right: float
    bottom: float
    characters: int


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph (level None), the title (level 0) or a heading (level 1 and deeper)."""

    text: str
    level: int | None
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class OutlineEntry:
    """An entry of the PDF's own table of contents. Levels count from 1, pages from 1."""

    title: str
    level: int
    page: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What the first pages tell about the whole document."""

    body_size: float
    line_gap: float
    heading_sizes: tuple[float, ...]
    title: Line | None
    running: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, pages: Sequence[PdfPage]) -> Profile:
        """Learn from the document's first pages."""
        rows = [row for page in pages for row in rows_of(page)]
        characters: Counter[float] = Counter()
        for row in rows:
            characters[row.size] += len(row.text)
        body = characters.most_common(1)[0][0] if characters else 10.0
        gaps = [
            below.top - above.bottom
            for page in pages
            for above, below in _neighbours(rows_of(page))
            if above.size == below.size == body and 0 <= below.top - above.bottom < 2 * body
        ]
        larger = sorted(
            {row.size for row in rows if row.size >= body * _LARGER and len(row.text) <= _LONGEST_HEADING}, reverse=True
        )
        return cls(
            body_size=body,
            line_gap=median(gaps) if gaps else body * 0.5,
            heading_sizes=tuple(larger[:8]),
            title=_title_of(pages, larger),
            running=_running_lines(pages, body * _LARGER),
        )

    def heading_level(self, row: Line) -> int | None:
        """The level that a line's look gives it in a PDF without an outline; None for body text."""
        if len(row.text) > _LONGEST_HEADING or not any(character.isalpha() for character in row.text):
            return None
        sizes = (
            self.heading_sizes[1:]
            if self.title and self.heading_sizes[:1] == (self.title.size,)
            else self.heading_sizes
        )
        if row.size >= self.body_size * _LARGER:
            return min(1 + sum(size > row.size for size in sizes), 9)
        if (
            row.bold
            and row.size >= self.body_size
            and len(row.text) <= 80
            and not row.text.endswith((".", ",", ";", ":"))
        ):
            return min(1 + len(sizes), 9)
        return None


@dataclass(slots=True)
class _Open:
    """The block that lines are still added to."""

    text: str
    level: int | None
    last: Line
    page: int
    places: list[Place] = field(default_factory=list)


class StructureReader:
    """Turns pages into blocks. A block is given out once no later line can belong to it.

    >>> reader = StructureReader(profile, outline=())
    >>> blocks = [*reader.read(page_1), *reader.read(page_2), *reader.close()]
    """

    def __init__(self, profile: Profile, outline: Iterable[OutlineEntry]) -> None:
        self._profile = profile
        by_page: dict[int, list[tuple[str, int]]] = {}
        for entry in outline:
            by_page.setdefault(entry.page, []).append((_squeezed(entry.title), entry.level))
        self._outline: Mapping[int, Sequence[tuple[str, int]]] = by_page
        self._open: _Open | None = None

    @property
    def open_pages(self) -> frozenset[int]:
        """The pages on which the block that is still open stands."""
        return frozenset(place.page for place in self._open.places) if self._open else frozenset()

    def read(self, page: PdfPage) -> Iterator[Block]:
        """The blocks that are complete once this page is read."""
        rows = rows_of(page)
        for position, row in enumerate(rows):
            in_margin = position < _MARGIN_LINES or position >= len(rows) - _MARGIN_LINES
            if in_margin and (_signature(row) in self._profile.running or _PAGE_NUMBER.fullmatch(row.text)):
                continue
            yield from self._take(page, row)

    def close(self) -> Iterator[Block]:
        """The last block."""
        if self._open is not None:
            yield Block(self._open.text, self._open.level, tuple(self._open.places))
        self._open = None

    def _take(self, page: PdfPage, row: Line) -> Iterator[Block]:
        level = self._level(page, row)
        joined = self._joined(page, row, level)
        if joined is None:
            yield from self.close()
            self._open = _Open(text=row.text, level=level, last=row, page=page.number)
            added = len(row.text)
        else:
            assert self._open is not None  # noqa: S101 - _joined says so
            added = len(joined) - len(self._open.text)
            self._open.text, self._open.last = joined, row
        _add_place(self._open, page.number, row, added)
        self._open.page = page.number

    def _level(self, page: PdfPage, row: Line) -> int | None:
        level = self._outline_level(page, row.text)
        if level is None and self._open and self._open.level and self._open.page == page.number:
            level = self._outline_level(page, _join(self._open.text, row.text))
        if level is not None:
            return level
        title = self._profile.title
        if title is not None and page.number == 1 and row.size == title.size:
            return 0
        return None if self._outline else self._profile.heading_level(row)

    def _joined(self, page: PdfPage, row: Line, level: int | None) -> str | None:
        """The open block's text with the row added; None where the row begins a new block."""
        block = self._open
        if block is None or block.level != level or len(block.text) > _LONGEST_PARAGRAPH:
            return None
        joined = _join(block.text, row.text)
        if level and self._outline:
            return joined if self._outline_level(page, joined) else None
        if level is None and _BULLET.match(row.text):
            return None
        if block.page == page.number and row.top > block.last.top:
            return joined if self._goes_on_below(block.last, row) else None
        return joined if level is None and _goes_on_elsewhere(block, row) else None

    def _goes_on_below(self, above: Line, row: Line) -> bool:
        """Whether a row stands so close under another, and is set so alike, that they belong together."""
        widest = max(self._profile.line_gap * 1.5, self._profile.line_gap + 0.25 * row.height)
        return row.top - above.bottom <= widest and abs(row.size - above.size) <= 0.25 * above.size

    def _outline_level(self, page: PdfPage, text: str) -> int | None:
        """The level of the page's outline entry that is the text or begins with it: a heading may take two rows."""
        wanted = _squeezed(text)
        entries = self._outline.get(page.number, ())
        for title, level in entries:
            if title == wanted:
                return level
        return next((level for title, level in entries if len(wanted) >= 12 and title.startswith(wanted)), None)


def rows_of(page: PdfPage) -> list[Line]:
    """The page's lines, with pieces that stand in one row put together: a change of font cuts a line."""
    rows: list[Line] = []
    for line in page.lines:
        text = " ".join(line.text.split())
        if not text:
            continue
        piece = Line(text, line.left, line.top, line.right, line.bottom, line.font)
        if rows and _same_row(rows[-1], piece):
            rows[-1] = _beside(rows[-1], piece)
        else:
            rows.append(piece)
    return rows


def _same_row(before: Line, after: Line) -> bool:
    overlap = min(before.bottom, after.bottom) - max(before.top, after.top)
    return overlap > 0.5 * min(before.height, after.height) and after.left >= before.right - 0.3 * before.height


def _beside(before: Line, after: Line) -> Line:
    space = " " if after.left - before.right > 0.12 * before.height else ""
    larger = before if len(before.text) >= len(after.text) else after
    return Line(
        text=before.text + space + after.text,
        left=min(before.left, after.left),
        top=larger.top,
        right=max(before.right, after.right),
        bottom=larger.bottom,
        font=larger.font,
    )


def _neighbours(rows: Sequence[Line]) -> Iterator[tuple[Line, Line]]:
    return pairwise(rows)


def _title_of(pages: Sequence[PdfPage], larger: Sequence[float]) -> Line | None:
    """The first page's largest line, where it stands in the upper half and nothing in the first pages is as large."""
    if not pages or not larger:
        return None
    first = [row for row in rows_of(pages[0]) if row.size == larger[0]]
    elsewhere = any(row.size == larger[0] for page in pages[1:] for row in rows_of(page))
    if not first or len(first) > 3 or elsewhere or first[0].top > pages[0].height / 2:
        return None
    return first[0]


def _running_lines(pages: Sequence[PdfPage], larger: float) -> frozenset[tuple[str, int]]:
    """Lines that stand at one height in the margins of at least half of the pages (and three), numbers aside.

    None is set larger than the body: that is how "Chapter 1", "Chapter 2" at the top of each page look.
    """
    counts: Counter[tuple[str, int]] = Counter()
    for page in pages:
        rows = rows_of(page)
        margins = (*rows[:_MARGIN_LINES], *rows[-_MARGIN_LINES:])
        counts.update({_signature(row) for row in margins if row.size < larger})
    enough = max(3, len(pages) // 2)
    return frozenset(signature for signature, count in counts.items() if count >= enough)


def _goes_on_elsewhere(block: _Open, row: Line) -> bool:
    """Whether a paragraph goes on at the top of the next column or page."""
    if abs(row.size - block.last.size) > 0.5 or block.text.endswith(_SENTENCE_END):
        return False
    return row.text[:1].islower() or block.text.endswith(("-", ","))


def _join(text: str, more: str) -> str:
    if text.endswith("-") and text[-2:-1].isalpha() and more[:1].islower():
        return text[:-1] + more
    return f"{text} {more}"


def _add_place(block: _Open, page: int, row: Line, characters: int) -> None:
    last = block.places[-1] if block.places else None
    if last is None or last.page != page or row.top < last.top - row.height:
        block.places.append(Place(page, row.left, row.top, row.right, row.bottom, characters))
        return
    block.places[-1] = Place(
        page,
        min(last.left, row.left),
        min(last.top, row.top),
        max(last.right, row.right),
        max(last.bottom, row.bottom),
        last.characters + characters,
    )


def _signature(row: Line) -> tuple[str, int]:
    """What a running line has in common on every page: its words but for numbers, and its height on the page."""
    return re.sub(r"\d+", "#", row.text).casefold(), round(row.top / 6)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()
