"""Which kinds of document are read, and whether a file's bytes are what its name says."""

from __future__ import annotations

import codecs
import zipfile
from enum import Enum
from pathlib import Path, PurePosixPath

from mesh.errors import InvalidRequest


class DocumentKind(Enum):
    """A kind of document; the value is its media type."""

    PDF = "application/pdf"
    DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    HTML = "text/html"
    MARKDOWN = "text/markdown"
    TEXT = "text/plain"

    @property
    def is_text(self) -> bool:
        """Whether the kind has no bytes of its own to recognise it by."""
        return self in (DocumentKind.HTML, DocumentKind.MARKDOWN, DocumentKind.TEXT)

    @property
    def ending(self) -> str:
        """The usual ending of a file of this kind, with its dot."""
        return next(ending for ending, kind in _ENDINGS.items() if kind is self)

    @property
    def is_office(self) -> bool:
        """Whether the file is a zip archive of XML parts."""
        return self in (DocumentKind.DOCX, DocumentKind.PPTX, DocumentKind.XLSX)


_ENDINGS = {
    ".pdf": DocumentKind.PDF,
    ".docx": DocumentKind.DOCX,
    ".pptx": DocumentKind.PPTX,
    ".xlsx": DocumentKind.XLSX,
    ".html": DocumentKind.HTML,
    ".htm": DocumentKind.HTML,
    ".xhtml": DocumentKind.HTML,
    ".md": DocumentKind.MARKDOWN,
    ".markdown": DocumentKind.MARKDOWN,
    ".txt": DocumentKind.TEXT,
    ".text": DocumentKind.TEXT,
}
_OTHER_MEDIA_TYPES = {
    "application/xhtml+xml": DocumentKind.HTML,
    "application/x-pdf": DocumentKind.PDF,
    "text/x-markdown": DocumentKind.MARKDOWN,
}
# Media types that name no kind: what a browser or curl sends when it does not know.
_SAYS_NOTHING = {"", "application/octet-stream", "binary/octet-stream", "application/x-unknown"}

_MAIN_PARTS = {
    "word/document.xml": DocumentKind.DOCX,
    "ppt/presentation.xml": DocumentKind.PPTX,
    "xl/workbook.xml": DocumentKind.XLSX,
}
_OTHER_FORMATS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x1f\x8b", "gzip data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"{\\rtf", "an RTF document"),
)
# Words begin like this too ("MZ series motors"); the formats themselves have NUL bytes in their headers.
_ALSO_WORDS = {b"GIF8", b"Rar!", b"MZ"}
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_READ = "PDF, DOCX, PPTX, XLSX, HTML, Markdown and plain text"


def declared_kind(media_type: str, filename: str) -> DocumentKind | None:
    """The kind that the media type, or else the name's ending, says; None where neither says anything.

    Raises:
        InvalidRequest: DOCUMENT_TYPE_UNSUPPORTED: what is said is not read here.
    """
    essence = media_type.partition(";")[0].strip().lower()
    if essence not in _SAYS_NOTHING:
        kind = _OTHER_MEDIA_TYPES.get(essence) or next((kind for kind in DocumentKind if kind.value == essence), None)
        if kind is None:
            raise _unsupported(f"Documents of type {essence[:80]!r} are not read here; send {_READ}.")
        return kind
    ending = PurePosixPath(filename.replace("\\", "/")).suffix.lower()
    if not ending:
        return None
    if ending not in _ENDINGS:
        raise _unsupported(f"Files ending in {ending[:20]!r} are not read here; send {_READ}.")
    return _ENDINGS[ending]


def recognise(path: Path, declared: DocumentKind | None) -> DocumentKind:
    """The kind that the file's bytes are.

    Raises:
        InvalidRequest: DOCUMENT_TYPE_MISMATCH where the bytes are not what was declared; DOCUMENT_TYPE_UNSUPPORTED,
            DOCUMENT_ENCRYPTED (an Office file with a password), DOCUMENT_DAMAGED, DOCUMENT_EMPTY.
    """
    with path.open("rb") as file:
        head = file.read(8192)
    if not head:
        raise InvalidRequest("The document is empty.", reason="DOCUMENT_EMPTY")
    found = _of_bytes(path, head, text_declared=declared is not None and declared.is_text)
    if isinstance(found, str):
        if declared is None:
            raise _unsupported(f"The document is {found}; send {_READ}.")
        raise _mismatch(declared, found)
    if found is None:
        return _of_text(declared, head)
    if declared not in (None, found):
        raise _mismatch(declared, found.name)
    return found


def _of_bytes(path: Path, head: bytes, *, text_declared: bool) -> DocumentKind | str | None:
    """A kind, words for something that is not read, or None for what may be text."""
    # Readers take a PDF that begins after up to 1 KiB of something else. A text may well speak of one there.
    if head.startswith(b"%PDF-") or (b"%PDF-" in head[:1024] and not (text_declared and _may_be_text(head))):
        return DocumentKind.PDF
    if head.startswith(b"PK\x03\x04"):
        return _of_archive(path)
    if head.startswith(_OLE):
        return _of_compound_file(path)
    for magic, words in _OTHER_FORMATS:
        if head.startswith(magic) and (magic not in _ALSO_WORDS or b"\x00" in head):
            return words
    return None


def _may_be_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8 without NUL; a character cut off at their end is none the worse."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\x00" not in head


def _of_archive(path: Path) -> DocumentKind | str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged(
            "The file begins like an Office document and its archive cannot be read: it is cut off or damaged."
        ) from error
    return next((kind for part, kind in _MAIN_PARTS.items() if part in names), "a zip archive")


def _of_compound_file(path: Path) -> str:
    """Password-protected Office files are compound files with this stream; the others are formats of before 2007."""
    with path.open("rb") as file:
        tail = b""
        while block := file.read(1024 * 1024):
            if "EncryptedPackage".encode("utf-16-le") in tail + block:
                raise InvalidRequest(
                    "The document is protected by a password; remove it and send the document again.",
                    reason="DOCUMENT_ENCRYPTED",
                )
            tail = block[-64:]
    return "an Office file of before 2007"


def _of_text(declared: DocumentKind | None, head: bytes) -> DocumentKind:
    if declared is not None and not declared.is_text:
        raise _mismatch(declared, "text" if b"\x00" not in head else "binary data")
    if b"\x00" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        if declared is None:
            raise _unsupported(f"The document's bytes are not of a kind that is read here; send {_READ}.")
        raise _mismatch(declared, "binary data")
    if declared is not None:
        return declared
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return (
        DocumentKind.HTML if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) else DocumentKind.TEXT
    )


def damaged(message: str) -> InvalidRequest:
    """The error of a document that is cut off or broken."""
    return InvalidRequest(message, reason="DOCUMENT_DAMAGED")


def _mismatch(declared: DocumentKind | None, found: str) -> InvalidRequest:
    name = declared.name if declared else "nothing"
    return InvalidRequest(
        f"The document is declared as {name} and its bytes are {found}; send the type that it is.",
        reason="DOCUMENT_TYPE_MISMATCH",
    )


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="DOCUMENT_TYPE_UNSUPPORTED")
