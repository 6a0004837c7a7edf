"""One document under conversion, and how docling is asked to convert it. Runs in a child process only."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from docling.datamodel.base_models import ConversionStatus, InputFormat
from docling.datamodel.document import ConversionResult, InputDocument
from docling.datamodel.settings import DocumentLimits
from docling_core.types.doc import ContentLayer, DoclingDocument
from docling_core.types.doc.document import SectionHeaderItem, TitleItem

from gpu_services.chunking.events import Limits
from gpu_services.chunking.kinds import DocumentKind, damaged
from mesh.errors import MeshError, PayloadTooLarge
from mesh.tracebacks import without_words

if TYPE_CHECKING:
    from docling.backend.abstract_backend import AbstractDocumentBackend
    from docling.datamodel.backend_options import BackendOptions
    from docling.pipeline.base_pipeline import BasePipeline

_log = logging.getLogger(__name__)
_MOST_WARNINGS = 50


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a document as docling's own document; pages count from the whole document's first."""

    document: DoclingDocument
    pages_done: int


@dataclass(slots=True)
class Source:
    """A document's file, and what becomes known about it on the way."""

    path: Path
    kind: DocumentKind
    name: str
    limits: Limits
    pages: int = 0
    title: str = ""
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Note something that was left out; after many, only that there are more."""
        if len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(message)
        elif len(self.warnings) == _MOST_WARNINGS:
            self.warnings.append("There were more warnings; the first are listed.")

    def count_pages(self, pages: int) -> None:
        """Take down the number of pages; raise PayloadTooLarge (DOCUMENT_TOO_MANY_PAGES) over the limit."""
        if pages > self.limits.max_pages:
            raise PayloadTooLarge(
                f"The document has {pages} pages and at most {self.limits.max_pages} are taken; "
                "split it and send the parts.",
                reason="DOCUMENT_TOO_MANY_PAGES",
            )
        self.pages = pages


@dataclass(frozen=True, slots=True)
class Reading:
    """How docling reads one kind of document."""

    format: InputFormat
    backend: type[AbstractDocumentBackend]
    options: BackendOptions
    pipeline: BasePipeline
    by_page: bool = False
    """Whether pages that cannot be read are left out, instead of failing the document."""


def execute(reading: Reading, source: Source, page_range: tuple[int, int] | None = None) -> ConversionResult:
    """Have docling convert the document, or the given pages of it (from and to, both included).

    Raises:
        InvalidRequest: DOCUMENT_DAMAGED: docling cannot read it. Its own words stay in the log: they may hold paths.
    """
    limits = DocumentLimits(page_range=page_range) if page_range else DocumentLimits()
    try:
        document = InputDocument(
            source.path,
            format=reading.format,
            backend=reading.backend,
            backend_options=reading.options,
            limits=limits,
        )
        if not document.valid:
            raise damaged(f"The document cannot be read as {source.kind.name}; save it again and send that.")
        result = reading.pipeline.execute(document, raises_on_error=True)
    except (MeshError, MemoryError):
        raise
    except Exception as error:
        if _ran_out_of_memory(error):
            raise MemoryError from error
        _log.warning("docling could not read a %s document: %s", source.kind.name, without_words(error))
        raise damaged(f"The document cannot be read as {source.kind.name}; save it again and send that.") from error
    if result.status is ConversionStatus.FAILURE and not reading.by_page:
        raise damaged(f"The document cannot be read as {source.kind.name}; save it again and send that.")
    return result


def first_title(document: DoclingDocument) -> str:
    """The document's title (HTML's stands outside of the text), or else its first heading of level 1, or else empty."""
    heading = ""
    for item, _ in document.iterate_items(included_content_layers=set(ContentLayer)):
        if isinstance(item, TitleItem):
            return str(item.text)
        if isinstance(item, SectionHeaderItem) and item.level == 1 and not heading:
            heading = item.text
    return heading


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
