"""What a job has done, on disk."""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mesh.bulk.failures import Refused
from mesh.bulk.parts import Done, Parts, Rows
from mesh.bulk.reading import Place

JOB = {"settings": {"format": "text"}, "model": {"name": "m"}}


def done(rows: int) -> Done:
    """A job after so many rows, each of them a line of ten bytes."""
    return Done(place=Place(offset=10 * rows, lines=rows, sha256=f"hash of {rows}"), rows=rows) if rows else Done()


def add(parts: Parts, first: int, last: int) -> None:
    """The part with the rows of lines ``first`` to ``last``; a row's vector is (line, -line)."""
    lines = range(first, last + 1)
    rows = Rows(
        ids=[f"id{line}" for line in lines],
        lines=list(lines),
        truncated=[line % 2 == 0 for line in lines],
        vectors=[struct.pack("<2f", line, -line) for line in lines],
    )
    parts.add(rows, dimensions=2, before=done(first - 1), done=done(last))


def begun(output: Path) -> Parts:
    """A job with two parts of three and two rows."""
    parts = Parts(output)
    with parts.locked():
        parts.begin(JOB)
        add(parts, 1, 3)
        add(parts, 4, 5)
    return parts


def test_a_job_is_found_again_as_far_as_its_parts(tmp_path: Path) -> None:
    """What it is, and how far the input had been read; what was half-written is gone."""
    begun(tmp_path / "v.parquet")
    half = tmp_path / "v.parquet.parts" / "part-000002.writing"
    half.write_bytes(b"PAR1 half")
    parts = Parts(tmp_path / "v.parquet")
    with parts.locked():
        assert parts.begun() == JOB
        assert parts.resume() == done(5)
        assert not half.exists()
        add(parts, 6, 7)
        assert parts.resume() == done(7)


def test_joining_keeps_every_row_in_order_and_nothing_else(tmp_path: Path) -> None:
    """The output says what made it, and the parts are gone."""
    output = tmp_path / "v.parquet"
    parts = begun(output)
    with parts.locked():
        parts.resume()
        parts.join(JOB, dimensions=2, done=done(5))
        assert parts.finished() == (JOB, done(5))
    assert [file.name for file in tmp_path.iterdir()] == ["v.parquet"]
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [f"id{line}" for line in range(1, 6)]
    assert table["line"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["truncated"].to_pylist() == [False, True, False, True, False]
    assert table["vector"].to_pylist() == [[float(line), -float(line)] for line in range(1, 6)]
    assert pq.ParquetFile(output).num_row_groups == 1


def test_an_empty_job_has_an_empty_output(tmp_path: Path) -> None:
    """With its columns."""
    parts = Parts(tmp_path / "v.parquet")
    with parts.locked():
        parts.begin(JOB)
        parts.join(JOB, dimensions=2, done=Done())
    assert pq.read_table(tmp_path / "v.parquet").to_pydict() == {"id": [], "line": [], "truncated": [], "vector": []}


@pytest.mark.parametrize("harm", ["missing", "cut", "foreign"])
def test_a_gap_is_refused(tmp_path: Path, harm: str) -> None:
    """A part that is not there, not whole or of another job is named, instead of rows being lost in silence."""
    parts = begun(tmp_path / "v.parquet")
    first = tmp_path / "v.parquet.parts" / "part-000000.parquet"
    if harm == "missing":
        first.unlink()
    elif harm == "cut":
        first.write_bytes(first.read_bytes()[:100])
    else:
        first.write_bytes((tmp_path / "v.parquet.parts" / "part-000001.parquet").read_bytes())
    with parts.locked(), pytest.raises(Refused, match=r"part-000000\.parquet is damaged or missing"):
        parts.resume()


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    """They would write each other's parts."""
    with Parts(tmp_path / "v.parquet").locked():
        with pytest.raises(Refused, match="Another run"), Parts(tmp_path / "v.parquet").locked():
            pass


def test_a_run_that_began_nothing_leaves_nothing(tmp_path: Path) -> None:
    """A mistyped command does not litter."""
    with pytest.raises(Refused), Parts(tmp_path / "v.parquet").locked():
        raise Refused("as it happens")
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    """Only ``discard``, which the user asks for, removes it."""
    output = tmp_path / "v.parquet"
    output.write_bytes(b"something else")
    parts = Parts(output)
    with parts.locked():
        with pytest.raises(Refused, match="--restart"):
            parts.finished()
        parts.discard()
        assert parts.finished() is None


def test_parts_of_a_job_that_was_thrown_away_are_not_taken_up(tmp_path: Path) -> None:
    """A run killed while it cleared leaves parts without a job; the next job does not begin with their rows."""
    begun(tmp_path / "v.parquet")
    (tmp_path / "v.parquet.parts" / "job.json").unlink()
    parts = Parts(tmp_path / "v.parquet")
    with parts.locked():
        assert parts.begun() is None
        parts.begin(JOB)
        assert parts.resume() == Done()
