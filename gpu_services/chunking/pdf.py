"""PDFs into docling documents, window of pages by window of pages. Runs in a child process only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import pypdfium2
from docling.backend.docling_parse_backend import ThreadedDoclingParseDocumentBackend
from docling.datamodel.backend_options import ThreadedDoclingParseBackendOptions
from docling.datamodel.base_models import InputFormat
from docling.datamodel.pipeline_options import NativePdfPipelineOptions
from docling.pipeline.native_pdf_pipeline import NativePdfPipeline
from docling_core.types.doc import BoundingBox, CoordOrigin, DocItemLabel, DoclingDocument, ProvenanceItem, Size
from docling_core.types.doc.document import DocumentOrigin

from gpu_services.chunking.artifacts import table_model_present
from gpu_services.chunking.kinds import DocumentKind, damaged
from gpu_services.chunking.pdf_structure import (
    PROFILE_PAGES,
    Block,
    Line,
    OutlineEntry,
    PdfPage,
    Profile,
    StructureReader,
)
from gpu_services.chunking.source import Reading, Source, Window, execute, first_title
from mesh.errors import InvalidRequest

_LONGEST_TITLE = 500
_MOST_OUTLINE_ENTRIES = 5_000
_PARSE_PAGES = 16
"""Pages that are parsed at a time; it bounds memory and how long the first chunk takes."""


class NativePdf:
    """Reads PDFs with docling's native pipeline, which needs no model, and finds headings and paragraphs itself."""

    def __init__(self) -> None:
        self._reading = Reading(
            InputFormat.PDF,
            ThreadedDoclingParseDocumentBackend,
            ThreadedDoclingParseBackendOptions(parser_threads=1, max_concurrent_results=4, render_pages=False),
            NativePdfPipeline(NativePdfPipelineOptions(parser_threads=1, generate_page_images=False)),
            by_page=True,
        )

    def windows(self, source: Source, step: int) -> Iterator[Window]:
        """The document in windows of ``step`` pages."""
        outline = _open_pdf(source)
        pages = self._pages(source)
        first = list(islice(pages, PROFILE_PAGES))
        if not first:
            raise damaged("No page of the PDF can be read; save it again and send that.")
        profile = Profile.of(first)
        reader = StructureReader(profile, outline)
        if profile.title and not source.title:
            source.title = profile.title.text[:_LONGEST_TITLE]
        builder = _Builder(source.name)
        for page in chain(first, pages):
            builder.add_page(page)
            builder.add_blocks(reader.read(page))
            if page.number % step == 0 and page.number < source.pages:
                yield Window(builder.build(keep=reader.open_pages), page.number)
        builder.add_blocks(reader.close())
        yield Window(builder.build(), source.pages)

    def _pages(self, source: Source) -> Iterator[PdfPage]:
        for first in range(1, source.pages + 1, _PARSE_PAGES):
            last = min(first + _PARSE_PAGES - 1, source.pages)
            result = execute(self._reading, source, (first, last))
            read = {page.page_no: page for page in result.pages}
            for number in range(first, last + 1):
                page = read.get(number)
                if page is None or page.size is None or page.parsed_page is None:
                    source.warn(f"Page {number} could not be read and was left out.")
                    continue
                height = page.size.height
                lines = []
                for cell in page.parsed_page.textline_cells:
                    box = cell.rect.to_bounding_box().to_top_left_origin(height)
                    lines.append(Line(cell.text, box.l, box.t, box.r, box.b, getattr(cell, "font_name", "") or ""))
                yield PdfPage(number, page.size.width, height, tuple(lines))


