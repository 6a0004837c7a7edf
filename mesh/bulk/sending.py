"""Batches over several streams side by side, on the bulk lane, until each has its vectors.

A stream that ends early loses nothing: its unanswered batches begin the next one. Streams are renewed now and then, so
that they spread over the worker's endpoints again after one was away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from mesh import tracing
from mesh.bulk.batching import UNANSWERED_PER_STREAM, Batch
from mesh.bulk.failures import BadLine, BulkFailure
from mesh.bulk.waiting import Outage
from mesh.clients.embedding import EmbeddingInfo, Embeddings, EmbedInputs, EmbedOptions
from mesh.context import CallContext, Priority, current_call
from mesh.deadline import Deadline
from mesh.errors import AttemptTimedOut, GpuOutOfMemory, Internal, InvalidRequest, MeshError

STREAM_BATCHES = 512
"""Batches of one stream."""
STALLED_SECONDS = 300.0
"""Without an answer for so long a stream is given up: a worker that hangs is restarted long before."""

ENGINE_FAILURES = 4
"""A batch that fails the engine so often is not sent again."""

_STREAM_SECONDS = 24 * 3600.0
_AHEAD = 4
"""Batches under way, or answered and not yet written, as a multiple of those that the streams hold."""
_FLOAT_BYTES = 4


class Client(Protocol):
    """What is needed of `mesh.clients.AsyncEmbeddingServiceClient`."""

    def embed_stream(
        self,
        batches: AsyncIterable[EmbedInputs],
        options: EmbedOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> AsyncGenerator[Embeddings, None]:
        """One result per batch, in the order of the batches."""
        ...

    async def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """What the worker serves."""
        ...


Deliver = Callable[[Batch, Embeddings | None], Awaitable[None]]
"""Takes each batch with its vectors, in the order of the input; None for a batch without documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How to send.

    Attributes:
        options: of every request; the model is named.
        dimensions: length of the vectors to come.
        streams: side by side.
        skip: told of each line that the worker refuses, which is then left out; None stops at the first.
        outage: waits when the worker does not answer.
    """

    options: EmbedOptions
    dimensions: int
    streams: int
    outage: Outage
    skip: Callable[[BadLine], None] | None = None


@dataclass(slots=True)
class _Lane:
    """One stream after another."""

    unanswered: deque[Batch] = field(default_factory=deque)
    failures: int = 0
    """In a row, without an answer in between."""
    engine_failures: int = 0
    """Those of them that the oldest unanswered batch may have caused."""


class Sender:
    """Sends batches and delivers their vectors in the order of the batches."""

    def __init__(self, client: Client, course: Course, deliver: Deliver) -> None:
        self._client = client
        self._course = course
        self._deliver = deliver
        self._source: Iterator[Batch] = iter(())
        self._source_failure: BulkFailure | None = None
        self._room = asyncio.Semaphore(course.streams * UNANSWERED_PER_STREAM * _AHEAD)
        self._answered: dict[int, tuple[Batch, Embeddings | None]] = {}
        self._arrived = asyncio.Event()
        self._next = 0
        self._is_broken = False
        self._open_lanes = 0

    async def send(self, batches: Iterator[Batch]) -> None:
        """All batches.

        Raises:
            BulkFailure: also what ``batches`` raised, once all before it is delivered. What can be delivered is.
        """
        self._source = batches
        self._open_lanes = self._course.streams
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._collect())
                for _ in range(self._course.streams):
                    group.create_task(self._lane())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await self._deliver_next()
        if self._source_failure is not None:
            raise self._source_failure

    async def _collect(self) -> None:
        """Deliver while the lanes are open. Apart from them: a lane's stream may end at any moment."""
        while self._open_lanes or self._next in self._answered:
            await self._arrived.wait()
            self._arrived.clear()
            await self._deliver_next()

    async def _deliver_next(self) -> None:
        while not self._is_broken and (found := self._answered.pop(self._next, None)) is not None:
            self._next += 1
            try:
                await self._deliver(*found)
            except Exception:
                self._is_broken = True  # what follows must not be kept without this one
                raise
            self._room.release()

    async def _take(self) -> Batch | None:
        """The next batch that has documents; None when there is none."""
        while True:
            await self._room.acquire()
            try:
                batch = next(self._source, None)
            except BulkFailure as failure:
                self._source_failure, batch = failure, None
            if batch is None:
                self._room.release()
                return None
            if batch.documents:
                return batch
            self._arrive(batch, None)

    def _arrive(self, batch: Batch, found: Embeddings | None) -> None:
        self._answered[batch.number] = batch, found
        self._arrived.set()

    async def _lane(self) -> None:
        job = tracing.present()
        current_call.set(CallContext(priority=Priority.BULK))
        lane = _Lane()
        try:
            while True:
                if not lane.unanswered:
                    batch = await self._take()
                    if batch is None:
                        return
                    lane.unanswered.append(batch)
                try:
                    # A trace for each stream: one for the job would have more spans than anybody can read.
                    with tracing.task("bulk stream", links=[job] if job else []):
                        await self._stream(lane)
                except InvalidRequest as error:
                    self._reject(lane, error)
                except MeshError as error:
                    lane.failures += 1
                    self._suspect(lane, error)
                    await self._course.outage.wait(error, lane.failures)
        finally:
            self._open_lanes -= 1
            self._arrived.set()

    async def _stream(self, lane: _Lane) -> None:
        """One stream, from the lane's unanswered batches on. Raises MeshError."""
        room = asyncio.Semaphore(UNANSWERED_PER_STREAM)
        answers = self._client.embed_stream(
            self._requests(lane, room), self._course.options, deadline=Deadline.after(_STREAM_SECONDS)
        )
        async with aclosing(answers):
            while (found := await _within(STALLED_SECONDS, answers)) is not None:
                self._take_answer(lane, found)
                room.release()
        if lane.unanswered:
            raise Internal("The worker ended the stream before it had answered all of it.")

    async def _requests(self, lane: _Lane, room: asyncio.Semaphore) -> AsyncGenerator[EmbedInputs, None]:
        for batch in tuple(lane.unanswered):
            await room.acquire()
            yield batch.texts
        for _ in range(STREAM_BATCHES):
            await room.acquire()
            taken = await self._take()
            if taken is None:
                return
            # From here on it is the lane's, whatever becomes of the stream.
            lane.unanswered.append(taken)
            yield taken.texts

    def _take_answer(self, lane: _Lane, found: Embeddings) -> None:
        """The answer to the lane's oldest batch."""
        batch, course = lane.unanswered[0], self._course
        if found.model != course.options.model:
            raise BulkFailure(
                f"The worker answers with {found.model} now, and this job began with {course.options.model}. Start the "
                "worker with that model, and run the same command again."
            )
        rows = len(batch.documents)
        if (found.rows, found.dim, len(found.vectors)) != (rows, course.dimensions, rows * found.dim * _FLOAT_BYTES):
            raise BulkFailure(
                f"The worker sent {found.rows} vectors of {found.dim} numbers for {rows} texts, and {course.dimensions}"
                " numbers each were expected. Another version of it may be running."
            )
        lane.unanswered.popleft()
        lane.failures = lane.engine_failures = 0
        course.outage.over()
        self._arrive(batch, found)

    @staticmethod
    def _suspect(lane: _Lane, error: MeshError) -> None:
        """Raise BulkFailure where the oldest batch fails the engine every time."""
        if not isinstance(error, Internal | GpuOutOfMemory):
            return
        lane.engine_failures += 1
        if lane.engine_failures >= ENGINE_FAILURES and lane.unanswered:
            documents = lane.unanswered[0].documents
            raise BulkFailure(
                f"The worker failed {lane.engine_failures} times at lines {documents[0].line} to {documents[-1].line}: "
                f"{error.message} Its log has the reason."
            ) from error

    def _reject(self, lane: _Lane, error: InvalidRequest) -> None:
        """The worker refuses the oldest batch: leave the line out that it names, where that is allowed."""
        head = lane.unanswered[0]
        at = next((at for at in range(len(head.documents)) if error.param == f"input[{at}]"), None)
        if at is None:
            raise BulkFailure(f"The worker refuses the request: {error.message}") from error
        bad = BadLine(head.documents[at].line, error.message.replace(f"input[{at}]", "the text"))
        if self._course.skip is None:
            raise bad from error
        self._course.skip(bad)
        rest = replace(head, documents=head.documents[:at] + head.documents[at + 1 :], skipped=head.skipped + 1)
        lane.unanswered.popleft()
        if rest.documents:
            lane.unanswered.appendleft(rest)
        else:
            self._arrive(rest, None)


async def _within(seconds: float, answers: AsyncGenerator[Embeddings, None]) -> Embeddings | None:
    """The next answer; None at the stream's end. Raises AttemptTimedOut."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(answers, None)
    except TimeoutError:
        raise AttemptTimedOut(f"The worker has not answered for {seconds:.0f} s.") from None
