"""Ten times more than it can do: every capability keeps its goodput, refuses the rest at once, and is well right after.

The load generator, the gateway and the worker share the machine. What the generator and the refusals take is taken
from the worker, so the goodput here is a lower bound of what it is where a worker has cores of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.chaos.bars import FULL, Bars, Measured
from tests.chaos.openloop import drive
from tests.chaos.openloop_record import Part, Phase, Plan, Record, percentile
from tests.chaos.stand import Gateway, Worker, running_gateway, running_worker, until_serving
from tests.chaos.vitals import Counts, Vitals, Watched, scrape, usage, watching
from tests.chaos.workloads import ALL, Workload

pytestmark = pytest.mark.chaos

OVERLOAD_SECONDS = float(os.environ.get("MESH_CHAOS_OVERLOAD_SECONDS", "30" if FULL else "8"))
RUNG_SECONDS = 4.0 if FULL else 1.5
WARM_SECONDS = 4.0 if FULL else 1.5
BURST_SECONDS = 4.0 if FULL else 1.5
"""Of overload before it is measured: the largest batches and the most connections are part of the warmed state."""
AFTER_SECONDS = 4.0
TIMES_OVER = 10.0
SHARE_AFTER = 0.7


@dataclass(frozen=True, slots=True)
class Stand:
    """A workload's gateway and worker, and the requests for them."""

    workload: Workload
    gateway: Gateway
    worker: Worker

    @property
    def watched(self) -> tuple[Watched, Watched]:
        """Both processes, and how each is asked for its health."""
        return (
            Watched("gateway", self.gateway.process.pid, live_url=f"{self.gateway.url}/health/live"),
            Watched("worker", self.worker.process.pid, target=self.worker.target, service=self.workload.service),
        )

    async def load(self, *phases: Phase) -> Record:
        """Run phases of load."""
        return await drive(
            Plan(
                url=self.gateway.url,
                requests=self.workload.requests(self.gateway.url),
                phases=phases,
                give_up_seconds=self.workload.deadline_seconds + 1.0,
            )
        )

    async def counts(self) -> dict[str, Counts]:
        """Both processes' metrics."""
        return {"gateway": await scrape(f"{self.gateway.url}/metrics"), "worker": await scrape(self.worker.metrics_url)}

    def cpu_seconds(self) -> dict[str, float]:
        """What both have used so far."""
        return {each.name: usage(each.pid).cpu_seconds for each in self.watched}


@asynccontextmanager
async def set_up(workload: Workload) -> AsyncIterator[Stand]:
    """A gateway and a worker of its own for one workload, serving."""
    async with (
        running_worker(workload.worker, workload.service, workload.variables) as worker,
        running_gateway({workload.worker: worker.target}) as gateway,
    ):
        await until_serving(gateway, workload.hop)
        yield Stand(workload, gateway, worker)


@pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.hop)
async def test_ten_times_the_load_costs_no_goodput(workload: Workload, measured: Measured) -> None:
    """Goodput stays at its peak, refusals are quick and say when, memory stays, health answers, and it ends with it."""
    bars = Bars(f"10x {workload.hop}", measured)
    async with set_up(workload) as stand:
        async with watching(*stand.watched) as vitals:
            peak = await find_peak(stand, bars)
            rate = min(TIMES_OVER * peak, workload.most_rate or TIMES_OVER * peak)
            await stand.load(Phase(name="burst", seconds=BURST_SECONDS, rate=rate))
            warmed = time.monotonic()
            counts, cpu = await stand.counts(), stand.cpu_seconds()
            record = await stand.load(
                Phase(name="over", seconds=OVERLOAD_SECONDS, rate=rate),
                Phase(name="after", seconds=AFTER_SECONDS, rate=SHARE_AFTER * peak),
            )
            used = {name: seconds - cpu[name] for name, seconds in stand.cpu_seconds().items()}
            later = await stand.counts()
            await asyncio.sleep(0.3)  # so that the last sample is one from behind the load
    over = record.part("over", within=workload.deadline_seconds)
    bars.tell("times over the peak", over.offered / peak, "x")
    judge_overload(bars, over, peak, workload)
    judge_recovery(bars, record.part("after", within=workload.deadline_seconds))
    judge_vitals(bars, vitals, warmed=warmed, ended=record.began + record.spans[-1].end)
    tell_shares(bars, over, {name: later[name].since(counts[name]) for name in later})
    tell_costs(bars, record, used)
    bars.hold()