class LayoutPdf:
    """Reads PDFs with docling's layout model, which sees headings, lists, tables and the reading order.

    Args:
        artifacts_path: folder with docling's models; empty means the hub's cache.
    """

    def __init__(self, artifacts_path: str = "") -> None:
        from docling.datamodel.pipeline_options import PdfPipelineOptions
        from docling.pipeline.standard_pdf_pipeline import StandardPdfPipeline

        options = PdfPipelineOptions(
            do_ocr=False,
            do_table_structure=table_model_present(artifacts_path),
            artifacts_path=artifacts_path or None,
        )
        self._reading = Reading(
            InputFormat.PDF,
            ThreadedDoclingParseDocumentBackend,
            ThreadedDoclingParseBackendOptions(parser_threads=1, max_concurrent_results=4),
            StandardPdfPipeline(options),
            by_page=True,
        )

    def windows(self, source: Source, step: int) -> Iterator[Window]:
        """The document in windows of ``step`` pages; the first is a small one, because the model takes its time."""
        _open_pdf(source)
        first = 1
        while first <= source.pages:
            last = min(first + (min(step, 2) if first == 1 else step) - 1, source.pages)
            result = execute(self._reading, source, (first, last))
            for error in result.errors:
                source.warn(
                    f"Page {error.page_no} could not be read whole." if error.page_no else "A part could not be read."
                )
            source.title = source.title or first_title(result.document)[:_LONGEST_TITLE]
            yield Window(result.document, last)
            first = last + 1


class _Builder:
    """Collects a window's blocks and makes docling's document of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._blocks: list[Block] = []
        self._sizes: dict[int, Size] = {}

    def add_page(self, page: PdfPage) -> None:
        self._sizes[page.number] = Size(width=page.width, height=page.height)

    def add_blocks(self, blocks: Iterable[Block]) -> None:
        self._blocks.extend(blocks)

    def build(self, keep: Collection[int] = ()) -> DoclingDocument:
        """The document of the blocks so far. The next begins empty, but knows the pages in ``keep``."""
        origin = DocumentOrigin(mimetype=DocumentKind.PDF.value, filename=self._name, binary_hash=0)
        document = DoclingDocument(name=Path(self._name).stem or "document", origin=origin)
        for number, size in self._sizes.items():
            document.add_page(page_no=number, size=size)
        for block in self._blocks:
            self._add(document, block)
        self._blocks = []
        self._sizes = {number: size for number, size in self._sizes.items() if number in keep}
        return document

    def _add(self, document: DoclingDocument, block: Block) -> None:
        provenance, begin = [], 0
        for place in block.places:
            size = self._sizes.get(place.page)
            if size is None:
                continue
            box = BoundingBox(
                l=place.left, t=place.top, r=place.right, b=place.bottom, coord_origin=CoordOrigin.TOPLEFT
            )
            provenance.append(
                ProvenanceItem(
                    page_no=place.page,
                    bbox=box.to_bottom_left_origin(size.height),
                    charspan=(begin, begin + place.characters),
                )
            )
            begin += place.characters
        if block.level is None:
            item = document.add_text(label=DocItemLabel.TEXT, text=block.text)
        elif block.level == 0:
            item = document.add_title(block.text)
        else:
            item = document.add_heading(block.text, level=block.level)
        item.prov.extend(provenance)


def _open_pdf(source: Source) -> tuple[OutlineEntry, ...]:
    """Count the pages before docling reads any, and read the outline.

    Raises:
        InvalidRequest: DOCUMENT_ENCRYPTED, DOCUMENT_DAMAGED.
        PayloadTooLarge: DOCUMENT_TOO_MANY_PAGES.
    """
    try:
        pdf = pypdfium2.PdfDocument(source.path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower() or "security" in str(error).lower():
            raise InvalidRequest(
                "The PDF is encrypted; remove its password and send it again.", reason="DOCUMENT_ENCRYPTED"
            ) from error
        raise damaged("The PDF is cut off or damaged; save it again and send that.") from error
    try:
        source.count_pages(len(pdf))
        if source.pages == 0:
            raise damaged("The PDF has no pages that can be read.")
        source.title = " ".join(str(pdf.get_metadata_dict().get("Title", "")).split())[:_LONGEST_TITLE]
        return _outline(pdf)
    finally:
        pdf.close()


def _outline(pdf: pypdfium2.PdfDocument) -> tuple[OutlineEntry, ...]:
    """The PDF's table of contents; empty where it is of no use: a few bookmarks in many pages are not its headings."""
    entries = []
    for bookmark in islice(pdf.get_toc(max_depth=9), _MOST_OUTLINE_ENTRIES):
        destination = bookmark.get_dest()
        index = destination.get_index() if destination else None
        if index is not None:
            entries.append(OutlineEntry(bookmark.get_title(), min(bookmark.level + 1, 9), index + 1))
    return tuple(entries) if len(entries) >= max(2, len(pdf) // 10) else ()
