"""Samples of every format, made here, and a child process that is a script."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import pytest

from gpu_services.chunking.events import Event, Finished, Limits, Order, Ready

DOCUMENTS = Path(__file__).parents[2] / "data" / "documents"
_MAIN_PARTS = {"docx": "word/document.xml", "pptx": "ppt/presentation.xml", "xlsx": "xl/workbook.xml"}


@pytest.fixture
def real_pdf() -> Path:
    """A published specification of 17 pages with an outline, running headers and page numbers."""
    return DOCUMENTS / "shared-mime-info-spec.pdf"


@pytest.fixture
def real_html() -> Path:
    """A published policy as one page of HTML."""
    return DOCUMENTS / "python-policy.html"


@pytest.fixture
def limits() -> Limits:
    """Small limits."""
    return Limits(max_pages=50, max_unpacked_bytes=2**20, max_seconds=30, max_memory_bytes=2**31)


@pytest.fixture
def office_archive() -> Callable[..., bytes]:
    """Makes a zip archive that looks like an Office document, with more parts as asked for."""

    def make(kind: str, **parts: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("[Content_Types].xml", b"<Types/>")
            archive.writestr(_MAIN_PARTS[kind], b"<document/>")
            for name, content in parts.items():
                archive.writestr(name.replace("__", "."), content)
        return out.getvalue()

    return make


class ScriptedChild:
    """A document process that gives the events of a script, and remembers what was asked of it."""

    def __init__(self, script: Sequence[Event] = ()) -> None:
        self.script = list(script)
        self.documents = 0
        self.ready: Ready | None = None
        self.killed = False
        self.closed = False
        self.orders: list[Order] = []

    @property
    def usable(self) -> bool:
        """Until it is killed."""
        return not self.killed

    async def events(self, order: Order, *, seconds: float) -> AsyncGenerator[Event, None]:
        """The script, whatever the document."""
        self.orders.append(order)
        for event in self.script:
            yield event

    def kill(self) -> None:
        """Remember it."""
        self.killed = True

    async def close(self) -> None:
        """Remember it."""
        self.closed = True


@pytest.fixture
def scripted_child() -> type[ScriptedChild]:
    """The class of children that are scripts."""
    return ScriptedChild


@pytest.fixture
def finished() -> Finished:
    """The end of a document without anything in it."""
    return Finished(media_type="text/plain", pages=0, title="", warnings=())
