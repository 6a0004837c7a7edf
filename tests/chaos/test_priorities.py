"""A bulk job that saturates a worker: interactive requests keep their latency beside it, and it still gets on.

Where an engine computes batches, a short request waits for one short bulk batch at most. Where it does one thing at a
time and cannot be interrupted (a document, an answer of a model with one slot), it waits for one bulk request at most:
that is then the promise, in place of a multiple of the idle latency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from tests.chaos.bars import FULL, Bars, Measured
from tests.chaos.openloop import drive
from tests.chaos.openloop_record import Phase, Plan, Record, good, percentile
from tests.chaos.stand import running_gateway, running_worker, until_serving
from tests.chaos.workloads import (
    CHUNKING,
    EMBEDDING,
    LLM,
    RERANKING,
    Workload,
    Write,
    answers,
    documents,
    embeddings,
    notes,
    rankings,
)

pytestmark = pytest.mark.chaos

BULK_LANES = 8
BULK_SECONDS = 15.0 if FULL else 5.0
BESIDE_SECONDS = 20.0 if FULL else 6.0
"""Long enough that many bulk requests end in it: they come in bursts."""
_WARM_SECONDS = 1.0
_BULK_DEADLINE_SECONDS = 30.0
_DEADLINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Two kinds of work for one worker.

    Attributes:
        workload: where they go.
        interactive: short requests, one after the other.
        bulk: long ones, from several connections.
        requests: how many interactive ones are sent to the idle worker, one after the other.
        interruptible: whether the worker can take other work between two parts of a bulk request.
        bulk_share: how much of its pace alone the bulk job keeps.
    """

    workload: Workload
    interactive: Write
    bulk: Write
    requests: int = 200
    interruptible: bool = True
    bulk_share: float = 0.6


MIXTURES = (
    Mixture(workload=EMBEDDING, interactive=embeddings(1), bulk=embeddings(64)),
    Mixture(workload=RERANKING, interactive=rankings(1), bulk=rankings(64)),
    # An interactive request takes the engine for as long as a bulk one, and they take turns.
    Mixture(
        workload=LLM, interactive=answers, bulk=answers, requests=40, interruptible=False, bulk_share=0.35,
    ),
    Mixture(
        workload=CHUNKING, interactive=notes, bulk=documents, requests=60, interruptible=False, bulk_share=0.6,
    ),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: mixture.workload.hop)
async def test_interactive_requests_pass_a_bulk_job(mixture: Mixture, measured: Measured) -> None:
    """Their p99 stays near what it is on an idle worker, and the bulk job is not starved."""
    workload = mixture.workload
    bars = Bars(f"interactive beside bulk, {workload.hop}", measured)
    async with (
        running_worker(workload.worker, workload.service, workload.variables) as worker,
        running_gateway({workload.worker: worker.target}) as gateway,
    ):
        await until_serving(gateway, workload.hop)
        short = replace(workload, write=mixture.interactive, deadline_seconds=_DEADLINE_SECONDS)
        long = replace(workload, write=mixture.bulk, deadline_seconds=_BULK_DEADLINE_SECONDS)
        short_requests = short.requests(gateway.url)
        bulk_requests = long.requests(gateway.url, x_mesh_priority="bulk")
        # First, and on a fresh worker: it makes short batches of bulk work once it has seen interactive requests.
        alone = await drive(_plan(gateway.url, bulk_requests, _warm(), _saturating(BULK_SECONDS)))
        idle = await drive(_plan(gateway.url, short_requests, _one_by_one(mixture.requests)))
        one_bulk = await drive(_plan(gateway.url, bulk_requests, _one_by_one(20)))
        job = asyncio.create_task(drive(_plan(gateway.url, bulk_requests, _warm(), _saturating(BESIDE_SECONDS + 2.0))))
        await asyncio.sleep(2 * _WARM_SECONDS)  # the job's own start included
        beside = await drive(_plan(gateway.url, short_requests, _one_by_one(0)))
        bulk = await job
    judge(bars, mixture, idle=idle, alone=alone, one_bulk=one_bulk, beside=beside, bulk=bulk)


def judge(
    bars: Bars, mixture: Mixture, *, idle: Record, alone: Record, one_bulk: Record, beside: Record, bulk: Record
) -> None:
    """Compare the runs."""
    before, after = _latencies(idle), _latencies(beside)
    pace_alone = alone.part("bulk", within=_BULK_DEADLINE_SECONDS).goodput
    pace = _pace_between(bulk, beside.began, beside.began + beside.spans[-1].end)
    bars.tell("idle p50", percentile(before, 0.5) * 1000, "ms")
    bars.tell("idle p99", percentile(before, 0.99) * 1000, "ms")
    bars.tell("p50", percentile(after, 0.5) * 1000, "ms")
    bars.tell("p99", percentile(after, 0.99) * 1000, "ms")
    bars.tell("bulk alone", pace_alone, "requests/s")
    bars.tell("one bulk request alone, p50", percentile(_latencies(one_bulk), 0.5) * 1000, "ms")
    for record in (idle, beside):
        bars.at_most(
            "interactive requests not served", sum(answer.status != 200 for answer in record.answers), "", promise=0
        )
    times_idle = percentile(after, 0.99) / percentile(before, 0.99)
    if mixture.interruptible:
        bars.at_most("p99 over idle p99", times_idle, "x", promise=3.0, noisy=6.0)
    else:
        bars.tell("p99 over idle p99", times_idle, "x")
        longest_wait = percentile(before, 0.99) + percentile(_latencies(one_bulk), 0.99)
        bars.at_most(
            "p99 over (idle p99 + one bulk request)",
            percentile(after, 0.99) / longest_wait,
            "x",
            promise=1.5,
            noisy=3.0,
        )
    bars.at_least(
        "bulk over its pace alone", pace / pace_alone, "", promise=mixture.bulk_share, noisy=mixture.bulk_share * 0.6
    )
    bars.hold()


def _plan(url: str, requests: Sequence[bytes], *phases: Phase) -> Plan:
    return Plan(url=url, requests=tuple(requests), phases=phases, give_up_seconds=_BULK_DEADLINE_SECONDS)


def _one_by_one(most: int) -> Phase:
    return Phase(name="singly", seconds=BESIDE_SECONDS, concurrency=1, most=most)


def _warm() -> Phase:
    return Phase(name="warm", seconds=_WARM_SECONDS, concurrency=BULK_LANES)


def _saturating(seconds: float) -> Phase:
    return Phase(name="bulk", seconds=seconds, concurrency=BULK_LANES)


def _latencies(record: Record) -> list[float]:
    """Of what was served, without the first tenth: connections and caches are made there."""
    served = [answer.latency for answer in record.answers if answer.status == 200]
    return served[len(served) // 10 :]


def _pace_between(record: Record, begin: float, end: float) -> float:
    """Good answers per second in a stretch of ``time.monotonic()``."""
    ended = [record.began + answer.ended for answer in record.answers if good(answer, _BULK_DEADLINE_SECONDS)]
    return sum(begin <= moment < end for moment in ended) / (end - begin)
