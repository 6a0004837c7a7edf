"""A bulk job that saturates a worker: interactive requests keep their latency beside it, and it still gets on.

Interactive requests come at random, so many a second, as users' do; and then one after the other, as fast as one client
can. Each is measured on the idle worker right before and right after, so that what the machine does shows.

Where an engine computes batches, a short request waits for one short bulk batch at most, and for a document a process
is kept free. Where the engine does one thing at a time and cannot be interrupted (an answer of a model with one slot),
it waits for one bulk request at most: that is then the promise, in place of a multiple of the idle latency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

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
IDLE_SECONDS = 10.0 if FULL else 4.0
_BULK_ITEMS = 16
"""Of a request. Those of all lanes are answered at about the same time, since their items share batches: with many more
items each there are too few such moments to tell a pace by."""
_WARM_SECONDS = 1.0
_BULK_DEADLINE_SECONDS = 30.0
_DEADLINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Two kinds of work for one worker.

    Attributes:
        workload: where they go.
        interactive: short requests.
        bulk: long ones, from several connections.
        rate: interactive requests a second, where they come at random.
        bulk_share: how much of its pace alone the bulk job keeps beside them.
        bulk_share_singly: the same beside interactive requests that come one after the other.
        interruptible: whether the worker can take other work beside a bulk request, or between two parts of it.
    """

    workload: Workload
    interactive: Write
    bulk: Write
    rate: float
    bulk_share: float
    bulk_share_singly: float
    interruptible: bool = True


MIXTURES = (
    Mixture(
        workload=EMBEDDING, interactive=embeddings(1), bulk=embeddings(_BULK_ITEMS), rate=20, bulk_share=0.5,
        bulk_share_singly=0.3,
    ),
    Mixture(
        workload=RERANKING, interactive=rankings(1), bulk=rankings(_BULK_ITEMS), rate=20, bulk_share=0.5,
        bulk_share_singly=0.3,
    ),
    # An interactive request takes the engine for as long as a bulk one, and one after the other they take turns.
    Mixture(
        workload=LLM, interactive=answers, bulk=answers, rate=4, bulk_share=0.5, bulk_share_singly=0.35,
        interruptible=False,
    ),
    Mixture(
        workload=CHUNKING, interactive=notes, bulk=documents, rate=4, bulk_share=0.6, bulk_share_singly=0.4,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Interactive requests of one kind, without the bulk job, beside it, and without it again."""

    before: Record
    during: Record
    after: Record
    bulk: Record

    @property
    def idle(self) -> list[float]:
        """Latencies without the bulk job."""
        return [*_latencies(self.before), *_latencies(self.after)]

    @property
    def pace(self) -> float:
        """The bulk job's good answers per second meanwhile."""
        return _pace_between(self.bulk, self.during.began, self.during.began + self.during.spans[-1].end)

    @property
    def not_served(self) -> int:
        """Interactive requests."""
        records = (self.before, self.during, self.after)
        return sum(answer.status != 200 for answer in chain.from_iterable(record.answers for record in records))


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
        both = Both(gateway.url, short.requests(gateway.url), long.requests(gateway.url, x_mesh_priority="bulk"))
        # First, and on a fresh worker: it makes short batches of bulk work once it has seen interactive requests.
        alone = await both.bulk_alone()
        one_bulk = await drive(_plan(both.url, both.bulk, Phase(name="one", seconds=IDLE_SECONDS, concurrency=1)))
        at_random = await both.beside(Phase(name="at random", seconds=BESIDE_SECONDS, rate=mixture.rate))
        singly = await both.beside(Phase(name="singly", seconds=BESIDE_SECONDS, concurrency=1))
    bars.tell("bulk alone", alone, "requests/s")
    longest = percentile(_latencies(one_bulk), 0.99)
    bars.tell("one bulk request alone, p99", longest * 1000, "ms")
    for name, beside, share in (
        (f"{mixture.rate:g}/s", at_random, mixture.bulk_share),
        ("singly", singly, mixture.bulk_share_singly),
    ):
        judge_latency(bars, name, beside, one_bulk=0.0 if mixture.interruptible else longest)
        bars.at_least(f"{name}: bulk over its pace alone", beside.pace / alone, "", promise=share, noisy=share * 0.2)
    bars.hold()


def judge_latency(bars: Bars, name: str, beside: Beside, *, one_bulk: float) -> None:
    """Compare with the idle worker; ``one_bulk`` is how long one bulk request cannot be interrupted."""
    for when, latencies in (("idle before", _latencies(beside.before)), ("idle after", _latencies(beside.after))):
        bars.tell(f"{name}: {when}, p50", percentile(latencies, 0.5) * 1000, "ms")
        bars.tell(f"{name}: {when}, p99", percentile(latencies, 0.99) * 1000, "ms")
    during, idle = _latencies(beside.during), percentile(beside.idle, 0.99)
    p99 = percentile(during, 0.99)
    bars.tell(f"{name}: p50", percentile(during, 0.5) * 1000, "ms")
    bars.tell(f"{name}: p99", p99 * 1000, "ms")
    bars.at_most(f"{name}: interactive requests not served", beside.not_served, "", promise=0, noisy=3)
    if one_bulk:
        bars.tell(f"{name}: p99 over idle p99", p99 / idle, "x")
        wait = p99 / (idle + one_bulk)
        bars.at_most(f"{name}: p99 over (idle p99 + one bulk request)", wait, "x", promise=1.5, noisy=6.0)
    else:
        bars.at_most(f"{name}: p99 over idle p99", p99 / idle, "x", promise=3.0, noisy=15.0)


@dataclass(frozen=True, slots=True)
class Both:
    """Interactive and bulk requests for one gateway."""

    url: str
    interactive: Sequence[bytes]
    bulk: Sequence[bytes]

    async def bulk_alone(self) -> float:
        """Good answers per second."""
        record = await drive(_plan(self.url, self.bulk, _warm(), _saturating(BULK_SECONDS)))
        return record.part("bulk", within=_BULK_DEADLINE_SECONDS).goodput

    async def beside(self, interactive: Phase) -> Beside:
        """Run a phase of interactive requests beside the bulk job, and shorter ones before and after."""
        idle = replace(interactive, seconds=IDLE_SECONDS)
        before = await drive(_plan(self.url, self.interactive, idle))
        job = asyncio.create_task(
            drive(_plan(self.url, self.bulk, _warm(), _saturating(interactive.seconds + 2 * _WARM_SECONDS)))
        )
        await asyncio.sleep(2 * _WARM_SECONDS)  # the job's own start included
        during = await drive(_plan(self.url, self.interactive, interactive))
        bulk = await job
        after = await drive(_plan(self.url, self.interactive, idle))
        return Beside(before=before, during=during, after=after, bulk=bulk)


def _plan(url: str, requests: Sequence[bytes], *phases: Phase) -> Plan:
    return Plan(url=url, requests=tuple(requests), phases=phases, give_up_seconds=_BULK_DEADLINE_SECONDS)


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
