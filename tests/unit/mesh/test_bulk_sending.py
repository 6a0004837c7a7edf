"""Batches to a worker that answers, fails, waits and goes away; the worker is a fake, time is a fake."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.bulk import sending
from mesh.bulk.batching import Batch
from mesh.bulk.failures import BadLine, BulkFailure, GaveUp
from mesh.bulk.reading import Document, Place
from mesh.bulk.sending import Course, Sender
from mesh.bulk.waiting import Outage, pause_seconds
from mesh.clients.embedding import EmbeddingInfo, Embeddings, EmbedInputs, EmbedOptions, Timings, TokenInputs, Usage
from mesh.context import Priority, current_priority
from mesh.deadline import Deadline
from mesh.errors import (
    CircuitOpen,
    GpuOutOfMemory,
    Internal,
    InvalidRequest,
    MeshError,
    ModelUnusable,
    NotFound,
    Overloaded,
    Unavailable,
)
from mesh.testing import FakeClock


class FakeWorker:
    """Answers each request of a stream by the next step: an error ends the stream, None answers; after them it answers.

    A text "n" becomes the vector (n,).
    """

    def __init__(self, steps: Iterable[MeshError | None] = (), *, model: str = "m") -> None:
        self._steps = iter(steps)
        self.model = model
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.streams = 0
        self.priorities: set[Priority] = set()
        self.most_unanswered = 0

    async def embed_stream(
        self,
        batches: AsyncIterable[EmbedInputs],
        options: EmbedOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> AsyncGenerator[Embeddings, None]:
        """One step per request. Requests are read ahead of the answers, as gRPC does."""
        assert options is not None
        assert options.model == "m"
        self.streams += 1
        self.priorities.add(current_priority())
        requests: asyncio.Queue[EmbedInputs | None] = asyncio.Queue()

        async def read() -> None:
            async for inputs in batches:
                requests.put_nowait(inputs)
                self.most_unanswered = max(self.most_unanswered, requests.qsize())
            requests.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (inputs := await requests.get()) is not None:
                assert not isinstance(inputs, TokenInputs)
                self.asked.update(inputs)
                await asyncio.sleep(0)
                step = next(self._steps, None)
                if step is not None:
                    raise step
                self.answered.update(inputs)
                yield self._answer(inputs)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _answer(self, texts: Iterable[str]) -> Embeddings:
        numbers = [float(text) for text in texts]
        return Embeddings(
            model=self.model,
            rows=len(numbers),
            dim=1,
            vectors=struct.pack(f"<{len(numbers)}f", *numbers),
            usage=Usage(tokens=len(numbers), characters=0),
            timings=Timings(0, 0, 0, 0, 0),
        )

    async def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """Not asked here: `Outage` is given its own check."""
        raise NotImplementedError


class Trial:
    """A sender over a worker, what it delivered, what it told, and how long it slept."""

    def __init__(self, worker: FakeWorker, *, skip: bool = False, streams: int = 2, patience: float = 60.0) -> None:
        self.delivered: list[tuple[Batch, Embeddings | None]] = []
        self.told: list[str] = []
        self.skipped: list[BadLine] = []
        self.slept: list[float] = []
        self.verified = 0
        self.clock = FakeClock()
        self.worker = worker
        self._skip = skip
        self._streams = streams
        self._patience = patience

    async def send(self, batches: Iterable[Batch]) -> None:
        """All batches."""
        outage = Outage(
            patience_seconds=self._patience,
            verify=self._verify,
            tell=self.told.append,
            sleep=self._sleep,
            clock=self.clock,
        )
        course = Course(
            options=EmbedOptions(model="m"),
            dimensions=1,
            streams=self._streams,
            outage=outage,
            skip=self.skipped.append if self._skip else None,
        )
        await Sender(self.worker, course, self._deliver).send(iter(batches))

    async def _deliver(self, batch: Batch, found: Embeddings | None) -> None:
        self.delivered.append((batch, found))

    async def _verify(self) -> None:
        self.verified += 1

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    def rows(self) -> list[float]:
        """The delivered vectors, in the order of their delivery; each is one number."""
        return [
            number
            for _, found in self.delivered
            if found is not None
            for number in struct.unpack(f"<{found.rows}f", found.vectors)
        ]


def batch(number: int, lines: Iterable[int]) -> Batch:
    """A batch whose texts are their lines' numbers."""
    documents = tuple(Document(line, str(line), str(line), len(str(line))) for line in lines)
    return Batch(number=number, documents=documents, place=Place())