async def find_peak(stand: Stand, bars: Bars) -> float:
    """The most good answers per second that a closed loop gets, over rising concurrencies, after warming up."""
    workload = stand.workload
    warm = Phase(name="warm", seconds=WARM_SECONDS, concurrency=workload.lanes[0], obeys=False)
    rungs = [
        Phase(name=f"{lanes} lanes", seconds=RUNG_SECONDS, concurrency=lanes, obeys=False) for lanes in workload.lanes
    ]
    record = await stand.load(warm, *rungs)
    parts = [record.part(rung.name, within=workload.deadline_seconds) for rung in rungs]
    best = max(parts, key=lambda part: part.goodput)
    bars.tell(f"peak, {best.span.name}", best.goodput, "requests/s")
    bars.tell("p50 at the peak", percentile(best.accepted, 0.5) * 1000, "ms")
    assert best.goodput > 0, f"{workload.hop}: nothing was served in time: {[part.outcomes for part in parts]}"
    return best.goodput


def judge_overload(bars: Bars, over: Part, peak: float, workload: Workload) -> None:
    """While it lasts."""
    refusals = [answer.latency for answer in over.refused]
    silent = sum(not answer.retry_after_ms for answer in over.refused)
    noisy = workload.goodput * 0.4  # an overload that takes the service down leaves next to nothing
    bars.at_least("goodput over peak", over.goodput / peak, "", promise=workload.goodput, noisy=noisy)
    if refusals:
        bars.tell("p50 of refusals", percentile(refusals, 0.5) * 1000, "ms")
        bars.at_most("p99 of refusals", percentile(refusals, 0.99) * 1000, "ms", promise=50, noisy=1000)
        bars.tell("median Retry-After", statistics.median(answer.retry_after_ms for answer in over.refused), "ms")
    bars.at_most("refusals without Retry-After", silent, "", promise=0)
    late = percentile(over.accepted, 0.99) / workload.deadline_seconds
    bars.at_most("p99 of accepted over deadline", late, "", promise=1.0, noisy=1.2)
    # Admitted and then not served in time: the worker had the caller wait for nothing. 504 is its honest end.
    bars.at_most(
        "share neither served nor refused", sum(over.others.values()) / len(over.answers), "", promise=0.01, noisy=0.2
    )
    bars.at_most("unsent or lost", sum(over.outcomes.get(name, 0) for name in ("unsent", "lost")), "", promise=0)


def judge_recovery(bars: Bars, after: Part) -> None:
    """Right behind it."""
    bars.tell("last failure after the end", after.settled_after, "s")
    bars.at_least("served in time from 2 s after the end", after.share_good_after(2.0), "", promise=0.999, noisy=0.5)


def judge_vitals(bars: Bars, vitals: Vitals, *, warmed: float, ended: float) -> None:
    """Memory and health of both processes."""
    for name in vitals.samples:
        before, during = vitals.between(name, 0.0, warmed), vitals.between(name, warmed, ended)
        answers = [sample.seconds for sample in during]
        growth = max(sample.used.rss_bytes for sample in during) / max(sample.used.rss_bytes for sample in before) - 1
        bars.at_most(f"health of the {name}, slowest", _worst(answers) * 1000, "ms", promise=100, noisy=2000)
        bars.at_most(f"memory growth of the {name}", growth, "", promise=0.10, noisy=0.35)


