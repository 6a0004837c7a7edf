"""Documents of our own that a child does before its first order: what they load is then loaded.

They are made here rather than shipped as files, so that what a child is warmed by can be read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_services.chunking.events import ChildSetup, Limits
from gpu_services.chunking.kinds import DocumentKind
from mesh.errors import Internal

if TYPE_CHECKING:
    from gpu_services.chunking.conversion import Converter

PAGE_TEXT = "A page about the mesh"
_HTML = b"<html><body><h1>The mesh</h1><p>Chunks of a document.</p><table><tr><td>a</td></tr></table></body></html>"


def small_pdf() -> bytes:
    """A PDF of one page with one line of text."""
    stream = f"BT /F1 12 Tf 72 720 Td ({PAGE_TEXT}) Tj ET".encode()
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(out)


def warm_up_documents(converter: Converter, setup: ChildSetup) -> None:
    """Chunk a PDF and a page of HTML.

    Raises:
        Internal: the PDF's text did not come out; the child would be of no use.
    """
    from gpu_services.chunking.source import Source
    from mesh.docling.chunker import WindowedChunker
    from mesh.docling.tokens import counter_for

    limits = Limits(max_pages=2, max_unpacked_bytes=2**20, max_seconds=60, max_memory_bytes=setup.max_memory_bytes)
    counter = counter_for(setup.tokenizer_path)
    with tempfile.TemporaryDirectory() as folder:
        for kind, content, expected in (
            (DocumentKind.PDF, small_pdf(), PAGE_TEXT),
            (DocumentKind.HTML, _HTML, "Chunks"),
        ):
            path = Path(folder) / kind.name
            path.write_bytes(content)
            chunker = WindowedChunker(counter, max_tokens=64, merge_peers=True)
            windows = converter.windows(Source(path, kind, kind.name, limits))
            chunks = [chunk for window in windows for chunk in chunker.chunk(window.document)] + list(chunker.close())
            if not any(expected in chunk.text for chunk in chunks):
                raise Internal(f"The warm-up {kind.name} document came out without its text.")