def batches(count: int, size: int = 2) -> list[Batch]:
    """``count`` batches of ``size`` documents, lines from 1."""
    return [batch(number, range(number * size + 1, (number + 1) * size + 1)) for number in range(count)]


async def test_vectors_come_in_the_order_of_the_input() -> None:
    """However many streams carry them, and on the bulk lane."""
    trial = Trial(FakeWorker(), streams=3)
    await trial.send(batches(200))
    assert trial.rows() == [float(line) for line in range(1, 401)]
    assert trial.worker.priorities == {Priority.BULK}


async def test_what_is_under_way_is_bounded() -> None:
    """Of one stream as much as a worker computes side by side; of all, until the oldest is delivered."""
    taken = 0

    def source() -> Iterator[Batch]:
        nonlocal taken
        for each in batches(500):
            taken += 1
            assert taken - len(trial.delivered) <= 8 * 4 + 1
            yield each

    trial = Trial(FakeWorker(), streams=1)
    await trial.send(source())
    assert trial.worker.most_unanswered <= 8
    assert len(trial.delivered) == 500


async def test_streams_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they spread over the endpoints again after one was away."""
    monkeypatch.setattr(sending, "STREAM_BATCHES", 10)
    trial = Trial(FakeWorker(), streams=1)
    await trial.send(batches(100))
    assert trial.worker.streams >= 9
    assert trial.rows() == [float(line) for line in range(1, 201)]


FAULTS = [
    Unavailable("away"),
    Overloaded("full", retry_after=3.0),
    CircuitOpen("open", retry_after=60.0),
    Internal("x"),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from([None, None, *FAULTS]), max_size=40), st.integers(1, 4))
def test_no_row_is_lost_or_doubled_whatever_fails(steps: list[MeshError | None], streams: int) -> None:
    """Wherever a stream breaks, what it left unanswered is sent again, and nothing else is kept twice."""
    failures = [at for at, step in enumerate(steps) if isinstance(step, Internal)]
    for at in failures[3:]:
        steps[at] = None  # four at one batch end the job, which another test shows
    trial = Trial(FakeWorker(steps), streams=streams, patience=10_000.0)
    asyncio.run(trial.send(batches(30)))
    assert trial.rows() == [float(line) for line in range(1, 61)]
    assert set(trial.worker.answered.values()) == {1}


async def test_it_waits_as_long_as_the_worker_asks_for() -> None:
    """RetryInfo is obeyed, and then the worker is asked whether it is the same."""
    trial = Trial(FakeWorker([None, Overloaded("full", retry_after=7.5)]), streams=1)
    await trial.send(batches(4))
    assert trial.slept == [7.5]
    assert trial.verified == 1
    assert trial.rows() == [float(line) for line in range(1, 9)]


def test_pauses_without_advice_grow_to_a_limit() -> None:
    """And an open breaker is asked every second, since its probe may close it at any moment."""
    error = Unavailable("away")
    pauses = [pause_seconds(error, failures) for failures in range(1, 30)]
    assert pauses[0] <= 0.5
    assert max(pauses) <= 10.0
    assert min(pauses[10:]) >= 7.5
    assert pause_seconds(CircuitOpen("open", retry_after=60.0), 1) == 1.0
    assert pause_seconds(Overloaded("full", retry_after=42.0), 1) == 42.0
    assert pause_seconds(Overloaded("full", retry_after=0.0), 1) > 0


async def test_it_gives_up_after_the_users_patience() -> None:
    """And keeps what came before; the outage is told once."""
    trial = Trial(FakeWorker([None, *[Unavailable("It is away.")] * 99]), streams=1, patience=30.0)
    with pytest.raises(GaveUp, match="It is away"):
        await trial.send(batches(4))
    assert trial.rows() == [1.0, 2.0]
    assert 30.0 <= sum(trial.slept) <= 45.0
    assert trial.told == ["Waiting for the worker: It is away."]


async def test_the_end_of_an_outage_is_told() -> None:
    """Whoever looks at a bar that stood still reads why it moves again."""
    trial = Trial(FakeWorker([Unavailable("It is away.")]), streams=1)
    await trial.send(batches(2))
    assert trial.told[-1] == "The worker answers again."


@pytest.mark.parametrize("error", [Internal("It failed."), GpuOutOfMemory("It failed.")])
async def test_a_batch_that_breaks_the_engine_every_time_is_named(error: MeshError) -> None:
    """By its lines, after a few attempts; the same command would meet it again."""
    trial = Trial(FakeWorker([None, *[error] * 9]), streams=1)
    with pytest.raises(BulkFailure, match="at lines 3 to 4: It failed"):
        await trial.send(batches(4))
    assert trial.worker.asked["3"] == 4
    assert trial.rows() == [1.0, 2.0]


@pytest.mark.parametrize("error", [NotFound("No such model."), ModelUnusable("Its model is damaged.")])
async def test_what_can_never_work_is_not_tried_again(error: MeshError) -> None:
    """The worker's own words say what to do."""
    trial = Trial(FakeWorker([error]), streams=1)
    with pytest.raises(BulkFailure, match=error.message):
        await trial.send(batches(4))
    assert trial.slept == []


