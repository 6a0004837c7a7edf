"""The input of a bulk job: lines to documents, and how far they were read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh.bulk import reading
from mesh.bulk.failures import BadLine, Refused
from mesh.bulk.reading import Document, Fields, InputFormat, Place, Reader

JSONL = Fields(format=InputFormat.JSONL)
TEXT = Fields(format=InputFormat.TEXT)


def read(file: Path, fields: Fields = JSONL, place: Place | None = None) -> tuple[list[Document | BadLine], Place]:
    """All documents and bad lines of a file, and the place behind them."""
    with Reader(file, fields, place or Place()) as reader:
        return list(reader.documents()), reader.place


def texts(found: list[Document | BadLine]) -> list[str]:
    """Of documents alone."""
    assert not [each for each in found if isinstance(each, BadLine)]
    return [each.text for each in found if isinstance(each, Document)]


def test_a_document_has_its_line_its_id_and_its_size(tmp_path: Path) -> None:
    """Ids may be numbers; a document without one is known by its line; blank lines count and hold nothing."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"id": "a", "text": "one"}\n\n{"id": 7, "text": "zwölf"}\r\n{"text": "three"}', encoding="utf-8")
    found, place = read(file)
    assert found == [Document(1, "a", "one", 3), Document(3, "7", "zwölf", 6), Document(4, "4", "three", 5)]
    assert (place.offset, place.lines) == (file.stat().st_size, 4)


def test_fields_are_chosen_by_name(tmp_path: Path) -> None:
    """Text and id lie where the user says."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"key": "k", "body": "x", "text": "no", "id": "no"}\n')
    found, _ = read(file, Fields(format=InputFormat.JSONL, text="body", id="key"))
    assert found == [Document(1, "k", "x", 1)]


def test_plain_text_is_a_document_a_line(tmp_path: Path) -> None:
    """Line ends and a byte order mark are no part of it; what looks like JSON is text."""
    file = tmp_path / "in.txt"
    file.write_bytes(b'\xef\xbb\xbffirst\r\n\n{"text": 1}\n')
    found, _ = read(file, TEXT)
    assert texts(found) == ["first", '{"text": 1}']


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not an object"),
        (b'"text"', "not an object"),
        (b'{"body": "x", "title": "y"}', "its fields: 'body', 'title'"),
        (b'{"text": 5}', "holds no text"),
        (b'{"text": ""}', "is empty"),
        (b'{"text": "\\ud800"}', "half of a character"),
        (b'{"text": "x", "id": "\\ud800"}', "half of a character"),
        (b'{"text": "x", "id": null}', "neither a string nor a whole number"),
        (b'{"text": "x", "id": true}', "neither a string nor a whole number"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_says_its_number_and_why(tmp_path: Path, line: bytes, why: str) -> None:
    """The lines around it are read all the same."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, bad, after = read(file)[0]
    assert isinstance(bad, BadLine)
    assert bad.line == 2
    assert why in str(bad)
    assert texts([before, after]) == ["before", "after"]


def test_an_id_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    """Whoever names the field relies on it."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "x"}\n')
    (bad,), _ = read(file, Fields(format=InputFormat.JSONL, id="key"))
    assert "'key'" in str(bad)


def test_a_line_without_end_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line over the limit is a bad one, and reading goes on behind it."""
    monkeypatch.setattr(reading, "LONGEST_LINE_BYTES", 32)
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 8)
    file = tmp_path / "in.txt"
    file.write_bytes(b"a" * 31 + b"\n" + b"b" * 100 + b"\n" + b"c\n" + b"d" * 33)
    found, place = read(file, TEXT)
    assert [type(each) for each in found] == [Document, BadLine, Document, BadLine]
    assert [each.line for each in found] == [1, 2, 3, 4]
    assert place.offset == file.stat().st_size


def test_reading_goes_on_from_a_place(tmp_path: Path) -> None:
    """Whatever the line it stopped behind, nothing is read twice or left out, and the hash is of the whole."""
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f"{json.dumps({'text': f't{n}'})}\n" for n in range(9)))
    whole, end = read(file)
    for stop in range(9):
        with Reader(file, JSONL, Place()) as reader:
            documents = reader.documents()
            first = [next(documents) for _ in range(stop)]
            place = reader.place
        rest, last = read(file, place=place)
        assert first + rest == whole
        assert last == end


def test_what_comes_after_the_place_may_change(tmp_path: Path) -> None:
    """A bad line can be mended, and lines can be added, without beginning again."""
    file = tmp_path / "in.txt"
    file.write_text("one\ntwo\nbad\n")
    with Reader(file, TEXT, Place()) as reader:
        documents = reader.documents()
        next(documents), next(documents)
        place = reader.place
    file.write_text("one\ntwo\nmended\nfour\n")
    assert texts(read(file, TEXT, place)[0]) == ["mended", "four"]


@pytest.mark.parametrize("now", ["one\nTWO\nthree\n", "one\n", "one\ntwo more\n"])
def test_another_beginning_is_refused(tmp_path: Path, now: str) -> None:
    """Changed, cut short, or the last line without an end made longer: what was embedded is another text now."""
    file = tmp_path / "in.txt"
    file.write_text("one\ntwo")
    _, place = read(file, TEXT)
    file.write_text(now)
    with pytest.raises(Refused, match="--restart"):
        Reader(file, TEXT, place)


def test_the_ending_tells_the_format() -> None:
    """An unknown one is asked about, not guessed."""
    assert InputFormat.of(Path("a.JSONL")) is InputFormat.JSONL
    assert InputFormat.of(Path("a.txt")) is InputFormat.TEXT
    with pytest.raises(Refused, match="--format"):
        InputFormat.of(Path("a.csv"))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(Refused, match=r"absent\.txt"):
        Reader(tmp_path / "absent.txt", TEXT, Place())
