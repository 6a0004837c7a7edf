"""Documents of every kind into docling documents. Runs in a child process only."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

from docling.backend.html_backend import HTMLDocumentBackend
from docling.backend.md_backend import MarkdownDocumentBackend
from docling.backend.msexcel_backend import MsExcelDocumentBackend
from docling.backend.mspowerpoint_backend import MsPowerpointDocumentBackend
from docling.backend.msword_backend import MsWordDocumentBackend
from docling.datamodel.backend_options import (
    DeclarativeBackendOptions,
    HTMLBackendOptions,
    MarkdownBackendOptions,
    MsExcelBackendOptions,
    MsWordBackendOptions,
)
from docling.datamodel.base_models import InputFormat
from docling.datamodel.pipeline_options import ConvertPipelineOptions
from docling.pipeline.simple_pipeline import SimplePipeline
from docling_core.types.doc import DocItemLabel, DoclingDocument
from docling_core.types.doc.document import DocumentOrigin

from gpu_services.chunking.archive import check_archive
from gpu_services.chunking.artifacts import PdfPipeline
from gpu_services.chunking.kinds import DocumentKind
from gpu_services.chunking.pdf import LayoutPdf, NativePdf
from gpu_services.chunking.source import Reading, Source, Window, execute, first_title
from mesh.errors import InvalidRequest

_WHOLE = 10**9
_LONGEST_PARAGRAPH = 20_000


class _PdfReader(Protocol):
    def windows(self, source: Source, step: int) -> Iterator[Window]:
        """The document in windows of ``step`` pages."""


class Converter:
    """Converts documents, PDFs by the given pipeline."""

    def __init__(self, pdf_pipeline: PdfPipeline = "native", artifacts_path: str = "") -> None:
        self._pdf: _PdfReader = LayoutPdf(artifacts_path) if pdf_pipeline == "layout" else NativePdf()

    def windows(self, source: Source, *, whole: bool = False) -> Iterator[Window]:
        """The document window by window; ``whole`` gives it as one.

        Raises:
            InvalidRequest: DOCUMENT_ENCRYPTED, DOCUMENT_DAMAGED, DOCUMENT_ENCODING, DOCUMENT_EMPTY.
            PayloadTooLarge: DOCUMENT_TOO_MANY_PAGES, DOCUMENT_UNPACKS_TOO_LARGE.
        """
        if source.kind is DocumentKind.PDF:
            yield from self._pdf.windows(source, _WHOLE if whole else source.limits.window_pages)
            return
        document = _plain_text(source) if source.kind is DocumentKind.TEXT else _structured(source)
        source.count_pages(len(document.pages))
        source.title = source.title or first_title(document)
        yield Window(document, source.pages)


def _structured(source: Source) -> DoclingDocument:
    """A format that says itself what is a heading and what a table."""
    if source.kind.is_office:
        check_archive(source.path, source.limits.max_unpacked_bytes)
    elif source.kind is DocumentKind.MARKDOWN:
        _decoded(source.path)
    result = execute(_readings()[source.kind], source)
    for error in result.errors:
        source.warn(f"A part could not be read: {error.category.value if error.category else 'unknown'}.")
    document = result.document
    document.name = Path(source.name).stem
    if document.origin is not None:  # else it tells of a temporary file
        document.origin.filename, document.origin.mimetype = source.name, source.kind.value
    return document


@cache
def _readings() -> dict[DocumentKind, Reading]:
    """How each format is read. Nothing that a document names is ever fetched, from the network or from the disk."""
    pipeline = SimplePipeline(ConvertPipelineOptions())
    kinds = (
        (DocumentKind.DOCX, InputFormat.DOCX, MsWordDocumentBackend, MsWordBackendOptions()),
        (DocumentKind.PPTX, InputFormat.PPTX, MsPowerpointDocumentBackend, DeclarativeBackendOptions()),
        (DocumentKind.XLSX, InputFormat.XLSX, MsExcelDocumentBackend, MsExcelBackendOptions()),
        (DocumentKind.HTML, InputFormat.HTML, HTMLDocumentBackend, HTMLBackendOptions(fetch_images=False)),
        (DocumentKind.MARKDOWN, InputFormat.MD, MarkdownDocumentBackend, MarkdownBackendOptions(fetch_images=False)),
    )
    return {kind: Reading(format_, backend, options, pipeline) for kind, format_, backend, options in kinds}


def _plain_text(source: Source) -> DoclingDocument:
    """Paragraphs are what blank lines part; nothing in plain text is a heading."""
    text = _decoded(source.path)
    origin = DocumentOrigin(mimetype=DocumentKind.TEXT.value, filename=source.name, binary_hash=0)
    document = DoclingDocument(name=Path(source.name).stem or "document", origin=origin)
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        for content in _bounded(paragraph.strip()):
            document.add_text(label=DocItemLabel.TEXT, text=content)
    return document


def _bounded(paragraph: str) -> Iterator[str]:
    """The paragraph in pieces of bounded length: a log file of a gigabyte is one paragraph to the blank-line rule."""
    start = 0
    while start < len(paragraph):
        end = start + _LONGEST_PARAGRAPH
        if end < len(paragraph):
            space = paragraph.rfind(" ", start + _LONGEST_PARAGRAPH // 2, end)
            end = space if space > 0 else end
        if piece := paragraph[start:end].strip():
            yield piece
        start = end


def _decoded(path: Path) -> str:
    """The file's text: UTF-8, or UTF-16 where its mark says so."""
    content = path.read_bytes()
    marked_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The text is not valid UTF-8: byte {error.start} cannot be read; save it as UTF-8 and send it again.",
            reason="DOCUMENT_ENCODING",
        ) from error
