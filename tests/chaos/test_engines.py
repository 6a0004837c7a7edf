"""Engines that hang, fail and run out of memory in workers whose event loop is well: what the gateway's callers see.

And workers that are told to end while they work.
"""

from __future__ import annotations

import asyncio
import signal
import time

import httpx
import pytest

from mesh.serving.worker import EXIT_OK, EXIT_STUCK
from mesh.settings import WorkerSettings
from tests.chaos.bars import Bars, Measured
from tests.chaos.processes import BUSY, EMBEDDING, gateway_before, replicas
from tests.chaos.stand import hop_status
from tests.chaos.traffic import Traffic, failed, served, slowest, traffic, wrong

pytestmark = pytest.mark.chaos

LANES = 16
FOUND_SECONDS = 10.0
FAILING_FOUND_SECONDS = 3.0
TOLD_TWICE = 1
"""The exit code of a worker that was told twice to end."""
NOTICE_SECONDS: float = WorkerSettings.model_fields["drain_notice_seconds"].default
GRACE_SECONDS: float = WorkerSettings.model_fields["drain_grace_seconds"].default


@pytest.mark.slow
async def test_an_engine_that_hangs_is_found_busy_or_idle_and_fails_no_call(measured: Measured) -> None:
    """NOT_SERVING within ten seconds, an exit for the supervisor, and its calls are answered by the other one."""
    bars = Bars("engine hangs", measured)
    async with replicas(EMBEDDING, 3) as (busy, other, idle), gateway_before([busy, other]) as gateway:
        for each in (busy, other):
            each.fault(BUSY)
        async with gateway.client() as http, traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(0.5)
            hung_at = time.monotonic()
            for each in (busy, idle):
                each.fault("hang")
            found = await asyncio.gather(*(each.says_not_serving() for each in (busy, idle)))
            codes = [await each.exit_code() for each in (busy, idle)]
            await asyncio.sleep(0.5)
    assert codes == [EXIT_STUCK, EXIT_STUCK]
    held = [reply for reply in seen.replies if reply.seconds > 2.0]
    assert held, "no call was held, so nothing was proved"
    bars.at_most("busy one says NOT_SERVING after", found[0] - hung_at, "s", promise=FOUND_SECONDS)
    bars.at_most("idle one says NOT_SERVING after", found[1] - hung_at, "s", promise=FOUND_SECONDS)
    bars.tell("calls that it held", len(held), "")
    bars.at_most("slowest", slowest(seen.replies), "s", promise=FOUND_SECONDS + 2.0)
    _judge(bars, seen, failures=0)


async def test_an_engine_that_fails_every_batch_is_left_alone_at_once_and_ends(measured: Measured) -> None:
    """A poisoned device: no failure reaches a caller two seconds later, and the process exits for its supervisor."""
    bars = Bars("engine fails every batch", measured)
    async with replicas(EMBEDDING, 2) as (poisoned, other), gateway_before([poisoned, other]) as gateway:
        async with gateway.client() as http, traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(0.5)
            poisoned_at = time.monotonic()
            poisoned.fault("fail")
            found = await poisoned.says_not_serving() - poisoned_at
            code = await poisoned.exit_code()
            await asyncio.sleep(0.5)
    assert code == EXIT_STUCK
    assert {reply.code for reply in failed(seen.replies)} <= {"internal"}
    bars.at_most("says NOT_SERVING after", found, "s", promise=FAILING_FOUND_SECONDS)
    bars.at_most("last failure that a caller saw", seen.last_failed_after(poisoned_at), "s", promise=2.0)
    bars.at_most("failed", len(failed(seen.replies)), "", promise=2 * LANES)
    bars.at_most("wrong answers", len(wrong(served(seen.replies))), "", promise=0)
    bars.hold()


