"""``python -m bench.bulk``: a bulk job's texts/s over the worker's own peak, on the same texts in the same run.

The peak is what the worker gives to gRPC requests on the bulk lane without anything being read or written: the best of
several numbers of requests in flight. The job reads JSONL and ends with its Parquet file in place. Needs a running
worker that has nothing else to do, and the extra ``bulk``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from bench.measure import Round, Series, Side, interleave, paired_spread
from bench.texts import Length, random_texts
from mesh.bulk.job import EmbedJob, run
from mesh.bulk.parts import Done
from mesh.bulk.reading import Fields, InputFormat
from mesh.clients import AsyncEmbeddingServiceClient
from mesh.context import CallContext, Priority, current_call
from mesh.deadline import Deadline

GOAL = 0.95
_TEXTS_PER_REQUEST = 64
_IN_FLIGHT = (8, 16, 32)
_SECONDS = 600.0
"""Of one request: a slow worker refuses what would not be done in time."""


class _Silent:
    """A progress that shows nothing."""

    def begin(self, done: Done, total_bytes: int) -> None:
        """See Progress."""

    def advance(self, done: Done) -> None:
        """See Progress."""

    def tell(self, line: str) -> None:
        """A job that had to wait is no measurement of its speed, so it is said."""
        print(line, file=sys.stderr)


async def measure(target: str, length: Length, *, texts: int, rounds: int) -> tuple[Series, dict[str, Series]]:
    """Rounds of the job, and of the worker asked by so many requests in flight."""
    written = random_texts(texts, length)
    with tempfile.TemporaryDirectory(prefix="bulk-") as folder:
        source, output = Path(folder) / "texts.jsonl", Path(folder) / "vectors.parquet"
        source.write_text("".join(f"{json.dumps({'text': text})}\n" for text in written), encoding="utf-8")
        async with AsyncEmbeddingServiceClient(target) as client:
            await _requests(client, written[: texts // 10], in_flight=_IN_FLIGHT[-1])
            job = EmbedJob(input=source, output=output, fields=Fields(format=InputFormat.JSONL), restart=True)

            async def bulk() -> Round:
                finished = await run(job, client, _Silent())
                return Round(finished.rows, finished.seconds)

            sides: dict[str, Side] = {"bulk": bulk}
            sides |= {f"{count} in flight": _side(client, written, count) for count in _IN_FLIGHT}
            measured = await interleave(
                sides, rounds=rounds, unit="texts/s", tell=lambda line: print(line, file=sys.stderr)
            )
    return measured.pop("bulk"), measured


def _side(client: AsyncEmbeddingServiceClient, texts: Sequence[str], in_flight: int) -> Side:
    return lambda: _requests(client, texts, in_flight=in_flight)


async def _requests(client: AsyncEmbeddingServiceClient, texts: Sequence[str], *, in_flight: int) -> Round:
    waiting = iter(range(0, len(texts), _TEXTS_PER_REQUEST))

    async def lane() -> None:
        current_call.set(CallContext(priority=Priority.BULK))
        for start in waiting:
            await client.embed(texts[start : start + _TEXTS_PER_REQUEST], deadline=Deadline.after(_SECONDS))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as lanes:
        for _ in range(in_flight):
            lanes.create_task(lane())
    return Round(len(texts), time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 0 whether or not the goal is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.bulk", description=__doc__)
    parser.add_argument("--target", default="127.0.0.1:50051", metavar="HOST:PORT", help="the embedding worker")
    parser.add_argument("--texts", type=int, default=20_000, help="in one round of one side (20000)")
    parser.add_argument("--rounds", type=int, default=3, help="figures are their medians (3)")
    options = parser.parse_args(arguments)
    for length in (Length.SHORT, Length.LONG):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            job, requests = runner.run(measure(options.target, length, texts=options.texts, rounds=options.rounds))
        best, peak = max(requests.items(), key=lambda each: each[1].rate)
        low, high = paired_spread(job, peak)
        print(
            f"{length.name.lower()} texts: bulk {job.rate:,.0f} texts/s, the worker's peak {peak.rate:,.0f} ({best}): "
            f"{job.rate / peak.rate:.3f} ({low:.3f} to {high:.3f}; goal {GOAL})"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
