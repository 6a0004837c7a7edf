"""Multipart bodies made to cost more than they are: refused, or read in the time that their bytes are worth."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable

import pytest

from gateway.uploads import DocumentUpload
from mesh.errors import InvalidRequest

BEGIN = b"--x1x\r\n"
FILE = BEGIN + b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
FIELD = BEGIN + b'Content-Disposition: form-data; name="max_tokens"\r\n\r\n1\r\n'
END = b"\r\n--x1x--\r\n"
KNOWN = frozenset({"max_tokens", "chunker"})


class Body:
    """Pieces of a body; ``taken`` is how many bytes of it were read."""

    def __init__(self, *pieces: bytes | tuple[bytes, int]) -> None:
        self._pieces = pieces
        self.taken = 0

    async def read(self) -> AsyncIterator[bytes]:
        """All pieces, those with a number so many times."""
        for piece in self._pieces:
            repeated: Iterable[bytes] = [piece] if isinstance(piece, bytes) else (piece[0] for _ in range(piece[1]))
            for data in repeated:
                self.taken += len(data)
                yield data


async def received(body: Body) -> int:
    """Read an upload to its end; the document's size."""
    upload = DocumentUpload(body.read(), "multipart/form-data; boundary=x1x", KNOWN)
    await upload.open()
    return sum([len(frame) async for frame in upload.frames()])


@pytest.mark.parametrize(
    "body",
    [
        Body(BEGIN + b"X-Long: ", (b"a" * 65536, 800), b"\r\n\r\n"),
        Body(BEGIN, (b"a" * 65536, 800), b": a\r\n\r\n"),
        Body(BEGIN, (b"X-A: a\r\n" * 8000, 800), b"\r\n"),
        Body((FIELD * 1000, 500), FILE + END),
        Body(BEGIN + b'Content-Disposition: form-data; name="file"; filename="', (b"a" * 65536, 400), b'"' + END),
        Body(BEGIN + b'Content-Disposition: form-data; name="file"', (b'; a="b"' * 8000, 200), b"\r\n\r\n" + END),
        Body(BEGIN + b'Content-Disposition: form-data; name="max_tokens"\r\n\r\n', (b"1" * 65536, 800), END),
        Body((b"a" * 65536, 800), FILE + b"words" + END),
        Body(FILE, b"\r\n", FIELD + END),
        Body(FILE, b"\r\n", FILE + END),
    ],
    ids=["a long header", "a long name", "many headers", "a field again and again", "a long file name",
         "many parameters", "a long field", "words before it", "a field after it", "two documents"],
)  # fmt: skip
async def test_what_is_no_upload_is_refused_at_its_beginning(body: Body) -> None:
    """Long before the body's end, without holding it."""
    with pytest.raises(InvalidRequest):
        await received(body)
    assert body.taken < 8 * 2**20


@pytest.mark.parametrize("almost", [b"\r\n--x1", b"\r\n--x1y", b"\r", b"\r\n", b"\r\n-", b"--x1x", b"x1x"])
async def test_a_document_full_of_almost_boundaries_takes_the_time_of_its_bytes(almost: bytes) -> None:
    """Eight mebibytes of what looks like an end and is none pass whole."""
    count = 65536 // len(almost)
    body = Body(FILE, (almost * count, 128), END)
    began = time.process_time()
    assert await received(body) == 128 * count * len(almost)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/passwd", "C:\\a\\b.txt", "a\x00b"]
)
async def test_a_file_name_has_no_folder_and_no_control_character(name: str) -> None:
    """It ends up in logs and answers, and is nobody's path."""
    head = BEGIN + b'Content-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
    upload = DocumentUpload(Body(head + b"words" + END).read(), "multipart/form-data; boundary=x1x", KNOWN)
    await upload.open()
    assert not set(upload.filename) & set("/\\\x00\r\n")
    assert ".." not in upload.filename


@pytest.mark.parametrize("boundary", ["", "=", "=" + "a" * 5000, '="', "=\u00e4"])
async def test_a_boundary_that_is_none_is_refused(boundary: str) -> None:
    """Empty, endless, unfinished."""
    with pytest.raises(InvalidRequest):
        upload = DocumentUpload(Body(b"a" * 100).read(), f"multipart/form-data; boundary{boundary}", KNOWN)
        await upload.open()
