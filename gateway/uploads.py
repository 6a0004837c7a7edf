"""A multipart upload, read as it comes: first its fields, then the document piece by piece, never whole."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from pathlib import PurePosixPath, PureWindowsPath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mesh.errors import InvalidBody, InvalidRequest, MeshError
from mesh.settings import nearest

FRAME_BYTES = 512 * 1024
_MAX_FIELD_BYTES = 4096
_MAX_FILENAME_CHARACTERS = 255


class DocumentUpload:
    """One document with a few fields before it.

    Args:
        body: the request's body as it arrives.
        content_type: its header, which holds the boundary.
        known_fields: names that a field may have.
    """

    def __init__(self, body: AsyncIterator[bytes], content_type: str, known_fields: frozenset[str]) -> None:
        self._body = body
        self._parts = _Parts(known_fields)
        self._parser = _parser(content_type, self._parts)
        self.failure: MeshError | None = None
        """What ended the upload early. The frames are read by gRPC's own task, which does not pass an error on."""

    async def open(self) -> None:
        """Read up to the document's first bytes; after it, the fields and the file's name and type are known.

        Raises:
            InvalidBody: no document, a field that does not exist, or a body that is not multipart.
        """
        while not self._parts.in_document:
            await self._read_more("There is no document in the upload; send it as a file part named file.")

    @property
    def fields(self) -> dict[str, str]:
        """The form fields that stood before the document."""
        return {name: value.decode("utf-8", "replace") for name, value in self._parts.fields.items()}

    @property
    def filename(self) -> str:
        """The file's name without any folder."""
        return self._parts.filename

    @property
    def media_type(self) -> str:
        """The type that the client says, without parameters; empty where it says nothing of use."""
        return "" if self._parts.media_type == "application/octet-stream" else self._parts.media_type

    async def frames(self) -> AsyncIterator[bytes]:
        """The document, in pieces of about half a mebibyte. The next one is read when this one was taken.

        Raises:
            MeshError: the upload is broken; ``failure`` holds the same error.
        """
        try:
            gathered = bytearray()
            while True:
                while self._parts.pieces:
                    gathered += self._parts.pieces.popleft()
                    if len(gathered) >= FRAME_BYTES:
                        yield bytes(gathered)
                        gathered.clear()
                if self._parts.ended:
                    break
                await self._read_more("The upload ended before it was whole; send it again.")
            if gathered:
                yield bytes(gathered)
        except MeshError as error:
            self.failure = error
            raise

    async def _read_more(self, if_ended: str) -> None:
        data = await anext(self._body, None)
        if data is None:
            raise InvalidBody(if_ended, param="file", reason="UPLOAD_INCOMPLETE")
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidBody(
                "The body is not well-formed multipart/form-data.", reason="MULTIPART_MALFORMED"
            ) from None


def _parser(content_type: str, parts: _Parts) -> MultipartParser:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("The multipart body's Content-Type has no boundary.", reason="MULTIPART_MALFORMED")
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_headers_finished": parts.headers_end,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_end": parts.all_end,
            },
        )
    except FormParserError:
        raise InvalidRequest("The multipart body's boundary is too long.", reason="MULTIPART_MALFORMED") from None


class _Parts:
    """Follows the parser from part to part."""

    def __init__(self, known_fields: frozenset[str]) -> None:
        self._known_fields = known_fields
        self._name = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._document_seen = False
        self.in_document = False
        self.ended = False
        self.fields: dict[str, bytes] = {}
        self.filename = ""
        self.media_type = ""
        self.pieces: deque[bytes] = deque()

    def begin(self) -> None:
        self._headers = {}
        self._name = self._value = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options or name == "file":
            self._begin_document(options.get(b"filename", b"").decode("utf-8", "replace"))
            return
        if self._document_seen:
            raise InvalidBody(
                f"The field {name[:64]} comes after the document; send fields first: the document is not held back.",
                param=name[:64],
                reason="FIELD_AFTER_DOCUMENT",
            )
        if name not in self._known_fields:
            raise InvalidBody(
                f"There is no field {name[:64]}.{nearest(name, {*self._known_fields, 'file'})}", param=name[:64]
            )
        if name in self.fields:
            # Also the end of an upload that is fields without end.
            raise InvalidBody(f"The field {name} comes twice; send it once.", param=name)
        self._field = name
        self.fields[name] = b""

    def _begin_document(self, filename: str) -> None:
        if self._document_seen:
            raise InvalidBody("The upload holds more than one file; send one document per request.", param="file")
        self._document_seen = self.in_document = True
        self.filename = plain_filename(filename)
        self.media_type = self._headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.pieces.append(data[start:end])
            return
        self.fields[self._field] += data[start:end]
        if len(self.fields[self._field]) > _MAX_FIELD_BYTES:
            raise InvalidBody(f"The field {self._field} is longer than {_MAX_FIELD_BYTES} bytes.", param=self._field)

    def end(self) -> None:
        self._field = None

    def all_end(self) -> None:
        self.ended = True


def plain_filename(name: str) -> str:
    """The last part of a file name, without control characters and not over-long: it ends up in logs and answers."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    return "".join(character for character in last if character.isprintable())[-_MAX_FILENAME_CHARACTERS:]
