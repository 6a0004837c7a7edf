"""What a job has done, on disk: parts beside the output, joined into it at the end.

``vectors.parquet.parts/`` holds ``job.json`` (what the job is), a lock, and ``part-000000.parquet`` and so on. Each
part says in its own metadata how far the input had been read with it, and appears whole or not at all: the rows and
the journal cannot disagree, however a run ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.bulk.failures import Refused
from mesh.bulk.reading import Place

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
METADATA_KEY = b"mesh.bulk"
"""In the schema's metadata of the output and of each part: a JSON object."""

_JOINED_ROW_GROUP_BYTES = 32 * 1024 * 1024

Facts = Mapping[str, Any]
"""JSON: what a job is, or how far it has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Consecutive rows of the output.

    Attributes:
        vectors: little-endian float32, row-major.
    """

    ids: Sequence[str]
    lines: Sequence[int]
    truncated: Sequence[bool]
    vectors: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How far a job has come."""

    place: Place = field(default_factory=Place)
    rows: int = 0
    skipped: int = 0
    tokens: int = 0
    truncated: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, facts: Facts) -> Done:
        """From JSON. Raises TypeError or LookupError where it is none."""
        return cls(**{**facts, "place": Place(**facts["place"])})


class Parts:
    """The parts of one output. Use ``locked`` around all else.

    Args:
        output: the file that they become.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._folder = output.with_name(f"{output.name}.parts")
        self._job_file = self._folder / "job.json"
        self._count = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out. Raises Refused while another one is at work, or where nothing can be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("w")
        except OSError as error:
            raise Refused(f"{self._folder} cannot be written: {error.strerror}.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Refused(f"Another run writes {self.output.name} at this moment.") from error
            try:
                yield
            finally:
                # Without it there is nothing to go on from.
                if not self._job_file.exists():
                    shutil.rmtree(self._folder, ignore_errors=True)

    def discard(self) -> None:
        """Remove the output and all parts."""
        self.output.unlink(missing_ok=True)
        self.clear()

    def finished(self) -> tuple[Facts, Done] | None:
        """What made the output that is there; None where there is none.

        Raises:
            Refused: something else is there.
        """
        if not self.output.exists():
            return None
        try:
            facts = _metadata(self.output)
            return facts["job"], Done.of(facts["done"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise Refused(
                f"{self.output} is there already and is not of this command. Name another --out, or overwrite it with "
                "--restart."
            ) from error

    def begun(self) -> Facts | None:
        """What the job is that has begun; None where none has.

        Raises:
            Refused: it cannot be read.
        """
        try:
            facts: Facts = json.loads(self._job_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Refused(f"{self._job_file} cannot be read. Begin again with --restart.") from error
        return facts

    def begin(self, job: Facts) -> None:
        """Keep what the job is. Parts of another one, whose removal was cut off, go."""
        self.clear()
        half = self._job_file.with_suffix(".writing")
        half.write_text(json.dumps(job, indent=2), encoding="utf-8")
        _settle(half, self._job_file)

    def resume(self) -> Done:
        """How far it has come. What a killed run left half-written is removed.

        Raises:
            Refused: a part is missing or cannot be read.
        """
        for half in self._folder.glob("*.writing"):
            half.unlink()
        found = sorted(self._folder.glob("part-*.parquet"))
        done = Done()
        for number, file in enumerate(found):
            try:
                facts = _metadata(file)
                after = Done.of(facts["done"])
                whole = file == self._part(number) and facts["before"] == asdict(done.place)
            except (OSError, ValueError, LookupError, TypeError):
                whole = False
            if not whole:
                raise Refused(
                    f"{self._part(number)} is damaged or missing. Remove it and those after it to go on from there, or "
                    "begin again with --restart."
                )
            done = after
        self._count = len(found)
        return done

    def add(self, rows: Rows, *, dimensions: int, before: Done, done: Done) -> None:
        """Write the next part, in one step: after a crash it is there and whole, or not there.

        Args:
            rows: what it holds.
            dimensions: length of a vector.
            before: how far the job was without it.
            done: how far it is with it.
        """
        import pyarrow.parquet as pq

        facts = {"format": FORMAT, "before": asdict(before.place), "done": done.facts()}
        schema = _schema(dimensions, facts)
        file = self._part(self._count)
        half = file.with_suffix(".writing")
        with pq.ParquetWriter(half, schema, **_WRITING) as writer:
            if rows.ids:
                writer.write_table(_table(rows, dimensions, schema))
        _settle(half, file)
        self._count += 1

    def join(self, job: Facts, *, dimensions: int, done: Done) -> None:
        """Make the parts the output, in one step, and remove them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema(dimensions, {"format": FORMAT, "job": job, "done": done.facts()})
        half = self._folder / "joined.writing"
        with pq.ParquetWriter(half, schema, **_WRITING) as writer:
            waiting: list[pa.Table] = []
            for number in range(self._count):
                waiting.append(pq.ParquetFile(self._part(number)).read(use_threads=False))
                # Parts that were cut off early are small; readers want row groups that are not.
                if sum(table.nbytes for table in waiting) >= _JOINED_ROW_GROUP_BYTES or number == self._count - 1:
                    group = pa.concat_tables(table.replace_schema_metadata(schema.metadata) for table in waiting)
                    waiting.clear()
                    if group.num_rows:
                        writer.write_table(group)
        _settle(half, self.output)
        self.clear()

    def clear(self) -> None:
        """Remove the parts. The first to go is what would let a run go on from them."""
        self._job_file.unlink(missing_ok=True)
        for file in self._folder.glob("*.parquet"):
            file.unlink()

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06}.parquet"


def require_parquet() -> None:
    """Raise Refused where Parquet cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401 - whether it can be imported
    except ImportError as error:
        raise Refused(
            "Parquet files need pyarrow, which is not installed here: pip install 'torch-isolation-mesh[bulk]'"
        ) from error


# Vectors do not get smaller by either, and take time; ids and lines do.
_WRITING: dict[str, Any] = {
    "compression": {"id": "zstd", "line": "zstd", "truncated": "zstd", "vector.list.element": "none"},
    "use_dictionary": False,
    "write_statistics": ["id", "line"],
}


def _schema(dimensions: int, facts: Facts) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("line", pa.int64(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("vector", pa.list_(pa.field("element", pa.float32(), nullable=False), dimensions), nullable=False),
        ],
        metadata={METADATA_KEY: json.dumps(facts).encode()},
    )


def _table(rows: Rows, dimensions: int, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    joined = pa.py_buffer(b"".join(rows.vectors))
    numbers = pa.Array.from_buffers(pa.float32(), len(rows.ids) * dimensions, [None, joined])
    columns = [
        pa.array(rows.ids, pa.string()),
        pa.array(rows.lines, pa.int64()),
        pa.array(rows.truncated, pa.bool_()),
        pa.FixedSizeListArray.from_arrays(numbers, type=schema.field("vector").type),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _metadata(file: Path) -> dict[str, Any]:
    """Raises OSError, ValueError (pyarrow's own among them) or LookupError where it has none."""
    import pyarrow.parquet as pq

    facts: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {})[METADATA_KEY])
    if facts.get("format") != FORMAT:
        raise ValueError(f"written in format {facts.get('format')}")
    return facts


def _settle(half: Path, file: Path) -> None:
    """Rename a written file to its own name, so that even a loss of power leaves all of it or nothing."""
    with half.open("rb") as written:
        os.fsync(written.fileno())
    half.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
