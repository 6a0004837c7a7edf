"""A document is what its bytes are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_services.chunking.kinds import DocumentKind, declared_kind, recognise
from mesh.errors import InvalidRequest


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "document"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("media_type", "filename", "kind"),
    [
        ("application/pdf", "", DocumentKind.PDF),
        ("Text/HTML; charset=utf-8", "a.pdf", DocumentKind.HTML),
        ("application/octet-stream", "Report.DOCX", DocumentKind.DOCX),
        ("", "slides.pptx", DocumentKind.PPTX),
        ("", "C:\\tables\\a.xlsx", DocumentKind.XLSX),
        ("", "notes.md", DocumentKind.MARKDOWN),
        ("", "README", None),
    ],
)
def test_the_media_type_says_the_kind_and_else_the_name_does(
    media_type: str, filename: str, kind: DocumentKind | None
) -> None:
    """A media type that says something wins over the name's ending."""
    assert declared_kind(media_type, filename) is kind


@pytest.mark.parametrize(("media_type", "filename"), [("image/png", "a.pdf"), ("", "a.exe"), ("", "a.doc")])
def test_a_kind_that_is_not_read_is_refused_before_the_upload(media_type: str, filename: str) -> None:
    """What cannot be read is refused by its name alone, and the message says what can be."""
    with pytest.raises(InvalidRequest, match="PDF, DOCX") as refused:
        declared_kind(media_type, filename)
    assert refused.value.reason == "DOCUMENT_TYPE_UNSUPPORTED"


@pytest.mark.parametrize(
    ("declared", "content", "reason"),
    [
        (DocumentKind.PDF, b"\x89PNG\r\n\x1a\n" + b"0" * 64, "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.DOCX, b"%PDF-1.7 ...", "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.PDF, b"plain words", "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.TEXT, b"\x00\x01\x02\x03", "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.PDF, b"", "DOCUMENT_EMPTY"),
        (DocumentKind.TEXT, b"%PDF-1.7\n1 0 obj", "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.TEXT, b"\n%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.TEXT, b"\n%PDF-1.7\n1 0 obj\x00", "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.TEXT, b"MZ\x90\x00\x03\x00", "DOCUMENT_TYPE_MISMATCH"),
        (DocumentKind.MARKDOWN, b"GIF89a\x01\x00\x01\x00", "DOCUMENT_TYPE_MISMATCH"),
        (None, b"MZ\x90\x00\x03\x00", "DOCUMENT_TYPE_UNSUPPORTED"),
        (None, b"Rar!\x1a\x07\x00", "DOCUMENT_TYPE_UNSUPPORTED"),
        (None, b"\x00\x01\x02\x03", "DOCUMENT_TYPE_UNSUPPORTED"),
        (None, b"\x89PNG\r\n\x1a\n", "DOCUMENT_TYPE_UNSUPPORTED"),
        (DocumentKind.DOCX, b"PK\x03\x04cut off", "DOCUMENT_DAMAGED"),
        (
            DocumentKind.DOCX,
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600 + "EncryptedPackage".encode("utf-16-le"),
            "DOCUMENT_ENCRYPTED",
        ),
        (None, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "DOCUMENT_TYPE_UNSUPPORTED"),
    ],
)
def test_bytes_that_are_something_else_are_refused_by_their_reason(
    tmp_path: Path, declared: DocumentKind | None, content: bytes, reason: str
) -> None:
    """The bytes decide: a PNG named .pdf, a PDF named .docx, binary named .txt, an Office file with a password."""
    with pytest.raises(InvalidRequest) as refused:
        recognise(_file(tmp_path, content), declared)
    assert refused.value.reason == reason


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx"])
def test_office_documents_are_told_apart_by_their_main_part(
    tmp_path: Path, office_archive: Callable[..., bytes], kind: str
) -> None:
    """A zip archive is the Office document whose main part it holds, whatever its name."""
    assert recognise(_file(tmp_path, office_archive(kind)), None).ending == f".{kind}"


@pytest.mark.parametrize(
    ("declared", "content", "kind"),
    [
        (None, b"  <!DOCTYPE html><html>", DocumentKind.HTML),
        (None, b"words", DocumentKind.TEXT),
        (DocumentKind.TEXT, b"<html>", DocumentKind.TEXT),
        (DocumentKind.MARKDOWN, b"# Title", DocumentKind.MARKDOWN),
        (DocumentKind.TEXT, "ü".encode("utf-16"), DocumentKind.TEXT),
        (None, b"\xef\xbb\xbf%PDF-1.4", DocumentKind.PDF),
    ],
)
def test_text_is_what_it_is_declared_as(
    tmp_path: Path, declared: DocumentKind | None, content: bytes, kind: DocumentKind
) -> None:
    """Nothing in the bytes parts text, Markdown and HTML, so the declaration does; without one, a look at the start."""
    assert recognise(_file(tmp_path, content), declared) is kind


@pytest.mark.parametrize("declared", [DocumentKind.TEXT, DocumentKind.MARKDOWN, DocumentKind.HTML])
@pytest.mark.parametrize(
    "words",
    [
        "MZ series motors are quiet.",
        "GIF89a is the later of two versions.",
        "Rar! cried the lion.",
        "A file that starts with %PDF-1.7 is a PDF.",
        "%PDF-1.7 ".rjust(1024) + "é" * 8192,  # what is looked at ends inside of a character
        "x%PDF-1.7 " + "é" * 8192,
    ],
)
def test_words_that_other_formats_begin_with_are_words(tmp_path: Path, declared: DocumentKind, words: str) -> None:
    """A text declared as one may speak of other formats, also in its first words."""
    assert recognise(_file(tmp_path, words.encode()), declared) is declared


def test_words_without_a_declaration_are_words_too(tmp_path: Path) -> None:
    """A nameless text that begins like a program's two letters is a text."""
    assert recognise(_file(tmp_path, b"MZ series motors are quiet."), None) is DocumentKind.TEXT
