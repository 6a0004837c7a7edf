"""Workers that stand still (SIGSTOP) and go on: connections that live, and on which nothing is heard."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import httpx
import pytest

from tests.chaos.bars import Bars, Measured
from tests.chaos.processes import BUSY, EMBEDDING, Replica, gateway_before, replicas
from tests.chaos.stand import Gateway, hop_status
from tests.chaos.traffic import Traffic, failed, p99, slowest, traffic, wrong
from tests.chaos.vitals import scrape

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

LANES = 16
DETECTED_SECONDS = 10.0
BACK_SECONDS = 2.0
LONGEST_RUN_SECONDS = 40.0


async def test_a_frozen_one_of_two_fails_no_call(measured: Measured) -> None:
    """Calls that it holds are answered by the other one once it is found, it gets no more, and is back at once."""
    bars = Bars("one of two frozen", measured)
    async with replicas(EMBEDDING, 2) as two, gateway_before(two) as gateway, gateway.client() as http:
        for each in two:
            each.fault(BUSY)
        async with traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(1.0)
            frozen_at = time.monotonic()
            await two[0].freeze()
            found_at = await _health_of(http, two[0], "UNREACHABLE")
            await asyncio.sleep(0.5)
            sent_before = await _sent_to(gateway, two[0]), await _sent_to(gateway, two[1])
            await asyncio.sleep(1.0)
            sent = await _sent_to(gateway, two[0]) - sent_before[0]
            to_the_other = await _sent_to(gateway, two[1]) - sent_before[1]
            two[0].thaw()
            thawed_at = time.monotonic()
            back_at = await _sent_again(gateway, two[0])
            await asyncio.sleep(BACK_SECONDS)
    held = [reply for reply in seen.under_way(frozen_at + 0.5) if reply.seconds > 1.0]
    assert held, "no call was held, so nothing was proved"
    bars.tell("calls", len(seen.replies), "")
    bars.tell("calls that it held", len(held), "")
    bars.at_most("found after", found_at - frozen_at, "s", promise=DETECTED_SECONDS)
    bars.at_most("slowest", slowest(seen.replies), "s", promise=DETECTED_SECONDS)
    bars.at_most("calls sent to it in the second after it was found", sent, "", promise=0)
    bars.at_least("calls sent to the other meanwhile", to_the_other, "", promise=10)
    bars.at_most("gets calls after it goes on", back_at - thawed_at, "s", promise=BACK_SECONDS)
    bars.at_most("failed", len(failed(seen.replies)), "", promise=0)
    bars.at_most("wrong answers", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


async def test_a_frozen_only_one_is_told_typed_and_in_time(measured: Measured) -> None:
    """Calls that it holds end typed within ten seconds, later ones at once, and it serves soon after it goes on."""
    bars = Bars("the only one frozen", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        async with traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(1.0)
            await only.freeze()
            frozen_at = time.monotonic()
            await _health_of(http, only, "UNREACHABLE")
            await asyncio.sleep(1.5)
            thawed_at = time.monotonic()
            only.thaw()
            await asyncio.sleep(BACK_SECONDS + 1.0)
    _judge_silence(bars, seen, frozen_at, thawed_at)
    bars.at_most("first answer after it goes on", seen.first_served_after(thawed_at), "s", promise=BACK_SECONDS)
    bars.at_most("last failure after it goes on", seen.last_failed_after(thawed_at), "s", promise=BACK_SECONDS)
    bars.at_most("wrong answers or untyped errors", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


def _judge_silence(bars: Bars, seen: Traffic, frozen_at: float, thawed_at: float) -> None:
    caught = seen.under_way(frozen_at + 0.5)
    assert caught, "no call was held, so nothing was proved"
    assert failed(caught) == caught, "a process that stands still answers nothing"
    found_at = max(reply.ended for reply in caught)
    later = [reply for reply in seen.begun(found_at, thawed_at) if reply.ended < thawed_at]
    assert later, "nobody called once it was known"
    assert failed(later) == later
    for (status, code), number in Counter((reply.status, reply.code) for reply in failed(seen.replies)).items():
        bars.tell(f"answers {status} {code}", number, "")
    bars.at_most("calls that it held ended after", found_at - frozen_at, "s", promise=DETECTED_SECONDS)
    bars.at_most("slowest of all", slowest(seen.replies), "s", promise=DETECTED_SECONDS)
    bars.at_most("refusals once it was known, p99", p99(later) * 1000, "ms", promise=100, noisy=1000)


@pytest.mark.parametrize("lost", [False, True], ids=["deadline over", "connection given up"])
async def test_work_that_nobody_waits_for_is_not_computed_when_it_goes_on(measured: Measured, lost: bool) -> None:
    """What was sent to a frozen worker and given up by its callers is thrown away."""
    bars = Bars(f"stale work, {'connection given up' if lost else 'deadline over'}", measured)
    calls = 40
    quiet = {"EMBEDDING_CANARY_INTERVAL_SECONDS": "3600"}
    async with replicas(EMBEDDING, 1, quiet) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        before = await only.computed()
        await only.freeze()
        patience = {} if lost else {"x-request-timeout-ms": "1000"}
        answers = await asyncio.gather(
            *(http.post("/v1/embeddings", json={"input": "a red cat"}, headers=patience) for _ in range(calls))
        )
        assert {answer.status_code for answer in answers} <= {503} if lost else {504}
        only.thaw()
        began = time.monotonic()
        await _until_served(http)
        bars.at_most("first answer after it goes on", time.monotonic() - began, "s", promise=BACK_SECONDS)
        await asyncio.sleep(1.0)
        stale = await only.computed() - before - 1
    # The first ones may be at the engine before the worker has read on to their callers' leaving.
    bars.at_most(f"computed of {calls}", stale, "", promise=2)
    bars.hold()


async def _until_served(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while not (await http.post("/v1/embeddings", json={"input": "a red cat"})).is_success:
            await asyncio.sleep(0.02)


async def _health_of(http: httpx.AsyncClient, replica: Replica, wanted: str) -> float:
    """Wait until the gateway says so of a replica; the moment."""
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while True:
            endpoints = (await hop_status(http, "embedding"))["endpoints"]
            if any(each["address"] == replica.target and each["health"] == wanted for each in endpoints):
                return time.monotonic()
            await asyncio.sleep(0.05)


async def _sent_to(gateway: Gateway, replica: Replica) -> float:
    """Calls that the gateway has sent to it."""
    counts = await scrape(f"{gateway.url}/metrics")
    return counts.total("mesh_endpoint_calls_total", hop="embedding", endpoint=replica.target)


async def _sent_again(gateway: Gateway, replica: Replica) -> float:
    """Wait until it gets calls again; the moment."""
    before = await _sent_to(gateway, replica)
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while await _sent_to(gateway, replica) == before:
            await asyncio.sleep(0.02)
    return time.monotonic()
