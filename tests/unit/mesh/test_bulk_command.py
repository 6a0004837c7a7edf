"""The command itself, its parts that write, and its bar."""

from __future__ import annotations

import asyncio
import builtins
import io
import struct
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mesh.bulk import writing
from mesh.bulk.__main__ import main
from mesh.bulk.batching import Batch
from mesh.bulk.parts import Done, Parts
from mesh.bulk.progress import ProgressBar
from mesh.bulk.reading import Document, Place
from mesh.bulk.writing import PartWriter
from mesh.clients.embedding import Embeddings, Timings, Usage
from mesh.testing import FakeClock

NOWHERE = ["--target", "127.0.0.1:1", "--patience", "0"]


def run(source: Path, output: Path, *options: str) -> int:
    """The command, with a worker that is not there."""
    return main(["embed", "--in", str(source), "--out", str(output), *NOWHERE, *options])


@pytest.mark.parametrize("package", ["pyarrow", "tqdm"])
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    """The mesh itself needs neither, so they may be absent."""
    found = builtins.__import__

    def absent(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return found(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    source = tmp_path / "in.txt"
    source.write_text("one\n")
    assert run(source, tmp_path / "v.parquet") == 2
    told = capsys.readouterr().err
    assert package in told
    assert "torch-isolation-mesh[bulk]" in told


@pytest.mark.parametrize(
    ("name", "output", "said"),
    [
        ("in.txt", "", "is a directory"),
        ("in.csv", "v.parquet", "--format"),
        ("absent.txt", "v.parquet", "no file that can be read"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, output: str, said: str
) -> None:
    """Before anything is asked of a worker, and with nothing left behind."""
    if not name.startswith("absent"):
        (tmp_path / name).write_text("one\n")
    before = set(tmp_path.iterdir())
    assert run(tmp_path / name, tmp_path / output) == 2
    assert said in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def answered(number: int, size: int = 4) -> tuple[Batch, Embeddings]:
    """A batch of ``size`` documents, whose vectors are their lines' numbers; the first was cut."""
    lines = range(number * size + 1, (number + 1) * size + 1)
    documents = tuple(Document(line, f"d{line}", "text", 4) for line in lines)
    place = Place(offset=lines[-1] * 10, lines=lines[-1])
    found = Embeddings(
        model="m",
        rows=size,
        dim=1,
        vectors=struct.pack(f"<{size}f", *map(float, lines)),
        usage=Usage(tokens=6 * size, characters=4 * size),
        timings=Timings(0, 0, 0, 0, 0),
        truncated_inputs=(0,),
    )
    return Batch(number=number, documents=documents, place=place, skipped=1), found


def parts_of(tmp_path: Path) -> list[int]:
    """The rows of each part on disk."""
    folder = tmp_path / "v.parquet.parts"
    return [pq.read_metadata(file).num_rows for file in sorted(folder.glob("part-*.parquet"))]


async def test_parts_are_cut_by_size_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory is bounded where vectors come fast, and little is lost where they come slowly."""
    monkeypatch.setattr(writing, "PART_BYTES", 32)
    clock, told = FakeClock(), list[Done]()
    parts = Parts(tmp_path / "v.parquet")
    with parts.locked():
        parts.begin({})
        writer = PartWriter(parts, dimensions=1, done=Done(), progress=told.append, clock=clock)
        for number in range(5):
            await writer.add(*answered(number))
        clock.advance(writing.PART_SECONDS)
        await writer.add(*answered(5))
        await writer.add(*answered(6))
        await writer.flush()
        await writer.flush()
        assert parts_of(tmp_path) == [8, 8, 8, 4]
        assert parts.resume() == writer.kept == told[-1]
    assert (told[-1].rows, told[-1].tokens, told[-1].truncated, told[-1].skipped) == (28, 168, 7, 7)
    assert told[-1].place.offset == 280


async def test_parts_of_short_vectors_are_cut_by_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ids would fill the memory before their numbers do."""
    monkeypatch.setattr(writing, "PART_ROWS", 8)
    parts = Parts(tmp_path / "v.parquet")
    with parts.locked():
        parts.begin({})
        writer = PartWriter(parts, dimensions=1, done=Done(), progress=lambda _done: None)
        for number in range(5):
            await writer.add(*answered(number))
        await writer.flush()
    assert parts_of(tmp_path) == [8, 8, 4]


async def test_a_part_is_written_while_the_next_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no third one is begun before it is done: a slow disk holds the answers up, not the memory."""
    monkeypatch.setattr(writing, "PART_BYTES", 16)
    parts = Parts(tmp_path / "v.parquet")
    with parts.locked():
        parts.begin({})
        writer = PartWriter(parts, dimensions=1, done=Done(), progress=lambda _done: None)
        added = 0
        for number in range(10):
            await writer.add(*answered(number))
            added += 4
            assert added - sum(parts_of(tmp_path)) <= 8
        await writer.flush()
    assert parts_of(tmp_path) == [4] * 10


async def test_a_disk_that_takes_no_more_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error reaches who adds or flushes."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    parts = Parts(tmp_path / "v.parquet")
    monkeypatch.setattr(parts, "add", full)
    writer = PartWriter(parts, dimensions=1, done=Done(), progress=lambda _done: None)
    await writer.add(*answered(0))
    with pytest.raises(OSError, match="No space"):
        await writer.flush()


async def test_who_is_cancelled_while_a_part_is_written_loses_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was added before is flushed after, each part once."""
    monkeypatch.setattr(writing, "PART_BYTES", 16)
    parts = Parts(tmp_path / "v.parquet")
    with parts.locked():
        parts.begin({})
        writer = PartWriter(parts, dimensions=1, done=Done(), progress=lambda _done: None)
        await writer.add(*answered(0))
        adding = asyncio.create_task(writer.add(*answered(1)))
        await asyncio.sleep(0)
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)
        await writer.flush()
        assert parts.resume().rows == sum(parts_of(tmp_path)) == 8


def test_the_bar_tells_share_texts_rate_and_time_left() -> None:
    """Of this run alone, as far as the rate goes; a line for the user stands above it."""
    stream = io.StringIO()
    before = Done(place=Place(offset=500, lines=5), rows=5)
    with ProgressBar(stream) as bar:
        bar.begin(before, 1000)
        bar.tell("Something to know.")
        bar.advance(Done(place=Place(offset=1000, lines=10), rows=1010))
    shown = stream.getvalue()
    assert " 50%" in shown
    assert "100%" in shown
    assert "1,010 texts" in shown
    assert "texts/s" in shown
    assert "left" in shown
    assert "Something to know.\n" in shown
