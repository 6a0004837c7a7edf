"""Answered batches into parts: while one is being written, the next is filled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mesh.bulk.batching import Batch
from mesh.bulk.parts import Done, Parts, Rows
from mesh.clients.embedding import Embeddings
from mesh.clock import Clock, monotonic

PART_BYTES = 32 * 1024 * 1024
"""Of vectors in one part; twice as much is held at most."""
PART_ROWS = 65_536
"""In one part, where vectors are short."""
PART_SECONDS = 30.0
"""A killed run has at most about so much to do again."""


@dataclass(slots=True)
class _Filling:
    """The rows of the part to come."""

    ids: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    vectors: list[bytes] = field(default_factory=list)
    bytes: int = 0

    @property
    def is_full(self) -> bool:
        return self.bytes >= PART_BYTES or len(self.ids) >= PART_ROWS

    def add(self, batch: Batch, found: Embeddings) -> None:
        cut = frozenset(found.truncated_inputs)
        self.ids += [document.id for document in batch.documents]
        self.lines += [document.line for document in batch.documents]
        self.truncated += [at in cut for at in range(len(batch.documents))]
        self.vectors.append(found.vectors)
        self.bytes += len(found.vectors)


class PartWriter:
    """Keeps answered batches, which come in the order of the input.

    Args:
        parts: where.
        dimensions: length of a vector.
        done: what is there already.
        progress: told of each step, written or not.
        clock: passed in by tests.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        dimensions: int,
        done: Done,
        progress: Callable[[Done], None],
        clock: Clock = monotonic,
    ) -> None:
        self._parts = parts
        self._dimensions = dimensions
        self._kept = self._done = done
        self._progress = progress
        self._clock = clock
        self._filling = _Filling()
        self._began = clock()
        self._writing: asyncio.Task[None] | None = None

    @property
    def kept(self) -> Done:
        """What the parts hold, or will once ``flush`` returns."""
        return self._kept

    async def add(self, batch: Batch, found: Embeddings | None) -> None:
        """Keep a batch; waits while two parts are full. Raises OSError where the disk takes no more."""
        done = replace(self._done, place=batch.place, skipped=self._done.skipped + batch.skipped)
        if found is not None:
            self._filling.add(batch, found)
            done = replace(
                done,
                rows=done.rows + found.rows,
                tokens=done.tokens + found.usage.tokens,
                truncated=done.truncated + len(found.truncated_inputs),
            )
        self._done = done
        self._progress(done)
        if self._filling.is_full or self._clock() - self._began >= PART_SECONDS:
            await self._written()
            self._begin_writing()

    async def flush(self) -> None:
        """Write what has been added. Raises OSError."""
        await self._written()
        if self._done != self._kept:
            self._begin_writing()
            await self._written()

    async def _written(self) -> None:
        """The part under way; it is written to its end, whatever becomes of who waits here."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None

    def _begin_writing(self) -> None:
        filled, before, done = self._filling, self._kept, self._done
        rows = Rows(ids=filled.ids, lines=filled.lines, truncated=filled.truncated, vectors=filled.vectors)
        self._filling, self._kept, self._began = _Filling(), done, self._clock()

        def write() -> None:
            self._parts.add(rows, dimensions=self._dimensions, before=before, done=done)

        self._writing = asyncio.create_task(asyncio.to_thread(write))
