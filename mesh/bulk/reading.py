"""The input: JSONL or plain text, one document a line. Any file is read in bounded memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from mesh.bulk.failures import BadLine, Refused

LONGEST_LINE_BYTES = 64 * 1024 * 1024
_BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputFormat(Enum):
    """How a line holds its document."""

    JSONL = "jsonl"
    """A JSON object."""
    TEXT = "text"
    """The text itself."""

    @classmethod
    def of(cls, file: Path) -> InputFormat:
        """By the file's ending. Raises Refused where that says nothing."""
        ending = file.suffix.lower()
        if ending in {".jsonl", ".ndjson"}:
            return cls.JSONL
        if ending in {".txt", ".text"}:
            return cls.TEXT
        raise Refused(f"{file.name} does not say by its ending what it holds; add --format jsonl or --format text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Where a document lies in its line.

    Attributes:
        text: the JSON field that holds the text.
        id: the JSON field that holds the id, a string or a whole number; None takes ``id`` where there is one. A
            document without an id is known by its line's number.
    """

    format: InputFormat
    text: str = "text"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One text to embed; ``size`` is its length in bytes of UTF-8."""

    line: int
    id: str
    text: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far the input has been read.

    Attributes:
        offset: bytes.
        lines: lines, blank ones included.
        sha256: of these bytes, hexadecimal: tells whether a file still begins as it did.
    """

    offset: int = 0
    lines: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Reader:
    """Reads the documents of a file from a place on. Use it as a context manager.

    Args:
        file: the input.
        fields: where a document lies in its line.
        place: where to begin.

    Raises:
        Refused: the file cannot be read, or does not begin with what was read of it up to ``place``.
    """

    def __init__(self, file: Path, fields: Fields, place: Place) -> None:
        self._name = file.name
        self._fields = fields
        try:
            self._stream: IO[bytes] = file.open("rb")
        except OSError as error:
            raise Refused(f"{file} cannot be read: {error.strerror}.") from error
        try:
            self._digest = self._digest_up_to(place.offset)
            if self._digest.hexdigest() != place.sha256 or self._inside_a_line(place.offset):
                raise Refused(
                    f"{file.name} is not the file that this job began with: its first {place.offset:,} bytes, which "
                    "have been embedded, are others now. Put that file back, begin again with --restart, or name "
                    "another --out."
                )
        except BaseException:
            self._stream.close()
            raise
        self._offset, self._lines = place.offset, place.lines

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def place(self) -> Place:
        """How far it has read now: behind the line that was given last, bad or not."""
        return Place(offset=self._offset, lines=self._lines, sha256=self._digest.hexdigest())

    def documents(self) -> Iterator[Document | BadLine]:
        """What is left of the file, line by line; blank lines are left out."""
        while line := self._stream.readline(LONGEST_LINE_BYTES):
            number = self._lines + 1
            cut = len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n")
            self._took(line)
            while cut and (rest := self._stream.readline(_BLOCK_BYTES)):
                self._took(rest)
                cut = not rest.endswith(b"\n")
                line = b""
            self._lines = number
            if not line:
                yield BadLine(number, f"it is longer than {LONGEST_LINE_BYTES >> 20} MiB")
                continue
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            try:
                document = self._document(number, line.rstrip(b"\r\n"))
            except BadLine as bad:
                yield bad
                continue
            if document is not None:
                yield document

    def _took(self, data: bytes) -> None:
        self._digest.update(data)
        self._offset += len(data)

    def _document(self, number: int, line: bytes) -> Document | None:
        if not line.strip():
            return None
        if self._fields.format is InputFormat.TEXT:
            try:
                return Document(number, str(number), line.decode("utf-8"), len(line))
            except UnicodeDecodeError as error:
                raise BadLine(number, "it is not UTF-8") from error
        return self._from_json(number, line)

    def _from_json(self, number: int, line: bytes) -> Document:
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            raise BadLine(number, "it is not UTF-8") from error
        except json.JSONDecodeError as error:
            raise BadLine(number, f"it is not JSON ({error.msg} at character {error.colno})") from error
        except RecursionError as error:
            raise BadLine(number, "its JSON is nested too deeply") from error
        if not isinstance(record, dict):
            raise BadLine(number, "it is JSON, and not an object")
        text, size = self._text(number, record)
        return Document(number, self._id(number, record), text, size)

    def _text(self, number: int, record: dict[str, object]) -> tuple[str, int]:
        name = self._fields.text
        if name not in record:
            has = ", ".join(map(repr, list(record)[:8])) or "none"
            raise BadLine(number, f"it has no field {name!r} (its fields: {has}); --text-field names the right one")
        text = record[name]
        if not isinstance(text, str):
            raise BadLine(number, f"its field {name!r} holds no text")
        if not text:
            raise BadLine(number, f"its field {name!r} is empty")
        try:
            return text, len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise BadLine(number, f"its field {name!r} holds half of a character") from error

    def _id(self, number: int, record: dict[str, object]) -> str:
        name = self._fields.id or "id"
        if name not in record:
            if self._fields.id is None:
                return str(number)
            raise BadLine(number, f"it has no field {name!r}; --id-field names the right one")
        found = record[name]
        if not isinstance(found, str | int) or isinstance(found, bool):
            raise BadLine(number, f"its field {name!r} is neither a string nor a whole number")
        try:
            return found.encode("utf-8").decode() if isinstance(found, str) else str(found)
        except UnicodeEncodeError as error:
            raise BadLine(number, f"its field {name!r} holds half of a character") from error
        except ValueError as error:  # Python writes no number of more than 4,300 digits
            raise BadLine(number, f"its field {name!r} is too long a number") from error

    def _digest_up_to(self, offset: int) -> hashlib._Hash:
        digest = hashlib.sha256()
        while offset > 0 and (block := self._stream.read(min(offset, _BLOCK_BYTES))):
            digest.update(block)
            offset -= len(block)
        return digest

    def _inside_a_line(self, offset: int) -> bool:
        """Whether the line that ended the file when it was read has been made longer since."""
        if not offset:
            return False
        self._stream.seek(offset - 1)
        return self._stream.read(1) != b"\n" and self._stream.peek(1) != b""  # type: ignore[attr-defined]  # buffered