async def test_a_text_that_the_worker_refuses_is_a_bad_line() -> None:
    """Its number is the line's, not the request's."""
    refusal = InvalidRequest("input[1] has 600 tokens.", param="input[1]")
    trial = Trial(FakeWorker([None, refusal]), streams=1)
    with pytest.raises(BadLine, match="line 4: the text has 600 tokens"):
        await trial.send(batches(4))
    assert trial.rows() == [1.0, 2.0]


async def test_a_refused_text_can_be_left_out() -> None:
    """The others of its request are embedded, and it is counted; a request of it alone is not sent at all."""
    refusal = InvalidRequest("input[1] is too long.", param="input[1]")
    alone = InvalidRequest("input[0] is too long.", param="input[0]")
    trial = Trial(FakeWorker([None, refusal, None, alone]), streams=1, skip=True)
    await trial.send([batch(0, [1, 2]), batch(1, [3, 4]), batch(2, [5]), batch(3, [6])])
    assert trial.rows() == [1.0, 2.0, 3.0, 6.0]
    assert [bad.line for bad in trial.skipped] == [4, 5]
    assert [each.skipped for each, _ in trial.delivered] == [0, 1, 1, 0]


async def test_a_request_that_is_refused_as_a_whole_ends_the_job() -> None:
    """No line is at fault, so leaving lines out would not help."""
    trial = Trial(FakeWorker([InvalidRequest("dimensions must be less.", param="dimensions")]), skip=True)
    with pytest.raises(BulkFailure, match="dimensions must be less"):
        await trial.send(batches(2))


async def test_another_models_vectors_are_never_kept() -> None:
    """A worker that came back with another model would spoil the file."""
    trial = Trial(FakeWorker(model="other"), streams=1)
    with pytest.raises(BulkFailure, match="answers with other now"):
        await trial.send(batches(2))
    assert trial.rows() == []


async def test_a_bad_line_of_the_input_ends_it_after_all_before() -> None:
    """What was read before it is answered and kept."""

    def source() -> Iterator[Batch]:
        yield from batches(20)
        raise BadLine(41, "it is not JSON")

    trial = Trial(FakeWorker(), streams=3)
    with pytest.raises(BadLine):
        await trial.send(source())
    assert trial.rows() == [float(line) for line in range(1, 41)]


async def test_batches_without_documents_are_not_sent() -> None:
    """They only move the place on."""
    trial = Trial(FakeWorker())
    await trial.send([batch(0, []), batch(1, [1]), batch(2, []), batch(3, [])])
    assert [each.number for each, _ in trial.delivered] == [0, 1, 2, 3]
    assert trial.worker.asked == {"1": 1}


async def test_after_a_failed_write_nothing_later_is_kept() -> None:
    """A full disk leaves a gap nowhere."""

    class FullDisk(Trial):
        async def _deliver(self, batch: Batch, found: Embeddings | None) -> None:
            if batch.number == 3:
                raise OSError(28, "No space left on device")
            await super()._deliver(batch, found)

    trial = FullDisk(FakeWorker())
    with pytest.raises(OSError, match="No space"):
        await trial.send(batches(20))
    assert [each.number for each, _ in trial.delivered] == [0, 1, 2]


async def test_cancelling_delivers_what_was_answered_in_order() -> None:
    """Ctrl-C keeps a prefix of the input, without a gap."""
    waiting = asyncio.Event()

    class Hanging(Trial):
        async def _sleep(self, seconds: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

    trial = Hanging(FakeWorker([*[None] * 5, Unavailable("away")]), streams=1)
    job = asyncio.create_task(trial.send(batches(20)))
    await waiting.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert trial.rows() == [float(line) for line in range(1, 11)]
