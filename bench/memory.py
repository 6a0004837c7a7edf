"""Whether a worker's memory stays flat: many texts of all lengths through one embedding worker, its RSS beside them.

An engine that keeps something for each shape of batch that it meets grows for hours. What the first texts take, while
buffers find their size, is warm-up; after it the slope tells.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.load import closed_loop
from bench.measure import Tell
from bench.options import Options
from bench.processes import Running
from bench.report import Goal, Row
from bench.subject import CannotMeasure
from bench.texts import texts_of_all_lengths
from bench.workers import embedding_worker
from ops.local.layout import Layout

if TYPE_CHECKING:
    from mesh.clients import AsyncEmbeddingServiceClient

TEXTS, QUICK_TEXTS = 100_000, 5_000
WARM_UP_SHARE = 0.3

_SAMPLES = 100
_CONCURRENCY = 4
_REQUEST_SIZES = (1, 2, 8, 3, 32, 5, 16, 64)
_FLAT = Goal(at_most=1.0, of_value=True)
_ROWS, _COLUMNS = 8, 60


@dataclass(frozen=True, slots=True)
class Sample:
    """After so many texts the worker held so many bytes."""

    texts: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Growth:
    """A worker's memory over the texts that it embedded."""

    samples: tuple[Sample, ...]

    @property
    def warm(self) -> tuple[Sample, ...]:
        """The samples after the warm-up."""
        return tuple(each for each in self.samples if each.texts >= WARM_UP_SHARE * self.samples[-1].texts)

    @property
    def bytes_per_text(self) -> float:
        """The slope after the warm-up, by least squares."""
        fit = statistics.linear_regression([each.texts for each in self.warm], [each.bytes for each in self.warm])
        return float(fit.slope)

    @property
    def megabytes_per_10_000_texts(self) -> float:
        """The same in a unit for people."""
        return self.bytes_per_text * 10_000 / 1e6

    def picture(self) -> str:
        """Memory over texts: a mark for each column's largest sample, and where the warm-up ends."""
        most, last = max(each.bytes for each in self.samples), self.samples[-1].texts
        least = min(each.bytes for each in self.samples)
        height = max(most - least, 1)
        cells = [[" "] * _COLUMNS for _ in range(_ROWS)]
        end_of_warm_up = min(_COLUMNS - 1, round(WARM_UP_SHARE * _COLUMNS))
        for line in cells:
            line[end_of_warm_up] = "┊"
        for each in self.samples:
            column = min(_COLUMNS - 1, each.texts * _COLUMNS // (last + 1))
            cells[_ROWS - 1 - (each.bytes - least) * (_ROWS - 1) // height][column] = "•"
        scale = [f"{most / 1e6:,.0f} MB", *[""] * (_ROWS - 2), f"{least / 1e6:,.0f} MB"]
        width = max(map(len, scale))
        lines = [f"  {label.rjust(width)} ┤{''.join(line)}" for label, line in zip(scale, cells, strict=True)]
        ends = f"0{f'{last:,} texts'.rjust(_COLUMNS - 1)}"
        return "\n".join(["Memory of the worker (┊ = end of the warm-up)", *lines, f"  {' ' * width}  {ends}"])


async def measure(options: Options, layout: Layout, *, tell: Tell) -> tuple[list[Row], str]:
    """The row of the slope, and its picture.

    Raises:
        DidNotStart: the worker did not start.
        CannotMeasure: the system does not say what a process holds.
        MeshError: a call failed.
    """
    from mesh.clients import AsyncEmbeddingServiceClient

    count = QUICK_TEXTS if options.quick else TEXTS
    tell(f"memory: {count:,} texts of all lengths through one embedding worker")
    async with (
        embedding_worker(layout, {"MODEL": options.model}) as worker,
        AsyncEmbeddingServiceClient(worker.target) as client,
    ):
        engine = (await client.info()).models[0].engine
        growth = await watch(client, worker.process, count, tell=tell)
    row = Row(
        part="memory", what=f"growth per 10,000 texts after warm-up, {engine}", unit="MB",
        mesh=growth.megabytes_per_10_000_texts,
        goal=None if options.quick else _FLAT,  # so few texts are warm-up for the most part
        details={
            "texts": float(count),
            "first_warm_mb": growth.warm[0].bytes / 1e6, "last_mb": growth.samples[-1].bytes / 1e6,
        },
    )  # fmt: skip
    return [row], growth.picture()


async def watch(client: AsyncEmbeddingServiceClient, process: Running, count: int, *, tell: Tell) -> Growth:
    """Send ``count`` texts, in requests of many sizes, and look at the worker's memory a hundred times meanwhile.

    Raises:
        CannotMeasure: the system does not say what a process holds.
        MeshError: a call failed.
    """
    requests = in_many_sizes(texts_of_all_lengths(count))
    samples = [_sample(process, 0)]
    done = 0

    async def send(_: int, __: int) -> float:
        nonlocal done
        texts = next(requests, None)
        if texts is None:
            return 0.0
        await client.embed(texts)
        done += len(texts)
        if done * _SAMPLES >= len(samples) * count:
            samples.append(_sample(process, done))
            if len(samples) % (_SAMPLES // 10) == 0:
                tell(f"memory: {done:,} texts, {samples[-1].bytes / 1e6:,.0f} MB")
        return float(len(texts))

    while done < count:
        await closed_loop(send, concurrency=_CONCURRENCY, seconds=1.0)
    return Growth(tuple(samples))


def in_many_sizes(texts: Iterator[str]) -> Iterator[Sequence[str]]:
    """The texts in requests of 1 to 64."""
    for size in itertools.cycle(_REQUEST_SIZES):
        request = list(itertools.islice(texts, size))
        if not request:
            return
        yield request


def _sample(process: Running, texts: int) -> Sample:
    held = process.rss_bytes()
    if held is None:
        raise CannotMeasure("this system does not say how much memory a process holds")
    return Sample(texts, held)
