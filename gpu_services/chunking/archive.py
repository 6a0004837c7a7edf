"""Refuses a zip bomb before anything parses it: the parts are really inflated and counted.

A central directory can lie about sizes, and parts can overlap so that a few kilobytes become petabytes. Only inflating
everything once tells; the bytes are thrown away at once.
"""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from pathlib import Path

from gpu_services.chunking.kinds import damaged
from mesh.errors import InvalidRequest, PayloadTooLarge

MAX_PARTS = 20_000
_BLOCK = 64 * 1024
_ENCRYPTED = 0x1
# Office files have no use for document type declarations; entities declared there are how XML grows without end or
# reads files ("billion laughs", XXE). The keywords are looked for as ASCII, with which nearly all encodings agree, and
# in both orders of UTF-16; a part in an encoding that would hide them is refused.
_DECLARATIONS = tuple(
    word.encode(encoding) for word in ("<!DOCTYPE", "<!ENTITY") for encoding in ("ascii", "utf-16-le", "utf-16-be")
)
# In every part: a relationship may make one of any name the document.
_ENTITIES = _DECLARATIONS[3:]
_DECLARED_ENCODING = re.compile(rb"""encoding\s*=\s*["']([^"']{0,40})""")
_LONGEST_DECLARATION = 1024
# "<" in UTF-32, and "<?xm" in EBCDIC.
_HIDING_BEGINNINGS = (
    b"<\x00\x00\x00", b"\x00\x00\x00<\x00\x00\x00", b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff", b"\x4c\x6f\xa7\x94",
)  # fmt: skip
_PLAIN_WORDS = b"<!ENTITY +ADw-"
_OVERLAP = max(len(word) for word in _DECLARATIONS) - 1


def check_archive(path: Path, max_unpacked_bytes: int) -> int:
    """The bytes that the archive really unpacks to.

    Raises:
        PayloadTooLarge: DOCUMENT_UNPACKS_TOO_LARGE: more bytes or more parts than allowed.
        InvalidRequest: DOCUMENT_DAMAGED, also where an XML part declares entities; DOCUMENT_ENCRYPTED.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > max_unpacked_bytes:
                raise _too_large(max_unpacked_bytes)
            total = 0
            for part in parts:
                if part.flag_bits & _ENCRYPTED:
                    raise InvalidRequest(
                        "The document is protected by a password; remove it and send the document again.",
                        reason="DOCUMENT_ENCRYPTED",
                    )
                total += _inflate(archive, part, max_unpacked_bytes - total, max_unpacked_bytes)
            return total
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise damaged("The document's archive is cut off or damaged; save it again and send that.") from error


def _inflate(archive: zipfile.ZipFile, part: zipfile.ZipInfo, allowance: int, limit: int) -> int:
    is_xml = part.filename.lower().endswith((".xml", ".rels", ".vml"))
    size, tail = 0, b""
    with archive.open(part) as stream:
        while block := stream.read(_BLOCK):
            size += len(block)
            if size > allowance:
                raise _too_large(limit)
            seen = tail + block
            if any(word in seen for word in (_DECLARATIONS if is_xml else _ENTITIES)):
                raise damaged("An XML part of the document declares entities, which Office documents must not.")
            if size == len(block) and _hides_keywords(block):
                raise damaged("An XML part of the document is neither in UTF-8 nor in UTF-16, as Office documents are.")
            tail = seen[-_OVERLAP:]
    return size


def _hides_keywords(beginning: bytes) -> bool:
    """Whether a part that begins so may be XML in an encoding in which the keywords look otherwise."""
    if beginning.startswith(_HIDING_BEGINNINGS):
        return True
    # Of UTF-16, too, each second byte is ASCII.
    start = beginning[: 2 * _LONGEST_DECLARATION].lstrip(b"\xef\xbb\xbf\xff\xfe").replace(b"\x00", b"").lstrip()
    if not start.startswith(b"<?xml"):
        return False
    declaration, end, _ = start[:_LONGEST_DECLARATION].partition(b"?>")
    if not end:
        return True  # nobody writes it so long, but to put what it says out of sight
    # One name too many may be there to be found in place of the one that counts.
    return any(map(_hides_plain_words, _DECLARED_ENCODING.findall(declaration)))


def _hides_plain_words(encoding: bytes) -> bool:
    if encoding.lower().startswith(b"utf-16"):
        return False
    try:
        # What UTF-7 reads as "<" is seen by no search for it.
        return _PLAIN_WORDS.decode(encoding.decode("ascii")) != _PLAIN_WORDS.decode("ascii")
    except (LookupError, UnicodeError):
        return True


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The document unpacks to more than {limit // (1024 * 1024)} MiB or {MAX_PARTS} parts.",
        reason="DOCUMENT_UNPACKS_TOO_LARGE",
    )
