"""One job from its input to its output; run again after whatever stopped it, it goes on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mesh.bulk.batching import STREAMS_PER_ENDPOINT, BatchLimits, batches
from mesh.bulk.failures import BadLine, Refused
from mesh.bulk.parts import Done, Facts, Parts, require_parquet
from mesh.bulk.reading import Fields, Reader
from mesh.bulk.sending import Course, Sender
from mesh.bulk.served import ModelFacts, ServedModel
from mesh.bulk.waiting import Outage
from mesh.bulk.writing import PartWriter
from mesh.clients import AsyncEmbeddingServiceClient
from mesh.clients.embedding import EmbedOptions
from mesh.errors import MeshError


class Progress(Protocol):
    """Shows how far a job has come."""

    def begin(self, done: Done, total_bytes: int) -> None:
        """The work begins here."""
        ...

    def advance(self, done: Done) -> None:
        """So much is done, with what was done before."""
        ...

    def tell(self, line: str) -> None:
        """Something that the user should know."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedJob:
    """What to embed, how, and where to.

    Attributes:
        options: of every request; the model's name may be left out.
        skip_bad_lines: leave them out instead of stopping at the first.
        restart: throw away what there is of the output.
        patience_seconds: how long to wait for a worker that does not answer.
    """

    input: Path
    output: Path
    fields: Fields
    options: EmbedOptions = field(default_factory=EmbedOptions)
    skip_bad_lines: bool = False
    restart: bool = False
    patience_seconds: float = 600.0

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same when the job goes on, as JSON."""
        options = self.options
        return {
            "format": self.fields.format.value,
            "text field": self.fields.text,
            "id field": self.fields.id,
            "dimensions": options.dimensions,
            "normalize": options.normalize is not False,
            "truncation": options.truncation.value,
            "input type": options.input_type.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A job that is done.

    Attributes:
        model: what its vectors are of.
        done: all of it, earlier runs included.
        rows: of this run; 0 where there was nothing left to do.
        seconds: of this run.
    """

    model: ModelFacts
    done: Done
    rows: int
    seconds: float


async def run(job: EmbedJob, client: AsyncEmbeddingServiceClient, progress: Progress) -> Finished:
    """Do what is left of the job.

    Raises:
        BulkFailure: see its tree; what was done is kept.
        OSError: the disk takes no more.
    """
    require_parquet()
    parts = Parts(job.output)
    with parts.locked():
        if job.restart:
            parts.discard()
        if (finished := parts.finished()) is not None:
            return await _already(job, parts, *finished)
        begun = parts.begun()
        if begun is not None:
            require_same(begun, job.settings)
        done = parts.resume() if begun is not None else Done()
        # Off the event loop: it reads again what has been done.
        with await asyncio.to_thread(Reader, job.input, job.fields, done.place) as reader:
            return await _Run(job, client, progress, parts).go_on(reader, begun, done)


async def _already(job: EmbedJob, parts: Parts, facts: Facts, done: Done) -> Finished:
    """The output is there. Raises Refused where it is of another input or of other settings."""
    require_same(facts, job.settings)
    model = ModelFacts(**facts["model"])
    size = job.input.stat().st_size if job.input.is_file() else -1
    if size != done.place.offset:
        raise Refused(
            f"{job.output} is complete, and {job.input.name} is not as it was then. Make it anew with --restart, or "
            "name another --out."
        )
    (await asyncio.to_thread(Reader, job.input, job.fields, done.place)).__exit__()
    parts.clear()
    return Finished(model=model, done=done, rows=0, seconds=0.0)


def require_same(begun: Facts, settings: Facts) -> None:
    """Raise Refused where a job began with other settings."""
    before = begun["settings"]
    other = [
        f"{name} was {before.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted({*before, *settings})
        if before.get(name) != settings.get(name)
    ]
    if other:
        raise Refused(
            f"The job began with other settings: {'; '.join(other)}. Give the same ones to go on, or begin anew with "
            "--restart."
        )


class _Run:
    """One run of a job."""

    def __init__(self, job: EmbedJob, client: AsyncEmbeddingServiceClient, progress: Progress, parts: Parts) -> None:
        self._job = job
        self._client = client
        self._progress = progress
        self._parts = parts

    async def go_on(self, reader: Reader, begun: Facts | None, done: Done) -> Finished:
        """From ``done`` to the end."""
        job = self._job
        expected = ModelFacts(**begun["model"]) if begun is not None else None
        served = ServedModel(self._client, job.options.model, job.options.dimensions, expected)
        outage = Outage(patience_seconds=job.patience_seconds, verify=served.verify, tell=self._progress.tell)
        await _found(served, outage)
        facts = begun or {"settings": job.settings, "model": served.facts.facts(), "engine": served.engine}
        if begun is None:
            self._parts.begin(facts)
        elif begun.get("engine") != served.engine:
            self._progress.tell(
                f"The job began with the engine {begun.get('engine')}, and goes on with {served.engine}."
            )
        self._progress.begin(done, job.input.stat().st_size)
        started = time.monotonic()
        all_done = await self._embed(reader, served, outage, done)
        await asyncio.to_thread(self._parts.join, facts, dimensions=served.facts.dimensions, done=all_done)
        seconds = time.monotonic() - started
        return Finished(model=served.facts, done=all_done, rows=all_done.rows - done.rows, seconds=seconds)

    async def _embed(self, reader: Reader, served: ServedModel, outage: Outage, done: Done) -> Done:
        dimensions, options = served.facts.dimensions, replace(self._job.options, model=served.facts.name)
        skip = self._skip if self._job.skip_bad_lines else None
        endpoints = len(self._client.hop.status().endpoints)
        course = Course(
            options=options, dimensions=dimensions, streams=STREAMS_PER_ENDPOINT * max(1, endpoints), outage=outage,
            skip=skip,
        )  # fmt: skip
        limits = BatchLimits.of_worker(
            inputs=served.limits.max_inputs_per_request,
            request_tokens=served.limits.max_tokens_per_request,
            request_bytes=served.limits.max_request_bytes,
            queued_tokens=served.limits.max_queued_tokens,
            text_tokens=served.max_input_tokens,
        )
        writer = PartWriter(self._parts, dimensions=dimensions, done=done, progress=self._progress.advance)
        try:
            await Sender(self._client, course, writer.add).send(batches(reader, limits, skip=skip))
        finally:
            await writer.flush()
        # Behind the last batch there may be blank lines.
        return replace(writer.kept, place=reader.place)

    def _skip(self, bad: BadLine) -> None:
        self._progress.tell(f"{self._job.input.name}, {bad}; left out.")


async def _found(served: ServedModel, outage: Outage) -> None:
    try:
        await served.verify()
    except MeshError as error:
        await outage.wait(error, 1)
    outage.over()
