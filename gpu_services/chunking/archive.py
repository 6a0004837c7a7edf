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
# reads files ("billion laughs", XXE). The keyword is looked for in UTF-8 and in both orders of UTF-16, the encodings that
# Office files may have; a part that says it has another one could hide it.
_DECLARATIONS = tuple(
    word.encode(encoding) for word in ("<!DOCTYPE", "<!ENTITY") for encoding in ("ascii", "utf-16-le", "utf-16-be")
)
# A part's name says nothing for certain: a relationship may make any part the document.
_ENTITIES = _DECLARATIONS[3:]
_ENCODING = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([^"']{0,40})""")
_OFFICE_ENCODINGS = frozenset({b"utf-8", b"utf8", b"utf-16", b"us-ascii", b"ascii"})
# "<" in UTF-32, and in EBCDIC with what follows it in "<?xm".
_OTHER_BEGINNINGS = (b"<\x00\x00\x00", b"\x00\x00\x00<", b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff", b"\x4c\x6f\xa7\x94")
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
            if size == len(block) and _has_another_encoding(block):
                raise damaged("An XML part of the document is neither in UTF-8 nor in UTF-16, as Office documents are.")
            tail = seen[-_OVERLAP:]
    return size


def _has_another_encoding(beginning: bytes) -> bool:
    if beginning.startswith(_OTHER_BEGINNINGS):
        return True
    declared = _ENCODING.match(
        beginning.removeprefix(b"\xef\xbb\xbf")[:512]
        .replace(b"\x00", b"")
        .removeprefix(b"\xff\xfe")
        .removeprefix(b"\xfe\xff")
    )
    return declared is not None and declared[1].lower() not in _OFFICE_ENCODINGS


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The document unpacks to more than {limit // (1024 * 1024)} MiB or {MAX_PARTS} parts.",
        reason="DOCUMENT_UNPACKS_TOO_LARGE",
    )
