"""Headings and paragraphs out of lines."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_services.chunking.pdf_structure import Block, Line, OutlineEntry, PdfPage, Profile, StructureReader, rows_of


def _line(text: str, top: float, *, size: float = 10, left: float = 72, font: str = "Regular") -> Line:
    return Line(text, left, top, left + 6 * len(text), top + size, font)


def _paragraph(*texts: str, top: float) -> list[Line]:
    return [_line(text, top + 14 * position) for position, text in enumerate(texts)]


def _page(number: int, *lines: Line) -> PdfPage:
    return PdfPage(number, 612, 792, lines)


def _blocks(pages: Sequence[PdfPage], outline: Sequence[OutlineEntry] = ()) -> list[Block]:
    reader = StructureReader(Profile.of(pages), outline)
    return [*(block for page in pages for block in reader.read(page)), *reader.close()]


def _told(blocks: Sequence[Block]) -> list[tuple[int | None, str]]:
    return [(block.level, block.text) for block in blocks]


def test_lines_become_paragraphs_at_gaps() -> None:
    """Lines that follow each other closely are one paragraph; a gap ends it; a hyphenated word is put together."""
    page = _page(1, *_paragraph("One line and a hyphen-", "ated word.", top=100), *_paragraph("Two", top=150))
    assert _told(_blocks([page])) == [(None, "One line and a hyphenated word."), (None, "Two")]


def test_a_bullet_begins_a_paragraph() -> None:
    """Items of a list stay apart however close they stand."""
    page = _page(1, *_paragraph("Intro text here", "• first item", "goes on", "• second item", top=100))
    assert [text for _, text in _told(_blocks([page]))] == ["Intro text here", "• first item goes on", "• second item"]


def test_larger_lines_are_headings_where_there_is_no_outline() -> None:
    """The largest line at the top is the title, the other sizes are levels, bold at the body's size is the deepest."""
    page = _page(
        1,
        _line("The Title", 50, size=24),
        _line("Chapter", 100, size=16),
        _line("Section", 130, size=13),
        _line("Bold words", 160, font="Times-Bold"),
        *_paragraph("Body text that is long enough to be the body", "and goes on for another line.", top=190),
    )
    assert [level for level, _ in _told(_blocks([page]))] == [0, 1, 2, 3, None]


def test_an_outline_decides_what_is_a_heading() -> None:
    """With an outline, large letters make no heading; an entry does, also over two lines and with other spaces."""
    pages = [
        _page(
            1,
            _line("Large but no heading", 60, size=16),
            _line("1.  A heading of two", 100, size=16),
            _line("lines", 118, size=16),
            *_paragraph("Body text of the document.", top=150),
        ),
        _page(2, _line("Large but no heading", 60, size=16), *_paragraph("More body text of it.", top=100)),
    ]
    outline = [OutlineEntry("1. A heading of two lines", 1, 1), OutlineEntry("Elsewhere", 1, 9)]
    told = _told(_blocks(pages, outline))
    assert (1, "1. A heading of two lines") in told
    assert (None, "Large but no heading") in told


def test_a_paragraph_goes_on_across_pages_and_past_headers_and_numbers() -> None:
    """What repeats in the margins is left out; the sentence that it interrupted is one paragraph with two places."""
    pages = [
        _page(
            number,
            _line("The running header", 30),
            *_paragraph(*([f"and {word.lower()} ends."] if number > 1 else []), top=99 + number),
            *_paragraph(f"{word} sentence goes on, and on,", top=150),
            _line(str(number), 760),
        )
        for number, word in enumerate(("This", "That", "Another", "The last"), start=1)
    ]
    blocks = _blocks(pages)
    assert _told(blocks)[0] == (None, "This sentence goes on, and on, and that ends.")
    assert [place.page for place in blocks[0].places] == [1, 2]
    assert sum(place.characters for place in blocks[0].places) == len(blocks[0].text)
    assert not any("running" in block.text or block.text.isdigit() for block in blocks)


def test_numbered_chapters_at_the_top_of_each_page_are_no_running_header() -> None:
    """What repeats but for its number is left out only where it is set like the body or smaller."""
    pages = [
        _page(number, _line(f"Chapter {number}", 40, size=18), *_paragraph(f"{word} body text.", top=100))
        for number, word in enumerate(("Some", "More", "Other", "Last"), start=1)
    ]
    assert [text for level, text in _told(_blocks(pages)) if level] == [f"Chapter {n}" for n in range(1, 5)]


def test_pieces_of_one_row_are_one_line() -> None:
    """A change of font cuts a line in two; a wide gap is a space and none is none."""
    page = _page(1, Line("see", 72, 100, 90, 110), Line("this", 96, 100, 120, 110), Line(".", 120.2, 100, 123, 110))
    assert [row.text for row in rows_of(page)] == ["see this."]


def test_an_endless_paragraph_is_cut() -> None:
    """A broken PDF without gaps or ends does not grow one paragraph without bound."""
    pages = [_page(n, *_paragraph(*["words without an end and"] * 40, top=10)) for n in range(1, 60)]
    assert max(len(block.text) for block in _blocks(pages)) < 25_000


def test_a_page_without_text_is_no_block() -> None:
    """Nothing in, nothing out."""
    assert _blocks([_page(1)]) == []