async def test_a_request_that_the_engine_fails_on_fails_alone(measured: Measured) -> None:
    """Its neighbours, sent in the same moment, have their answers, and the worker goes on serving."""
    bars = Bars("poisonous request", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        only.fault("fail:red")
        poison: list[httpx.Response] = []
        innocent: list[httpx.Response] = []
        # Two of ten: fewer in a row than a breaker takes for the worker's failure, whatever the order of the answers.
        texts = ["the red dog", *["far away"] * 4] * 2
        for _ in range(40):
            asked = await asyncio.gather(*(_embed(http, text) for text in texts))
            poison += asked[::5]
            innocent += [answer for number, answer in enumerate(asked) if number % 5]
        status = await hop_status(http, "embedding")
        failures = (await only.counts()).total("mesh_batch_failures_total")
        assert only.worker.process.process.returncode is None, "a poisonous request ended the worker"
    assert {answer.status_code for answer in poison} == {httpx.codes.INTERNAL_SERVER_ERROR}
    assert failures >= len(poison)
    assert status["serving"]
    bars.tell("poisonous requests", len(poison), "")
    bars.at_most("neighbours that failed", sum(not answer.is_success for answer in innocent), "", promise=0)
    bars.at_most("times that the breaker opened", status["breaker"]["times_opened"], "", promise=0)
    bars.hold()


async def test_an_engine_without_memory_says_so_and_goes_on(measured: Measured) -> None:
    """Batches are split before anybody is refused; the refusal is typed; and with memory it serves at once again."""
    bars = Bars("engine out of memory", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        only.fault("out-of-memory")
        answer = await _embed(http, *["far away"] * 8)
        splits = (await only.counts()).total("mesh_batch_splits_total", reason="oom")
        only.fault("healthy")
        began = time.monotonic()
        async with asyncio.timeout(20.0):
            while not (await _embed(http, *["far away"] * 8)).is_success:
                await asyncio.sleep(0.02)
        bars.at_most("served again after", time.monotonic() - began, "s", promise=2.0)
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert answer.json()["error"]["code"] == "gpu_oom"
    bars.at_least("splits before the refusal", splits, "", promise=3)
    bars.hold()


async def test_a_worker_that_is_told_to_end_under_load_fails_no_call(measured: Measured) -> None:
    """One of two gets SIGTERM: what it admitted is answered, what comes later goes elsewhere, and it exits 0."""
    bars = Bars("SIGTERM under load", measured)
    async with replicas(EMBEDDING, 2) as two, gateway_before(two) as gateway:
        for each in two:
            each.fault(BUSY)
        async with gateway.client() as http, traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(0.5)
            told_at = time.monotonic()
            two[0].signal(signal.SIGTERM)
            code = await two[0].exit_code()
            bars.at_most("ended after", time.monotonic() - told_at, "s", promise=NOTICE_SECONDS + 2.0)
            await asyncio.sleep(0.5)
    assert code == EXIT_OK
    assert seen.under_way(told_at)
    bars.at_most("slowest", slowest(seen.replies) * 1000, "ms", promise=1000, noisy=2000)
    _judge(bars, seen, failures=0)


async def test_the_only_one_answers_what_it_admitted_before_it_ends(measured: Measured) -> None:
    """Work of seconds that was admitted before SIGTERM has its answer; later calls hear at once that it drains."""
    bars = Bars("SIGTERM to the only one", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        only.fault("slow:0.03")
        admitted = [asyncio.create_task(_embed(http, "far away")) for _ in range(30)]
        await _in_flight(http, len(admitted))
        told_at = time.monotonic()
        only.signal(signal.SIGTERM)
        await asyncio.sleep(NOTICE_SECONDS + 0.2)
        assert not all(task.done() for task in admitted), "nothing was under way, so nothing was proved"
        asked_at = time.monotonic()
        late = await _embed(http, "far away")
        bars.at_most("refusal while it drains", (time.monotonic() - asked_at) * 1000, "ms", promise=100, noisy=250)
        answers = await asyncio.gather(*admitted)
        code = await only.exit_code()
        bars.at_most("ended after", time.monotonic() - told_at, "s", promise=NOTICE_SECONDS + GRACE_SECONDS)
    assert code == EXIT_OK
    assert late.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert late.headers["retry-after"]
    bars.at_most("admitted calls without an answer", sum(not each.is_success for each in answers), "", promise=0)
    bars.hold()


async def test_a_worker_that_is_told_twice_ends_at_once(measured: Measured) -> None:
    """Also while its engine hangs; and its caller hears of it typed."""
    bars = Bars("second SIGTERM", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        only.fault("hang")
        stuck = asyncio.create_task(_embed(http, "far away"))
        await _in_flight(http, 1)
        only.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert only.worker.process.process.returncode is None, "the first one waits for what is under way"
        told_at = time.monotonic()
        only.signal(signal.SIGTERM)
        code = await only.exit_code()
        bars.at_most("ended after", time.monotonic() - told_at, "s", promise=0.5)
        answer = await stuck
    assert code == TOLD_TWICE
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    bars.hold()


def _judge(bars: Bars, seen: Traffic, *, failures: int) -> None:
    bars.tell("calls", len(seen.replies), "")
    bars.at_most("failed", len(failed(seen.replies)), "", promise=failures)
    bars.at_most("wrong answers or untyped errors", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


async def _embed(http: httpx.AsyncClient, *texts: str) -> httpx.Response:
    return await http.post("/v1/embeddings", json={"model": "", "input": list(texts)})


async def _in_flight(http: httpx.AsyncClient, count: int) -> None:
    """Wait until so many calls are under way."""
    async with asyncio.timeout(10.0):
        while (await hop_status(http, "embedding"))["in_flight"] < count:
            await asyncio.sleep(0.02)