def _worst(seconds: list[float]) -> float:
    """The longest; NaN where one was no answer, or there is none."""
    return max(seconds) if seconds and all(each == each for each in seconds) else float("nan")  # noqa: PLR0124 - NaN


def tell_shares(bars: Bars, over: Part, counted: Mapping[str, Counts]) -> None:
    """Who refused: the gateway before it asked, or the worker."""
    asked = counted["worker"].by("mesh_rpc_calls_total", "outcome")
    by_worker = asked.get("overloaded", 0.0)
    for outcome, number in sorted(asked.items()):
        bars.tell(f"worker's calls that ended {outcome}", number, "")
    if over.refused:
        bars.tell("refused by the worker, of all refusals", by_worker / len(over.refused), "")
    for why, number in sorted(counted["worker"].by("mesh_batch_requests_refused_total", "reason").items()):
        bars.tell(f"worker's queue refused: {why}", number, "")


def tell_costs(bars: Bars, record: Record, used: Mapping[str, float]) -> None:
    """Where the CPU time went, over the overload and what followed."""
    seconds = record.spans[-1].end
    for name, cpu in used.items():
        bars.tell(f"cores used by the {name}", cpu / seconds, "")
    bars.tell("cores used by the generator", record.cpu_seconds / seconds, "")
    bars.tell("generator's cost", record.cpu_seconds_per_request * 1e6, "us/request")
    bars.tell("gateway's cost", used["gateway"] / len(record.answers) * 1e6, "us/request")
    bars.at_most("request that left latest", record.latest_send_seconds * 1000, "ms", promise=50, noisy=5000)


CLIENTS = 64
_TOKENS_EACH = 20
_SECONDS_PER_TOKEN = 0.001
_QUEUE_TOKENS = 10 * _TOKENS_EACH


async def test_clients_that_obey_retry_after_are_all_served(tmp_path: Path, measured: Measured) -> None:
    """64 at once on a worker that queues ten: who comes back exactly when told finds room, at the third try at last."""
    bars = Bars(f"{CLIENTS} clients that obey Retry-After", measured)
    fault = tmp_path / "fault"
    fault.write_text(f"slow:{_SECONDS_PER_TOKEN}")
    variables = {
        "MESH_FAULT_FILE": str(fault),
        "EMBEDDING_MAX_BATCH_TOKENS": str(5 * _TOKENS_EACH),
        "EMBEDDING_MAX_TOKENS_PER_REQUEST": str(_QUEUE_TOKENS),
        "EMBEDDING_MAX_QUEUED_TOKENS": str(_QUEUE_TOKENS),
    }
    service = "embedding.v1.EmbeddingService"
    async with (
        running_worker("embedding", service, variables, module="embedding_service.testing") as worker,
        running_gateway({"embedding": worker.target}) as gateway,
    ):
        await until_serving(gateway, "embedding")
        async with gateway.client() as http:
            for _ in range(5):  # so that both know how long a request takes
                await _obey(http)
            began = time.monotonic()
            tries = await asyncio.gather(*(_obey(http) for _ in range(CLIENTS)))
            took = time.monotonic() - began
    alone = CLIENTS * _TOKENS_EACH * _SECONDS_PER_TOKEN
    bars.at_most("median tries", statistics.median(tries), "", promise=2)
    bars.at_most("most tries", max(tries), "", promise=3)
    bars.at_most("time for all, over the engine's own", took / alone, "x", promise=2.0, noisy=6.0)
    bars.hold()


async def _obey(http: httpx.AsyncClient) -> int:
    """Ask until served, coming back when told; how many tries it took."""
    for number in itertools.count(1):
        answer = await http.post("/v1/embeddings", json={"model": "", "input": " ".join(["cat"] * (_TOKENS_EACH - 2))})
        if answer.is_success:
            return number
        assert answer.status_code in (429, 503), answer.text
        await asyncio.sleep(float(answer.headers["retry-after-ms"]) / 1000)
    raise AssertionError("itertools.count ends never")
