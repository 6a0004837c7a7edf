"""Workers that are killed, without a word: what callers of the gateway see of it, and how soon it is over."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest

from tests.chaos.bars import FULL, Bars, Measured
from tests.chaos.processes import BUSY, EMBEDDING, REAL_EMBEDDING, Replica, gateway_before, replicas
from tests.chaos.stand import hop_status, running_gateway
from tests.chaos.traffic import Traffic, failed, p99, slowest, traffic, wrong

pytestmark = pytest.mark.chaos

LANES = 16
CALLS = 5_000
LONGEST_RUN_SECONDS = 60.0
REAL_SECONDS = 6.0
DOWN_SECONDS = 600.0 if FULL else 20.0
SAME_COSINE = 0.999
"""A batch's other texts change the last bits of a vector."""


# -- one of two -------------------------------------------------------------------------------------------------------


async def test_the_death_of_one_of_two_fails_no_call(measured: Measured) -> None:
    """Thousands of calls while each is killed and started again in turn, and each call has its right answer."""
    bars = Bars("one of two killed", measured)
    async with replicas(EMBEDDING, 2) as two, gateway_before(two) as gateway:
        for each in two:
            each.fault(BUSY)
        async with gateway.client() as http, traffic(http, lanes=LANES) as seen:
            for number, one in enumerate(two):
                await _until_calls(seen, CALLS // 4 + number * CALLS // 2)
                await one.kill()
                await _until_calls(seen, CALLS // 2 + number * CALLS // 2)
                await one.begin()
                serving_at = await one.says_serving()
                delay = await _computing(one) - serving_at
                bars.at_most(f"takes load after it serves, {number + 1}", delay, "s", promise=1.0, noisy=1.5)
            await _until_calls(seen, CALLS + CALLS // 10)
            status = await hop_status(http, "embedding")
            for number, one in enumerate(two, 1):
                bars.at_least(f"computed by it since it is back, {number}", await one.computed(), "", promise=50)
    seconds = seen.replies[-1].ended - seen.replies[0].began
    bars.at_least("calls", len(seen.replies), "", promise=CALLS)
    bars.tell("calls a second", len(seen.replies) / seconds, "1/s")
    bars.at_least("met by a kill and sent again elsewhere", status["retries"], "", promise=1)
    bars.tell("p99", p99(seen.replies) * 1000, "ms")
    bars.at_most("slowest", slowest(seen.replies) * 1000, "ms", promise=1000, noisy=2000)
    bars.at_most("failed", len(failed(seen.replies)), "", promise=0)
    bars.at_most("wrong answers", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


async def test_the_death_of_one_of_two_real_models_fails_no_call(measured: Measured) -> None:
    """The same with the model that ships: what fails over is computed as well by the other one."""
    bars = Bars("one of two real models killed", measured)
    async with replicas(REAL_EMBEDDING, 2) as two, gateway_before(two) as gateway:
        async with gateway.client() as http, asking(http, LANES) as asked:
            await asyncio.sleep(REAL_SECONDS / 3)
            await two[0].kill()
            await asyncio.sleep(REAL_SECONDS / 3)
            await two[0].begin()
            await two[0].says_serving()
            await _computing(two[0])
            await asyncio.sleep(REAL_SECONDS / 3)
    bars.tell("calls", len(asked.cosines) + len(asked.failures), "")
    bars.at_least("least like the answer before", min(asked.cosines), "", promise=SAME_COSINE)
    bars.at_most("failed", len(asked.failures), "", promise=0)
    bars.hold()


@dataclass(slots=True)
class Asked:
    """What became of calls to a real model.

    Attributes:
        cosines: between each answer and the one that was given while all was well.
        failures: answers of those that were not served.
    """

    cosines: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def asking(http: httpx.AsyncClient, lanes: int) -> AsyncIterator[Asked]:
    """Embed sentences in so many loops until the block is left."""
    sentences = ("The worker died.", "Bread is baked.", "A long way home, and no light on it.", "Who is there?")
    expected = [(await _embed(http, text)).json()["data"][0]["embedding"] for text in sentences]
    asked = Asked()
    numbers = itertools.count()
    over = asyncio.Event()

    async def lane() -> None:
        while not over.is_set():
            number = next(numbers) % len(sentences)
            answer = await _embed(http, sentences[number])
            if answer.is_success:
                asked.cosines.append(_cosine(answer.json()["data"][0]["embedding"], expected[number]))
            else:
                asked.failures.append(answer.text)

    async with asyncio.TaskGroup() as running:
        for _ in range(lanes):
            running.create_task(lane())
        try:
            yield asked
        finally:
            over.set()


async def _embed(http: httpx.AsyncClient, text: str) -> httpx.Response:
    return await http.post("/v1/embeddings", json={"model": "", "input": text})


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


async def _until_calls(seen: Traffic, count: int) -> None:
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while len(seen.replies) < count:
            await asyncio.sleep(0.01)


async def _computing(replica: Replica) -> float:
    """The moment at which a replica has computed something by its own account."""
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while not await replica.computed():
            await asyncio.sleep(0.02)
    return time.monotonic()


# -- the only one -----------------------------------------------------------------------------------------------------


async def test_calls_to_a_dead_worker_are_refused_at_once_and_typed(measured: Measured) -> None:
    """503 in less than 100 ms with a time to come back, and the status says why."""
    bars = Bars("the only one killed", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        async with traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(0.5)
            await only.kill()
            await asyncio.sleep(0.5)
        refusals = [await _refused(http) for _ in range(200)]
        status = await hop_status(http, "embedding")
    seconds = sorted(refusals)
    bars.at_most("wrong answers or untyped errors around the kill", len(wrong(seen.replies)), "", promise=0)
    bars.at_most("calls around the kill, slowest", slowest(seen.replies) * 1000, "ms", promise=500, noisy=1000)
    bars.tell("refusal, p50", seconds[len(seconds) // 2] * 1000, "ms")
    bars.at_most("refusal, p99", seconds[-2] * 1000, "ms", promise=100)
    bars.at_most("refusal, slowest", seconds[-1] * 1000, "ms", promise=100, noisy=250)
    bars.hold()
    assert not status["serving"]
    assert status["breaker"]["state"] in ("open", "half_open")  # the latter where a back-off has just ended
    assert status["breaker"]["cause"] in ("consecutive_failures", "failure_rate", "probe_failed", "backoff_over")
    assert status["endpoints"][0]["health"] == "UNREACHABLE"


async def _refused(http: httpx.AsyncClient) -> float:
    """One refusal, checked; how long it took."""
    began = time.monotonic()
    answer = await _embed(http, "a red cat")
    seconds = time.monotonic() - began
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] in ("circuit_open", "no_endpoint", "connection_lost")
    return seconds


async def test_a_worker_that_is_back_is_used_within_a_second(measured: Measured) -> None:
    """Killed and started three times under load: each time the gateway serves within a second of the worker."""
    bars = Bars("the only one is back", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        for number in range(3):
            async with traffic(http) as seen:
                await asyncio.sleep(0.5)
                await only.kill()
                await asyncio.sleep(0.5 + number / 2)
                delay = await _first_served(only, seen)
            bars.at_most(f"first answer after it serves, {number + 1}", delay, "s", promise=1.0, noisy=1.5)
            bars.at_most("wrong answers or untyped errors", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


@pytest.mark.slow
async def test_a_worker_that_was_long_away_is_used_within_a_second(measured: Measured) -> None:
    """However long it was down, and with traffic all the time: no back-off has grown beyond a second."""
    bars = Bars(f"back after {DOWN_SECONDS:.0f} s", measured)
    async with replicas(EMBEDDING, 1) as (only,), gateway_before([only]) as gateway, gateway.client() as http:
        async with traffic(http, lanes=2) as seen:
            await only.kill()
            await asyncio.sleep(DOWN_SECONDS)
            delay = await _first_served(only, seen)
    bars.at_most("first answer after it serves", delay, "s", promise=1.0, noisy=1.5)
    bars.at_most("wrong answers or untyped errors", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


async def test_a_worker_that_was_down_at_the_gateways_start_is_used_within_a_second(measured: Measured) -> None:
    """The gateway starts without it, says so typed, and needs nothing but the worker."""
    bars = Bars("down at the start", measured)
    async with replicas(EMBEDDING, 1, serving=False) as (only,), running_gateway({"embedding": only.target}) as gateway:
        async with gateway.client() as http:
            await asyncio.sleep(2.0)
            bars.at_most("refusal", await _refused(http) * 1000, "ms", promise=100, noisy=250)
            await only.begin()
            served = asyncio.create_task(_until_served(http))
            serving_at = await only.says_serving()
            delay = await served - serving_at
    bars.at_most("first answer after it serves", delay, "s", promise=1.0, noisy=1.5)
    bars.hold()


async def _first_served(only: Replica, seen: Traffic) -> float:
    """Start it, and tell how long after it served the first answer came."""
    await only.begin()
    serving_at = await only.says_serving()
    await asyncio.sleep(1.6)
    assert failed(seen.replies), "no call met its absence, so nothing was proved"
    began_at = max(reply.ended for reply in failed(seen.replies) if reply.began < serving_at)
    return max(0.0, seen.first_served_after(began_at) + began_at - serving_at)


async def _until_served(http: httpx.AsyncClient) -> float:
    """Ask until an answer comes; the moment of it."""
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while not (await _embed(http, "a red cat")).is_success:
            await asyncio.sleep(0.01)
    return time.monotonic()
